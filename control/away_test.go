package control

import (
	"fmt"
	"testing"
	"time"

	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

// New flows of a service leave the backends of a host that is gone for a while, and
// come back with it. What has no check, and a service that would have none left,
// stays as it is.
func TestAway(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Away = 30 * time.Millisecond })
	w.furnish()
	w.host("h7", 7)
	lost := w.host("h9", 9)
	op := w.as("olga")
	attach := func(n int, host string) *pb.Port {
		return must(op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: fmt.Sprint("a", n), Tenant: "acme", Name: fmt.Sprint("nic-", n), Host: host, Tap: fmt.Sprint("tap-", n),
			Mac: fmt.Sprintf("52:54:00:1a:2b:%02x", n), Network: "red", Ip: fmt.Sprintf("10.17.34.%d", 50+n)}))(t)
	}
	here, there := attach(1, "h7"), attach(2, "h9")
	backend := func(p *pb.Port, n int) vnet.Backend {
		ca, _ := vnet.ParseCA(fmt.Sprintf("10.17.34.%d", 50+n))
		return vnet.Backend{Member: p.Name, CA: ca, Port: 8443, Weight: 100}
	}
	check := &vnet.Check{Interval: time.Second}
	services := map[string]vnet.Service{
		"both":      {Check: check, Backends: []vnet.Backend{backend(here, 1), backend(there, 2)}},
		"alone":     {Check: check, Backends: []vnet.Backend{backend(there, 2)}},
		"unchecked": {Backends: []vnet.Backend{backend(here, 1), backend(there, 2)}},
	}
	txn, key := &store.Txn{}, func(name string) string { return store.ServiceKey(vnet.VNI(here.Vni), name) }
	for name, s := range services {
		s.VNI, s.Name, s.Port, s.Protocol = vnet.VNI(here.Vni), name, 443, vnet.TCP
		txn.Put(key(name), s)
	}
	must(w.store.Commit(w.ctx, txn))(t)
	is := func(when string, want bool) {
		t.Helper()
		w.wait(when, func() error {
			row, err := store.Get[vnet.Service](w.ctx, w.store, key("both"))
			if err == nil && (row.Value.Backends[1].Away != want || row.Value.Backends[0].Away || row.Value.Backends[1].Dead) {
				err = fmt.Errorf("%+v", row.Value.Backends)
			}
			return err
		})
	}
	lost.halt()
	is("the host is gone", true)
	for _, name := range []string{"alone", "unchecked"} {
		if n := w.versions(key(name)); n != 1 {
			t.Errorf("service %s was written %d times, want it left alone", name, n)
		}
	}
	w.host("h9", 9)
	is("the host is back", false)
}
