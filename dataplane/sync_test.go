package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

// A table is the datapath's side of the directory.
type table struct {
	mu       sync.Mutex // guards what is written in the background: hops, stamps, routes
	mappings map[MappingKey]MappingRow
	hosts    map[netip.Prefix]bool
	hops     map[uint32]NextHop
	stamps   map[uint32]time.Time
	routes   map[routeKey]vnet.Route
	members  map[MappingKey]vnet.Groups
	services map[ServiceKey]vnet.Service
	full     error // of services
	writes   int
	tried    int // mappings

	noMapping, noMember NotSet // rows that there is no room for
	forgot              int
}

func newTable() *table {
	return &table{mappings: map[MappingKey]MappingRow{}, hosts: map[netip.Prefix]bool{}, hops: map[uint32]NextHop{},
		stamps: map[uint32]time.Time{}, routes: map[routeKey]vnet.Route{},
		members: map[MappingKey]vnet.Groups{}, services: map[ServiceKey]vnet.Service{}}
}

func (f *table) SetMembers(list []Member) NotSet {
	not := NotSet{}
	for _, m := range list {
		if not.refused(f.noMember, m.MappingKey) {
			continue
		}
		if f.members[m.MappingKey] = m.Groups; m.Groups == 0 {
			delete(f.members, m.MappingKey)
		}
	}
	return not
}

// refused notes that a row is one of those without room.
func (n NotSet) refused(without NotSet, k MappingKey) bool {
	if without[k] != nil {
		n[k] = without[k]
	}
	return n[k] != nil
}

func (f *table) EachMember(each func(Member)) error {
	for k, g := range f.members {
		each(Member{k, g})
	}
	return nil
}

func (f *table) SetService(s vnet.Service) error {
	if f.full == nil {
		f.services[keyOf(&s)] = s
	}
	return f.full
}

func (f *table) DeleteService(k ServiceKey) error { delete(f.services, k); return nil }

func (f *table) ForgetBackends() error { f.forgot++; return nil }

func (f *table) Services() (all []ServiceKey, err error) {
	for k := range f.services {
		all = append(all, k)
	}
	return all, nil
}

func (f *table) SetMappings(rows []MappingRow) NotSet {
	f.writes++
	f.tried += len(rows)
	not := NotSet{}
	for _, r := range rows {
		if k := (MappingKey{r.VNI, r.CA}); !not.refused(f.noMapping, k) {
			f.mappings[k] = r
		}
	}
	return not
}

func (f *table) DeleteMappings(keys []MappingKey) error {
	for _, k := range keys {
		delete(f.mappings, k)
	}
	return nil
}

func (f *table) EachMapping(each func(MappingRow)) error {
	for _, m := range f.mappings {
		each(m)
	}
	return nil
}

func (f *table) Mapping(k MappingKey) (MappingRow, bool, error) {
	m, ok := f.mappings[k]
	return m, ok, nil
}

func (f *table) PutHost(p netip.Prefix) error    { f.hosts[p] = true; return nil }
func (f *table) DeleteHost(p netip.Prefix) error { delete(f.hosts, p); return nil }

func (f *table) Hosts() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for p := range stdmaps.Keys(f.hosts) {
		all = append(all, p)
	}
	return all, nil
}

func (f *table) SetNextHop(i uint32, n NextHop) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hops[i], f.stamps[i] = n, time.Now()
	return nil
}

// hop returns a next hop and its age.
func (f *table) hop(i uint32) (NextHop, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hops[i], time.Since(f.stamps[i])
}

func (f *table) SetRoute(v vnet.VNI, r vnet.Route) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes[routeKey{v, r.Prefix}] = r
	return nil
}

func (f *table) DeleteRoute(v vnet.VNI, p netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.routes, routeKey{v, p})
	return nil
}

// routed returns how many routes there are, and one of them.
func (f *table) routed(k routeKey) (int, vnet.Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.routes), f.routes[k]
}

func (f *table) EachRoute(each func(vnet.VNI, vnet.Route)) error {
	for k, r := range f.routes {
		each(k.vni, r)
	}
	return nil
}

// kernel knows the way to some hosts.
type kernel4test map[netip.Addr]NextHop

func (k kernel4test) NextHop(_ context.Context, dst netip.Addr) (NextHop, bool) {
	n, ok := k[dst]
	return n, ok
}

func session(t *testing.T, f *table, k kernel4test) *networks {
	t.Helper()
	ns, err := newNetworks(f, k, "h1", NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func hostInfo(name, prefix string) vnet.HostInfo {
	p := netip.MustParsePrefix(prefix)
	return vnet.HostInfo{Name: name, PAPrefix: p, Address: p.Addr()}
}

func mapping(vni vnet.VNI, ca, pa, host string, counter uint64) vnet.Mapping {
	return vnet.Mapping{VNI: vni, CA: vnet.CA{Addr: netip.MustParseAddr(ca)}, PA: vnet.PA{Addr: netip.MustParseAddr(pa)},
		MAC: vnet.PortMAC(0x1a2b3c4d), Epoch: vnet.NewEpoch(3, counter), Host: host, Port: "p-9"}
}

var (
	bigMapping = MappingKey{blue, vnet.CA{Addr: netip.MustParseAddr("10.17.34.62")}}
	hopTwo     = NextHop{Ifindex: 7, Src: vnet.PortMAC(0x21324354), Dst: vnet.PortMAC(0x65768798)}
)

// A resync replaces all: what isn't repeated goes, what is stays in force.
func TestResync(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	ns.OnResync()
	ns.OnHost(hostInfo("h2", "100.64.2.0/24"))
	ns.OnHost(hostInfo("h3", "100.64.3.0/24"))
	ns.OnHost(hostInfo("h1", "100.64.1.0/24"))
	ns.OnMapping(mapping(red, "10.17.34.51", "100.64.2.23", "h2", 7))
	ns.OnMapping(mapping(blue, "10.17.34.62", "100.64.3.41", "h3", 8))
	if ok, _ := ns.Synced(blue); ok {
		t.Error("synced before the directory says so")
	}
	ns.OnNetworkSynced(blue, 17)
	if ok, err := ns.Synced(blue); !ok || err != nil || f.mappings[bigMapping].Epoch != vnet.NewEpoch(3, 8) {
		t.Errorf("blue: %t, %v, %v", ok, err, f.mappings)
	}
	ns.OnSynced(17)
	if len(f.hosts) != 2 {
		t.Errorf("hosts %v: our own prefix is none that frames come from", f.hosts)
	}

	ns = session(t, f, nil) // the agent was started again
	ns.OnResync()
	ns.OnHost(hostInfo("h3", "100.64.3.0/24"))
	if len(f.mappings) != 2 || len(f.hosts) != 2 {
		t.Errorf("a resync that goes on took something away: %v, %v", f.mappings, f.hosts)
	}
	ns.OnMapping(mapping(blue, "10.17.34.62", "100.64.3.41", "h3", 8))
	ns.OnSynced(18)
	hosts := func(when string, want ...string) {
		t.Helper()
		var got []string
		for p := range f.hosts {
			got = append(got, p.String())
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("hosts %s: %q, want %q", when, got, want)
		}
	}
	if _, ok := f.mappings[bigMapping]; len(f.mappings) != 1 || !ok {
		t.Errorf("after the sweep: %v", f.mappings)
	}
	hosts("after the sweep", "100.64.3.0/24")
	ns.OnNetworkGone(blue)
	if ok, _ := ns.Synced(blue); ok || len(f.mappings) != 0 {
		t.Errorf("network is gone, but: %t, %v", ok, f.mappings)
	}

	ns.OnResync() // h3 left and joined again as h4, and nobody was there to say so
	ns.OnHost(hostInfo("h4", "100.64.3.0/24"))
	ns.OnSynced(19)
	hosts("after a host has another name", "100.64.3.0/24")
	ns.OnHost(hostInfo("h4", "100.64.4.0/24"))
	ns.OnHost(hostInfo("h5", "100.64.4.0/24"))
	ns.OnHost(hostInfo("h4", "100.64.5.0/24"))
	hosts("whose prefix went to another", "100.64.4.0/24", "100.64.5.0/24")
	ns.OnHostGone("h4")
	hosts("without one", "100.64.4.0/24")
}

// Changes are written before what relies on them, and in batches.
func TestMappingsAreBatched(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	for i := range 2 * batch {
		m := mapping(red, "10.17.0.0", "100.64.2.23", "h2", 7)
		a := m.CA.As4()
		a[2], a[3] = byte(i>>8), byte(i)
		m.CA = vnet.CA{Addr: netip.AddrFrom4(a)}
		ns.OnMapping(m)
	}
	ns.OnMappingGone(red, vnet.CA{Addr: netip.MustParseAddr("10.17.0.3")})
	ns.OnSynced(19)
	if len(f.mappings) != 2*batch-1 || f.writes > 4 {
		t.Errorf("%d mappings in %d writes", len(f.mappings), f.writes)
	}
}

// A network that doesn't fit can't be staged, with the reason, until it fits: all of it
// is tried again when another has gone.
func TestFullMapIsSaid(t *testing.T) {
	f := newTable()
	f.noMapping = NotSet{}
	ns := session(t, f, nil)
	for i := range 2*batch + 7 {
		m := mapping(blue, "10.17.34.62", "100.64.3.41", "h3", 8)
		m.CA = vnet.CA{Addr: netip.AddrFrom4([4]byte{10, 17, byte(34 + i>>8), byte(i)})}
		f.noMapping[MappingKey{blue, m.CA}] = errMapRoom
		ns.OnMapping(m)
	}
	ns.OnMapping(mapping(red, "10.17.34.62", "100.64.2.23", "h2", 7))
	ns.OnNetworkSynced(blue, 17)
	is := func(when string, want error, mappings int) {
		t.Helper()
		_, err := ns.Synced(blue)
		if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), fmt.Sprint("network ", blue)) {
			t.Errorf("%s: got %v, want the network and what has no room: %v", when, err, want)
		}
		if _, err := ns.Synced(red); err != nil || len(f.mappings) != mappings {
			t.Errorf("%s: red, whose mapping was in the same batch: %v, %d mappings, want %d", when, err, len(f.mappings), mappings)
		}
	}
	is("full", errMapRoom, 1)
	before := f.tried
	ns.OnMappingGone(red, bigMapping.CA)
	ns.OnMapping(mapping(red, "10.17.34.63", "100.64.2.23", "h2", 7))
	ns.OnSynced(18)
	if is("full again", errMapRoom, 1); f.tried != before+1+batch {
		t.Errorf("%d mappings of a network that has no room were tried again, want a batch", f.tried-before-1)
	}
	f.noMapping = NotSet{bigMapping: errMapRoom}
	ns.OnMappingGone(red, vnet.CA{Addr: netip.MustParseAddr("10.17.34.63")})
	ns.OnSynced(19)
	is("all but one fit", errMapRoom, 2*batch+6)
	ns.OnMappingGone(blue, bigMapping.CA)
	ns.OnSynced(20)
	is("that one has gone", nil, 2*batch+6)
}

// Who is in which groups is known, or there is no way to it; the rest of the batch is
// written, and what had no room when there may be some.
func TestMembersWithoutRoom(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	in := mapping(blue, "10.17.34.62", "100.64.3.41", "h3", 8)
	in.Groups = vnet.Groups(0).With(5)
	other := mapping(red, "10.17.34.51", "100.64.2.23", "h2", 7)
	other.Groups = vnet.Groups(0).With(17)
	say := func() {
		ns.OnResync()
		ns.OnMapping(in)
		ns.OnMapping(other)
		ns.OnNetworkSynced(blue, 17)
		ns.OnNetworkSynced(red, 17)
		ns.OnSynced(17)
	}
	f.noMember = NotSet{bigMapping: errMemberRoom}
	say()
	if _, err := ns.Synced(blue); !errors.Is(err, errMemberRoom) {
		t.Errorf("blue: got %v", err)
	}
	if _, ok := f.mappings[bigMapping]; ok || len(f.mappings) != 1 {
		t.Errorf("mappings %v, want red's alone", f.mappings)
	}
	if _, err := ns.Synced(red); err != nil || f.members[MappingKey{red, other.CA}] != other.Groups {
		t.Errorf("red: %v, members %v", err, f.members)
	}
	say()
	f.noMember = nil
	ns.OnMappingGone(red, vnet.CA{Addr: netip.MustParseAddr("10.17.34.52")})
	ns.OnSynced(18)
	if _, err := ns.Synced(blue); err != nil || f.members[bigMapping] != in.Groups || len(f.mappings) != 2 {
		t.Errorf("once something has gone: %v, members %v, mappings %v", err, f.members, f.mappings)
	}
}

// Next hops stay younger than a minute, and keep their index over a restart:
// mappings in the datapath name it.
func TestNextHops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTable()
		k := kernel4test{netip.MustParseAddr("100.64.3.0"): hopTwo}
		ctx, cancel := context.WithCancel(t.Context())
		ns := session(t, f, k)
		ns.OnHost(hostInfo("h2", "100.64.2.0/24"))
		ns.OnHost(hostInfo("h3", "100.64.3.0/24"))
		ns.OnMapping(mapping(blue, "10.17.34.62", "100.64.3.41", "h3", 8))
		ns.OnSynced(17)
		index := f.mappings[bigMapping].NextHop
		go ns.run(ctx)
		for range 10 {
			time.Sleep(27 * time.Second)
			synctest.Wait()
			if hop, age := f.hop(index); hop != hopTwo || age > 30*time.Second {
				t.Fatalf("next hop %d: %v, %s old", index, hop, age)
			}
		}
		cancel()
		synctest.Wait()

		ns = session(t, f, k)
		ns.OnResync()
		ns.OnHost(hostInfo("h5", "100.64.5.0/24"))
		ns.OnHost(hostInfo("h3", "100.64.3.0/24"))
		ns.OnHost(hostInfo("h2", "100.64.2.0/24"))
		ns.OnMapping(mapping(blue, "10.17.34.62", "100.64.3.41", "h3", 8))
		ns.OnSynced(18)
		if got := f.mappings[bigMapping].NextHop; got != index || index == 0 {
			t.Errorf("index %d, was %d", got, index)
		}
		ns.OnHostGone("h3")
		if hop, _ := f.hop(index); hop != (NextHop{}) {
			t.Errorf("next hop of a host that is gone: %v", hop)
		}
	})
}
