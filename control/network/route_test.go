package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

func route(prefix, hop string) vnet.Route {
	return vnet.Route{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr(hop)}
}

func (b *bench) get(m vnet.Moniker) *Network {
	b.t.Helper()
	row, err := b.Get(context.Background(), "acme", m)
	if err != nil {
		b.t.Fatal(err)
	}
	return &row.Value
}

func TestRoutes(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.network("red", "10.17.34.0/24", "fd17:34::/64")
	for _, c := range []struct {
		name, prefix, hop string
		says              string
	}{
		{"to another site", "10.91.0.0/16", "10.17.34.9", ""},
		{"the way out", "0.0.0.0/0", "10.17.34.9", ""},
		{"the way out of IPv6", "::/0", "fd17:34::9", ""},
		{"again", "0.0.0.0/0", "10.17.34.77", "exists already, via 10.17.34.9; remove it first"},
		{"host bits", "10.92.7.0/16", "10.17.34.9", "write 10.92.0.0/16"},
		{"hop outside", "10.93.0.0/16", "10.17.35.9", "in no subnet"},
		{"hop of the other family", "fd91::/48", "10.17.34.9", "same family"},
		{"hop is the gateway", "10.93.0.0/16", "10.17.34.1", "the gateway"},
		{"hop is the anycast address", "fd91::/48", "fd17:34::", "anycast"},
		{"of a subnet", "10.17.34.0/24", "10.17.34.9", "reached directly"},
		{"inside a subnet", "10.17.34.128/25", "10.17.34.9", "reached directly"},
		{"around a subnet", "10.16.0.0/12", "10.17.34.9", ""},
		{"metadata", "169.254.169.254/32", "10.17.34.9", "reserved"},
	} {
		txn, err := b.AddRoute(ctx, "acme", "red", route(c.prefix, c.hop))
		if err == nil {
			err = b.commit(txn)
		}
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want it to say %q", c.name, err, c.says)
		}
	}
	b.must(b.RemoveRoute(ctx, "acme", "red", netip.MustParsePrefix("10.91.0.0/16")))
	if _, err := b.RemoveRoute(ctx, "acme", "red", netip.MustParsePrefix("10.91.0.0/16")); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if got := fmt.Sprint(b.get("red").Routes); got != "[{0.0.0.0/0 10.17.34.9 0} {::/0 fd17:34::9 0} {10.16.0.0/12 10.17.34.9 0}]" {
		t.Errorf("routes %s", got)
	}
}

// A port that a route leads to is a router, by either of its addresses; so is one
// that was asked for. What the port has of its own stays when its place is renewed.
func TestRouters(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.network("red", "10.17.34.0/24", "fd17:34::/64")
	b.must(b.AddRoute(ctx, "acme", "red", route("10.91.0.0/16", "10.17.34.9")))
	b.must(b.AddRoute(ctx, "acme", "red", route("::/0", "fd17:34::7")))
	n := b.get("red")
	for _, c := range []struct {
		port Port
		cas  []vnet.CA
		want bool
	}{
		{Port{}, cas("10.17.34.9", "fd17:34::9"), true},
		{Port{}, cas("10.17.34.7", "fd17:34::7"), true},
		{Port{}, cas("10.17.34.7", "fd17:34::9"), false},
		{Port{Router: true}, cas("10.17.34.7"), true},
	} {
		if got := n.Place(c.port, c.cas, 7).Router; got != c.want {
			t.Errorf("%v of %+v: router %t, want %t", c.cas, c.port, got, c.want)
		}
	}
	old := n.Place(Port{}, cas("10.17.34.9", "fd17:34::9"), 7)
	old.Groups, old.Slots, old.Swap, old.Confirm, old.Document = []string{"web"}, 8, "sw-7", vnet.ConfirmGuest, &vnet.Document{Hostname: "gw"}
	old.OldConnections, old.Drain, old.Trigger, old.Undo = vnet.DrainConnections, 9, vnet.TriggerNone, true
	old.Hold, old.Undoable, old.LeaseBudget = vnet.HoldSnapshot, true, 11*time.Second
	ours := map[string]bool{"MTU": true, "Isolated": true, "FlowLog": true} // the network's, and unset in it
	for i, v := 0, reflect.ValueOf(old); i < v.NumField(); i++ {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && !ours[name] {
			t.Errorf("%s is not in this test: whether it stays is not known", name)
		}
	}
	b.must(b.RemoveRoute(ctx, "acme", "red", netip.MustParsePrefix("10.91.0.0/16")))
	b.must(b.SetFlowLog(ctx, "acme", "red", true))
	n = b.get("red")
	want := old
	want.Router, want.FlowLog, want.MTU, want.Routes = false, true, 1300, n.Routes
	if got := n.Renew(old, Port{MTU: 1300}); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("renewed %+v\nwant    %+v", got, want)
	}
}

// Peers have each other's subnets as routes, in both rows by one transaction.
func TestPeers(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.VNIs.Max = 70009
	b.network("red", "10.17.34.0/24", "fd17:34::/64")
	b.network("blue", "10.17.35.0/24")
	b.network("green", "10.17.34.128/25")
	b.network("gray", "10.17.35.64/26")
	b.must(b.AddRoute(ctx, "acme", "gray", route("10.99.7.0/24", "10.17.35.70")))
	b.network("late", "10.99.0.0/16")
	b.must(b.Peer(ctx, "acme", "red", "blue"))
	if got := fmt.Sprint(b.get("red").Place(Port{}, nil, 7).Routes); got != "[{10.17.35.0/24 invalid IP 70002}]" {
		t.Errorf("red's routes %s", got)
	}
	if got := fmt.Sprint(b.get("blue").Place(Port{}, nil, 7).Routes); got != "[{10.17.34.0/24 invalid IP 70001} {fd17:34::/64 invalid IP 70001}]" {
		t.Errorf("blue's routes %s", got)
	}
	for _, c := range []struct {
		name     string
		one, two vnet.Moniker
		err      error
		says     string
	}{
		{"again, the other way round", "blue", "red", ErrExists, "peers"},
		{"with itself", "red", "red", ErrInvalid, "itself"},
		{"overlapping", "green", "red", ErrInvalid, "overlaps 10.17.34.128/25"},
		{"overlapping a peer's peer", "gray", "red", ErrInvalid, `"blue", a peer of "red"`},
		{"a route takes addresses away", "late", "gray", ErrInvalid, "route 10.99.7.0/24"},
		{"unknown", "red", "black", ErrNotFound, "black"},
	} {
		if _, err := b.Peer(ctx, "acme", c.one, c.two); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %v, saying %q", c.name, err, c.err, c.says)
		}
	}
	if _, err := b.Delete(ctx, "acme", "blue"); !errors.Is(err, ErrInUse) {
		t.Errorf("delete a peer: %v", err)
	}
	b.must(b.AddSubnet(ctx, "acme", "blue", Subnet{Prefix: netip.MustParsePrefix("10.17.36.0/24")}))
	if got := fmt.Sprint(b.get("red").Peers); got != "[{blue 70002 [10.17.35.0/24 10.17.36.0/24]}]" {
		t.Errorf("after a subnet was added: %s", got)
	}
	if got := fmt.Sprint(b.get("blue").Place(Port{}, nil, 7).Routes); got != "[{10.17.35.0/24 invalid IP 0} {10.17.36.0/24 invalid IP 0} {10.17.34.0/24 invalid IP 70001} {fd17:34::/64 invalid IP 70001}]" {
		t.Errorf("blue's routes after a subnet was added: %s", got)
	}
	if _, err := b.AddSubnet(ctx, "acme", "blue", Subnet{Prefix: netip.MustParsePrefix("10.17.34.64/26")}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a subnet that a peer has: %v", err)
	}
	b.must(b.Unpeer(ctx, "acme", "blue", "red"))
	if r, l := b.get("red"), b.get("blue"); len(r.Peers)+len(l.Peers) > 0 {
		t.Errorf("after unpeering: %v, %v", r.Peers, l.Peers)
	}
	b.must(b.Delete(ctx, "acme", "blue"))
}

// A VTEP has a mapping without a host, holds its address, and is nobody of ours.
func TestVTEPs(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	red := b.network("red", "10.17.34.0/24", "fd17:34::/64")
	b.must((&store.Txn{}).Put(store.Hosts+host.Name, host), nil)
	v := VTEP{Name: "edge", CA: ca("fd17:34::9"), PA: vnet.PA{Addr: netip.MustParseAddr("172.31.8.9")}, MAC: vnet.MAC{2, 0x17, 0x34, 0x56, 0x78, 0x9a}}
	b.must(b.AddVTEP(ctx, red, v))
	m, err := store.Get[vnet.Mapping](ctx, b.Store, store.MappingKey(70001, v.CA))
	if err != nil || m.Value.Port != "vtep:edge" || m.Value.Host != "" || m.Value.PA != v.PA || m.Value.MAC != v.MAC || m.Value.Epoch.Era() != 3 {
		t.Errorf("mapping %+v, %v", m.Value, err)
	}
	for _, c := range []struct {
		name   string
		change func(*VTEP)
		err    error
	}{
		{"the name again", func(v *VTEP) { v.CA = ca("10.17.34.9") }, ErrExists},
		{"the address again", func(v *VTEP) { v.Name = "edge-2" }, ErrTaken},
		{"outside", func(v *VTEP) { v.Name, v.CA = "edge-2", ca("10.17.35.9") }, ErrOutside},
		{"a host's address", func(v *VTEP) { v.Name, v.CA, v.PA.Addr = "edge-2", ca("10.17.34.9"), host.Address }, ErrInvalid},
		{"a port's address", func(v *VTEP) {
			v.Name, v.CA, v.PA.Addr = "edge-2", ca("10.17.34.9"), netip.MustParseAddr("100.64.251.7")
		}, ErrInvalid},
	} {
		other := v
		c.change(&other)
		if _, err := b.AddVTEP(ctx, red, other); !errors.Is(err, c.err) {
			t.Errorf("%s: %v; want %v", c.name, err, c.err)
		}
	}
	if _, err := b.Delete(ctx, "acme", "red"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "VTEP edge") {
		t.Errorf("delete its network: %v", err)
	}
	all, err := b.VTEPs(ctx, &red.Value)
	if err != nil || len(all) != 1 || all[0] != v {
		t.Errorf("list: %v, %v", all, err)
	}
	b.must(b.RemoveVTEP(ctx, &red.Value, "edge"))
	if _, err := b.RemoveVTEP(ctx, &red.Value, "edge"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := store.Get[vnet.Mapping](ctx, b.Store, store.MappingKey(70001, v.CA)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("mapping left: %v", err)
	}
	b.must(b.Delete(ctx, "acme", "red"))
	if rows, _, err := store.List[any](ctx, b.Store, store.CAs); err != nil || len(rows) > 0 {
		t.Errorf("left of the network: %v, %v", rows, err)
	}
}

// The address of a service is nobody else's, in a subnet or outside of all; services
// share one, and the last one lets it rest.
func TestVIPs(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.network("red", "10.17.34.0/24")
	b.network("blue", "10.17.35.0/24")
	b.must(b.Peer(ctx, "acme", "red", "blue"))
	red, _ := b.Get(ctx, "acme", "red")
	for _, c := range []struct {
		vip string
		err error
	}{
		{"10.17.34.2", nil}, {"203.0.113.9", nil}, {"10.17.34.1", ErrOutside}, {"10.17.34.255", ErrOutside},
		{"169.254.7.7", ErrInvalid}, {"10.17.35.77", ErrInvalid}, {"fd52:5047::7", ErrInvalid},
	} {
		txn, err := b.TakeVIP(ctx, red, ca(c.vip), "web")
		if err == nil {
			err = b.commit(txn)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v; want %v", c.vip, err, c.err)
		}
	}
	if got, err := b.take(red, "", Holder{Port: "p7", State: Used}); got != "10.17.34.3" || err != nil {
		t.Errorf("next free beside a service's address: %s, %v", got, err)
	}
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p7"}); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "service web") {
		t.Errorf("a port takes a service's address: %v", err)
	}
	if _, err := b.TakeVIP(ctx, red, ca("10.17.34.3"), "web"); !errors.Is(err, ErrTaken) {
		t.Errorf("a service takes a port's address: %v", err)
	}
	b.must(b.TakeVIP(ctx, red, ca("10.17.34.2"), "web-tls"))
	b.must(b.LeaveVIP(70001, ca("10.17.34.2"), "web", "web-tls"), nil)
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p7"}); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "service web-tls") {
		t.Errorf("after one of two services left: %v", err)
	}
	b.must(b.LeaveVIP(70001, ca("10.17.34.2"), "web-tls", ""), nil)
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p7"}); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "rests") {
		t.Errorf("after both left: %v", err)
	}
}
