package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"replug/directory/etcd"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A bench is a manager on a store of its own, with a clock that tests move.
type bench struct {
	*Manager
	t   *testing.T
	now time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db, err := etcd.Open(context.Background(), etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	b := &bench{Manager: New(store.New(db.Client()), 3, Range{Min: 70001, Max: 70003}), t: t, now: time.Unix(1700000000, 0)}
	b.Now = func() time.Time { return b.now }
	return b
}

func (b *bench) commit(txn *store.Txn) error {
	_, err := b.Store.Commit(context.Background(), txn)
	return err
}

func (b *bench) must(txn *store.Txn, err error) {
	b.t.Helper()
	if err == nil {
		err = b.commit(txn)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// network makes a network of tenant acme.
func (b *bench) network(moniker vnet.Moniker, prefixes ...string) store.Row[Network] {
	b.t.Helper()
	n := Network{Moniker: moniker, Tenant: "acme"}
	for _, p := range prefixes {
		n.Subnets = append(n.Subnets, Subnet{Prefix: netip.MustParsePrefix(p)})
	}
	_, txn, err := b.Create(context.Background(), n)
	b.must(txn, err)
	row, err := b.Get(context.Background(), "acme", moniker)
	if err != nil {
		b.t.Fatal(err)
	}
	return row
}

func (b *bench) take(n store.Row[Network], want string, h Holder) (string, error) {
	b.t.Helper()
	var cas []vnet.CA
	if want != "" {
		cas = append(cas, vnet.CA{Addr: netip.MustParseAddr(want)})
	}
	got, txn, err := b.Take(context.Background(), n, cas, V4, vnet.MAC{}, h)
	if err == nil {
		err = b.commit(txn)
	}
	if err != nil {
		return "", err
	}
	return got[0].String(), err
}

var host = vnet.HostInfo{Name: "h7", Address: netip.MustParseAddr("172.31.7.2"), PAPrefix: netip.MustParsePrefix("100.64.250.0/23"), Ports: 400}

func (b *bench) port(name string, n store.Row[Network], h vnet.HostInfo) vnet.Intent {
	b.t.Helper()
	in, txn, err := b.NewPort(context.Background(), PortRequest{Port: Port{Name: name, Tenant: "acme"}, Network: n, Families: n.Value.Families(), Host: h})
	if err != nil {
		b.t.Fatal(err)
	}
	b.must(txn.Add(PutIntent(&in)), nil)
	return in
}

func TestVNIs(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	red, blue := b.network("red", "10.17.34.0/24"), b.network("blue", "10.17.34.0/24")
	b.network("green", "10.17.34.0/24")
	if red.Value.VNI != 70001 || blue.Value.VNI != 70002 {
		t.Errorf("VNIs %d, %d", red.Value.VNI, blue.Value.VNI)
	}
	more := Network{Moniker: "late", Tenant: "acme", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.5.0.0/16")}}}
	if _, _, err := b.Create(ctx, more); !errors.Is(err, ErrExhausted) {
		t.Errorf("fourth of three: %v", err)
	}
	b.must(b.Delete(ctx, "acme", "blue"))
	n, txn, err := b.Create(ctx, more)
	b.must(txn, err)
	if n.VNI != 70002 || n.Lease != DefaultLease || n.Subnets[0].Gateway.String() != "10.5.0.1" {
		t.Errorf("after one was deleted: %+v", n)
	}
	if err := b.commit(txn); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the same transaction again: %v", err)
	}
}

// Invariant 10: no CA is given twice in a network; the same CA in two networks is
// two addresses.
func TestTakeCA(t *testing.T) {
	b := newBench(t)
	red, blue := b.network("red", "10.17.34.248/29", "10.91.0.0/30"), b.network("blue", "10.17.34.248/29")
	h := Holder{Port: "p7", State: Used}
	for _, c := range []struct {
		name string
		n    store.Row[Network]
		want string
		got  string
		err  error
	}{
		{"explicit", red, "10.17.34.251", "10.17.34.251", nil},
		{"taken", red, "10.17.34.251", "", ErrTaken},
		{"the same in another network", blue, "10.17.34.251", "10.17.34.251", nil},
		{"network address", red, "10.17.34.248", "", ErrOutside},
		{"gateway", red, "10.17.34.249", "", ErrOutside},
		{"broadcast", red, "10.17.34.255", "", ErrOutside},
		{"outside", red, "10.17.35.7", "", ErrOutside},
		{"next free", red, "", "10.17.34.250", nil},
		{"next free skips a taken one", red, "", "10.17.34.252", nil},
		{"next", red, "", "10.17.34.253", nil},
		{"next", red, "", "10.17.34.254", nil},
		{"second subnet", red, "", "10.91.0.2", nil},
		{"none left", red, "", "", ErrExhausted},
	} {
		got, err := b.take(c.n, c.want, h)
		if !errors.Is(err, c.err) || err == nil && got != c.got {
			t.Errorf("%s: got %s, %v; want %s, %v", c.name, got, err, c.got, c.err)
		}
	}
}

// Two who compose at the same time: one of them loses, and finds another one.
func TestTakeRace(t *testing.T) {
	b := newBench(t)
	red := b.network("red", "10.17.34.0/24")
	ctx := context.Background()
	one, first, err := b.Take(ctx, red, nil, V4, vnet.MAC{}, Holder{Port: "p7", State: Used})
	two, second, err2 := b.Take(ctx, red, nil, V4, vnet.MAC{}, Holder{Port: "p9", State: Held})
	if err != nil || err2 != nil || one[0] != two[0] {
		t.Fatalf("%v %v %v %v", one, two, err, err2)
	}
	b.must(first, nil)
	if err := b.commit(second); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the second one: %v", err)
	}
	gone, err := b.Delete(ctx, "acme", "red")
	if !errors.Is(err, ErrInUse) {
		t.Errorf("delete in use: %v, %v", gone, err)
	}
	blue := b.network("blue", "10.17.34.0/24")
	gone, err = b.Delete(ctx, "acme", "blue")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.take(blue, "", Holder{Port: "p9", State: Held}); err != nil {
		t.Fatal(err)
	}
	if err := b.commit(gone); !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete after somebody took an address: %v", err)
	}
}

// A CA given back rests 60 s, and is swept then. A claim takes the address of the
// VM that failed for it at once.
func TestRest(t *testing.T) {
	b := newBench(t)
	red := b.network("red", "10.17.34.0/24")
	ca := vnet.CA{Addr: netip.MustParseAddr("10.17.34.2")}
	b.must(b.Retire(red.Value.VNI, ca, "p7"), nil)
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p9"}); !errors.Is(err, ErrTaken) {
		t.Errorf("at once: %v", err)
	}
	if got, err := b.take(red, "", Holder{Port: "p9", State: Used}); got != "10.17.34.3" || err != nil {
		t.Errorf("next free: %s, %v", got, err)
	}
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p7", State: Held}); err != nil {
		t.Errorf("at once, by the port that had it: %v", err)
	}
	b.must(b.Release(context.Background(), red.Value.VNI, ca))
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p9"}); !errors.Is(err, ErrTaken) {
		t.Errorf("after the port held it in vain: %v", err)
	}
	next, err := b.Sweep(context.Background())
	if err != nil || !next.Equal(b.now.Add(60*time.Second)) {
		t.Errorf("sweep: again at %v, %v", next, err)
	}
	b.now = b.now.Add(59 * time.Second)
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p9"}); !errors.Is(err, ErrTaken) {
		t.Errorf("after 59 s: %v", err)
	}
	b.now = b.now.Add(time.Second)
	if _, err := b.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get[Holder](context.Background(), b.Store, store.CAKey(red.Value.VNI, ca)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after the sweep: %v", err)
	}
	b.must(b.Yield(red.Value.VNI, ca, "p7", "claim-5"), nil)
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p9", Claim: "claim-6"}); !errors.Is(err, ErrTaken) {
		t.Errorf("another claim: %v", err)
	}
	if _, err := b.take(red, "10.17.34.2", Holder{Port: "p9", Claim: "claim-5", State: Used}); err != nil {
		t.Errorf("the same claim: %v", err)
	}
}

// S35: MAC and physical address of a new port; its place is the network's.
func TestPorts(t *testing.T) {
	b := newBench(t)
	red := b.network("red", "10.17.34.0/24")
	p, q := b.port("p7", red, host), b.port("p9", red, host)
	if p.ID != 1 || p.PA.String() != "100.64.250.1" || q.PA.String() != "100.64.250.2" || p.MAC == q.MAC || p.MAC[0] != 2 {
		t.Errorf("ports %+v, %+v", p, q)
	}
	place := p.Current
	if place.VNI != 70001 || place.Network != "red" || place.Addrs[0].Bits != 24 || place.Addrs[0].Gateway.String() != "10.17.34.1" || place.Epoch.Era() != 3 {
		t.Errorf("place %+v", place)
	}
	m, err := store.Get[vnet.Mapping](context.Background(), b.Store, store.MappingKey(70001, place.Addrs[0].CA))
	if err != nil || m.Value.PA != p.PA || m.Value.MAC != p.MAC || m.Value.Epoch != place.Epoch {
		t.Errorf("mapping %+v, %v", m, err)
	}
	gone, err := b.RemovePort(context.Background(), &p)
	b.must(gone, err)
	// Its number comes again as late as possible, with a higher epoch (invariant 2).
	r := b.port("p11", red, host)
	if r.ID != 3 || r.Current.Epoch <= p.Current.Epoch {
		t.Errorf("port after a removed one: %+v", r)
	}
}

// What a port leaves behind is not what another one has by now.
func TestRemoveLeavesTheHeir(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	red := b.network("red", "10.17.34.0/24")
	p := b.port("p7", red, host)
	ca := p.Current.Addrs[0].CA
	b.must(b.Yield(70001, ca, "p7", "claim-5"), nil)
	heir, txn, err := b.NewPort(ctx, PortRequest{Port: Port{Name: "p9", Tenant: "acme"}, Network: red, Families: V4, CAs: []vnet.CA{ca}, Host: host, Claim: "claim-5"})
	b.must(txn.Add(PutIntent(&heir)), err)
	gone, err := b.RemovePort(ctx, &p)
	b.must(gone, err)
	m, err := store.Get[vnet.Mapping](ctx, b.Store, store.MappingKey(70001, ca))
	if err != nil || m.Value.Port != "p9" {
		t.Errorf("mapping %+v, %v", m.Value, err)
	}
	h, err := store.Get[Holder](ctx, b.Store, store.CAKey(70001, ca))
	if err != nil || h.Value.Port != "p9" || h.Value.State != Used {
		t.Errorf("holder %+v, %v", h.Value, err)
	}
}

func TestPAs(t *testing.T) {
	own := host
	own.PAPrefix = netip.PrefixFrom(own.Address, 32)
	for _, c := range []struct {
		h    vnet.HostInfo
		id   vnet.PortID
		want string
	}{
		{host, 1, "100.64.250.1"}, {host, 255, "100.64.250.255"}, {host, 256, "100.64.251.0"}, {host, 400, "100.64.251.144"}, {own, 77, "172.31.7.2"},
	} {
		if got := paOf(c.h, c.id); got.String() != c.want {
			t.Errorf("port %d of %s: %s, want %s", c.id, c.h.PAPrefix, got, c.want)
		}
	}
	for _, c := range []struct {
		prefix string
		ports  int
		want   int
	}{{"100.64.7.0/24", 4000, 254}, {"100.64.0.0/16", 0, 16382}, {"100.64.7.0/24", 97, 97}, {"172.31.7.2/32", 0, 16382}} {
		if got := Capacity(vnet.HostInfo{PAPrefix: netip.MustParsePrefix(c.prefix), Ports: c.ports}); got != c.want {
			t.Errorf("%s, %d ports: %d, want %d", c.prefix, c.ports, got, c.want)
		}
	}
}

func TestPortsExhausted(t *testing.T) {
	b := newBench(t)
	red := b.network("red", "10.17.34.0/24")
	small := host
	small.Ports = 3
	var last vnet.Intent
	for i := range 3 {
		last = b.port(fmt.Sprint("p", i), red, small)
	}
	_, _, err := b.NewPort(context.Background(), PortRequest{Port: Port{Name: "px"}, Network: red, Families: V4, Host: small})
	if !errors.Is(err, ErrExhausted) {
		t.Errorf("fourth port of three: %v", err)
	}
	gone, err := b.RemovePort(context.Background(), &last)
	b.must(gone, err)
	if again := b.port("py", red, small); again.ID != last.ID {
		t.Errorf("freed number %d, given %d", last.ID, again.ID)
	}
}
