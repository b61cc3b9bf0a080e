package control

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// What a host finds out about a backend of its own is written when it changes
// something, and only then. Nobody speaks for another host's backends.
func TestHealth(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	port := w.vm("web-1", "red", "10.17.34.51").Port
	key := store.ServiceKey(vnet.VNI(port.Vni), "web")
	ca, _ := vnet.ParseCA("10.17.34.51")
	if _, err := w.store.Commit(w.ctx, (&store.Txn{}).Put(key, vnet.Service{
		VNI: vnet.VNI(port.Vni), Name: "web", Port: 443, Protocol: vnet.TCP, Check: &vnet.Check{Interval: time.Second},
		Backends: []vnet.Backend{{Member: "other", CA: ca, Port: 8443}, {Member: port.Name, CA: ca, Port: 8443}},
	})); err != nil {
		t.Fatal(err)
	}
	says := func(host, member string, dead bool) {
		w.srv.Health(host, vnet.Health{VNI: vnet.VNI(port.Vni), Service: "web", Member: member, Dead: dead, Error: "refused"})
	}
	is := func(what string, want bool) {
		t.Helper()
		w.wait(what, func() error {
			row, err := store.Get[vnet.Service](w.ctx, w.store, key)
			if err == nil && (row.Value.Backends[1].Dead != want || row.Value.Backends[0].Dead) {
				err = fmt.Errorf("%+v", row.Value.Backends)
			}
			return err
		})
	}
	says("h7", port.Name, true)
	is("dead", true)
	for range 3 {
		says("h7", port.Name, true) // nothing new
		says("h9", port.Name, false)
		says("h7", "other", true)
	}
	// News are taken when all that were taken before have been looked at.
	for range 2 {
		says("h7", "other", true)
		w.wait("the news are taken", func() error {
			r := w.srv.reign.Load()
			r.healths.mu.Lock()
			defer r.healths.mu.Unlock()
			if len(r.healths.news) > 0 {
				return errors.New("not yet")
			}
			return nil
		})
	}
	if n := w.versions(key); n != 2 {
		t.Errorf("the row was written %d times, want 2: made, dead", n)
	}
	says("h7", port.Name, false)
	is("alive", false)
	if n := w.versions(key); n != 3 {
		t.Errorf("the row was written %d times, want 3: made, dead, alive", n)
	}
}

// versions returns how often a row was written since it was made.
func (w *world) versions(key string) int64 {
	w.t.Helper()
	r, err := w.db.Client().Get(w.ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		w.t.Fatalf("%s: %v", key, err)
	}
	return r.Kvs[0].Version
}
