package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	stdmaps "maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"replug/bpf"
	"replug/directory/vnet"
)

func service(vni vnet.VNI, name, vip string, port uint16) vnet.Service {
	return vnet.Service{VNI: vni, Name: name, VIP: vnet.CA{Addr: netip.MustParseAddr(vip)}, Port: port, Protocol: vnet.TCP}
}

// vips lists what the datapath serves.
func (f *table) vips() []string {
	var out []string
	for k := range f.services {
		out = append(out, k.VIP.String())
	}
	slices.Sort(out)
	return out
}

// serves returns what fails the test unless these addresses of services are in force.
func (f *table) serves(t *testing.T) func(when string, want ...string) {
	return func(when string, want ...string) {
		t.Helper()
		if got := f.vips(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
}

// Services follow the directory through changes of address, a network that goes,
// a resync, and a restart.
func TestServices(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	is := f.serves(t)
	ns.OnResync()
	ns.OnService(service(red, "www", "10.17.34.90", 443))
	ns.OnService(service(red, "dns", "10.17.34.91", 53))
	ns.OnNetworkSynced(red, 16)
	ns.OnService(service(blue, "www", "10.17.34.92", 443))
	ns.OnNetworkSynced(blue, 17)
	ns.OnSynced(17)
	is("loaded", "10.17.34.90", "10.17.34.91", "10.17.34.92")
	ns.OnService(service(red, "www", "10.17.34.93", 443))
	is("another address", "10.17.34.91", "10.17.34.92", "10.17.34.93")
	ns.OnServiceGone(red, "dns")
	is("gone", "10.17.34.92", "10.17.34.93")
	ns.OnService(service(red, "new", "10.17.34.93", 443))
	ns.OnService(service(red, "www", "10.17.34.94", 443))
	is("an address that goes from one to another", "10.17.34.92", "10.17.34.93", "10.17.34.94")

	ns.OnResync()
	ns.OnService(service(red, "www", "10.17.34.94", 443))
	ns.OnNetworkSynced(red, 18)
	is("resynced network", "10.17.34.92", "10.17.34.94")
	ns.OnSynced(18)
	is("after the resync", "10.17.34.94")

	ns = session(t, f, nil) // the agent was started again
	ns.OnResync()
	ns.OnService(service(blue, "www", "10.17.34.95", 443))
	ns.OnNetworkSynced(blue, 19)
	is("while everything is repeated", "10.17.34.94", "10.17.34.95")
	ns.OnSynced(19)
	is("what an earlier session left", "10.17.34.95")
	ns.OnNetworkGone(blue)
	is("network gone")
}

// A service whose edit has no room stays as it was: it can be deleted, is tried again
// when something else has gone, and only its network takes up no port until then.
func TestServiceWithoutRoom(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	is := f.serves(t)
	kicked := map[vnet.VNI]int{}
	ns.kickIn = func(vni vnet.VNI) { kicked[vni]++ }
	www, dns := service(red, "www", "10.17.34.90", 443), service(red, "dns", "10.17.34.91", 53)
	ns.OnService(www)
	ns.OnService(dns)
	f.full = fmt.Errorf("%w (map is full)", errServiceRoom)
	www.VIP, dns.Affinity = vnet.CA{Addr: netip.MustParseAddr("10.17.34.93")}, true
	ns.OnService(www)
	ns.OnService(dns)
	ns.OnService(service(red, "new", "10.17.34.94", 443))
	ns.OnSynced(17)
	is("no room for edits", "10.17.34.90", "10.17.34.91")
	if _, err := ns.Synced(red); !errors.Is(err, errServiceRoom) || !strings.Contains(err.Error(), fmt.Sprint("network ", red)) {
		t.Errorf("red: got %v", err)
	}
	if _, err := ns.Synced(blue); err != nil {
		t.Errorf("blue: %v", err)
	}
	ns.OnServiceGone(red, "dns")
	ns.OnServiceGone(red, "new")
	ns.OnSynced(18)
	is("gone although its edit had no room", "10.17.34.90")
	if _, err := ns.Synced(red); !errors.Is(err, errServiceRoom) || kicked[red] != 0 {
		t.Errorf("red while www still has no room: %v, ports looked %d times", err, kicked[red])
	}
	f.full = nil
	ns.OnSynced(19)
	is("nothing has gone that would make room", "10.17.34.90")
	ns.OnNetworkGone(blue)
	ns.OnSynced(20)
	is("another network has gone", "10.17.34.93")
	if _, err := ns.Synced(red); err != nil || kicked[red] != 1 {
		t.Errorf("red once www has room: %v, ports looked %d times", err, kicked[red])
	}

	ns = session(t, f, nil) // the agent was started again
	f.full = errServiceRoom
	say := func() {
		ns.OnResync()
		ns.OnService(www)
		ns.OnNetworkSynced(red, 17)
		ns.OnSynced(17)
	}
	www.VIP = vnet.CA{Addr: netip.MustParseAddr("10.17.34.95")}
	say()
	is("no room after a restart", "10.17.34.93")
	f.full = nil
	say()
	is("told anew with room", "10.17.34.95")

	ns = session(t, f, nil)
	f.full = errServiceRoom
	www.VIP = vnet.CA{Addr: netip.MustParseAddr("10.17.34.96")}
	say()
	f.full = nil
	ns.OnService(service(red, "smaller", "10.17.34.97", 443))
	ns.OnSynced(18)
	is("room is made after a restart: what stood in for it has gone", "10.17.34.96", "10.17.34.97")
}

// A backend whose host is away keeps its flows and gets no new ones.
func TestBackendStates(t *testing.T) {
	s := service(blue, "www", "10.17.34.95", 443)
	s.Backends = []vnet.Backend{{Weight: 7}, {Weight: 7, Draining: true}, {Weight: 7, Away: true}, {Weight: 7, Dead: true}}
	for i, want := range []bpf.Backend{{Weight: 7}, {Weight: 7, Draining: true}, {Weight: 7, Draining: true}, {Weight: 7, Dead: true}} {
		if got := serviceRow(&s).Backends[i]; got != want {
			t.Errorf("%+v became %+v, want %+v", s.Backends[i], got, want)
		}
	}
}

// Who is in which groups follows the mappings, also over a restart.
func TestMembers(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	in := func(ca string, groups vnet.Groups) vnet.Mapping {
		m := mapping(red, ca, "100.64.2.23", "h2", 7)
		m.Groups = groups
		return m
	}
	is := func(when string, want map[string]vnet.Groups) {
		t.Helper()
		got := map[string]vnet.Groups{}
		for k, g := range f.members {
			got[k.CA.String()] = g
		}
		if !stdmaps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	ns.OnResync()
	ns.OnMapping(in("10.17.34.51", 0x21))
	ns.OnMapping(in("10.17.34.52", 0))
	ns.OnMapping(in("10.17.34.53", 0x42))
	ns.OnSynced(17)
	kicked := 0
	ns.kickIn = func(vnet.VNI) { kicked++ }
	ns.OnNetworkSynced(red, 17)
	ns.OnGroup(vnet.Group{VNI: red, Name: "web", Slot: 1, Rules: []vnet.Rule{{Name: "a", Direction: vnet.In, Action: vnet.Allow, RemoteGroup: "db"}}})
	ns.OnGroup(vnet.Group{VNI: red, Name: "db", Slot: 6})
	moves := func(when string, want uint64) {
		t.Helper()
		rules, err := ns.Rules(grouped(red, "web"))
		if err != nil || rules.Moves != want || kicked == 0 {
			t.Errorf("%s: %d moves, %v, ports looked %d times; want %d moves", when, rules.Moves, err, kicked, want)
		}
		kicked = 0
	}
	ns.OnSynced(17)
	moves("the rules are new", 0)
	is("loaded", map[string]vnet.Groups{"10.17.34.51": 0x21, "10.17.34.53": 0x42})
	ns.OnMapping(in("10.17.34.51", 0x23))
	ns.OnMappingGone(red, in("10.17.34.53", 0).CA)
	ns.OnSynced(18)
	moves("one has left the group that the rules name", 1)
	is("changed", map[string]vnet.Groups{"10.17.34.51": 0x23})
	ns.OnMapping(in("10.17.34.51", 0))
	ns.OnMapping(in("10.17.34.52", 5))
	ns.OnSynced(19)
	ns.OnSynced(19)
	ns.ruled(red)
	ns.judge()
	moves("others have moved", 1)
	is("left all groups", map[string]vnet.Groups{"10.17.34.52": 5})

	ns = session(t, f, nil)
	ns.OnResync()
	ns.OnMapping(in("10.17.34.54", 9))
	ns.OnSynced(20)
	is("after a restart", map[string]vnet.Groups{"10.17.34.54": 9})
	ns.OnNetworkGone(red)
	is("network gone", map[string]vnet.Groups{})
}

// There is a next hop to a remote VTEP as long as a mapping leads there. It is never
// registered as a host: it would be believed in every network, and by its MAC alone.
func TestVTEPs(t *testing.T) {
	f := newTable()
	host, edge := netip.MustParsePrefix("100.64.2.0/24"), netip.MustParsePrefix("172.31.9.5/32")
	f.hosts[edge] = true // as agents did before
	k := kernel4test{}
	for _, pa := range []string{"100.64.2.0", "172.31.9.5", "172.31.9.6", "fd31::9:5"} {
		k[netip.MustParseAddr(pa)] = hopTwo
	}
	ns := session(t, f, k)
	vtep := func(ca, pa string) vnet.Mapping {
		m := mapping(red, ca, pa, "", 7)
		m.Port = "vtep:tor-5"
		return m
	}
	is := func(when string, want ...string) {
		t.Helper()
		ns.resolve(t.Context())
		var got []string
		for _, m := range f.mappings {
			if m.Host == "" && f.hops[m.NextHop] == hopTwo {
				got = append(got, fmt.Sprint(m.PA, " by ", m.NextHop))
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); len(got) != len(want) || !slices.EqualFunc(got, want, strings.HasPrefix) {
			t.Errorf("%s: there are next hops to %q, want %q", when, got, want)
		}
		if want := (map[netip.Prefix]bool{host: true}); !stdmaps.Equal(f.hosts, want) {
			t.Errorf("%s: hosts %v, want %v", when, f.hosts, want)
		}
	}
	ns.OnResync()
	ns.OnHost(hostInfo("h2", host.String()))
	ns.OnMapping(vtep("10.17.34.71", "172.31.9.5"))
	ns.OnMapping(vtep("10.17.34.72", "172.31.9.5"))
	ns.OnMapping(vtep("fd00::72", "fd31::9:5"))
	ns.OnSynced(17)
	is("loaded", "172.31.9.5 by ", "fd31::9:5 by ")
	ns.OnMappingGone(red, vtep("10.17.34.71", "172.31.9.5").CA)
	ns.OnMapping(vtep("10.17.34.72", "172.31.9.5"))
	ns.OnSynced(18)
	is("one of two mappings gone", "172.31.9.5 by ", "fd31::9:5 by ")
	ns.OnMapping(vtep("10.17.34.72", "172.31.9.6"))
	ns.OnMapping(mapping(red, "fd00::72", "100.64.2.23", "h2", 8))
	ns.OnSynced(19)
	is("moved", "172.31.9.6 by ")
	if len(ns.hosts) != 2 {
		t.Errorf("next hops are kept for %v, want h2 and one VTEP", ns.hosts)
	}

	ns.OnResync()
	ns.OnHost(hostInfo("h2", host.String()))
	ns.OnMapping(vtep("10.17.34.72", "172.31.9.6"))
	ns.OnSynced(20)
	is("repeated", "172.31.9.6 by ")
	ns.OnResync()
	ns.OnHost(hostInfo("h2", host.String()))
	ns.OnSynced(21)
	is("not repeated")
	if len(ns.hosts) != 1 {
		t.Errorf("next hops are kept for %v, want h2 alone", ns.hosts)
	}
}

// What is of another family than this host's underlay, as an older server may have let
// in, is no way: it is told once, and frames to it are refused as to nobody.
func TestAnotherUnderlay(t *testing.T) {
	f := newTable()
	ns := session(t, f, nil)
	var said strings.Builder
	ns.log, ns.own = slog.New(slog.NewTextHandler(&said, nil)), netip.MustParseAddr("fd31:0:0:7::2")
	ns.OnResync()
	ns.OnHost(hostInfo("h2", "100.64.2.0/24"))
	ns.OnHost(hostInfo("h3", "fd64:0:0:3::/112"))
	edge := mapping(red, "10.17.34.71", "172.31.9.5", "", 7)
	for _, m := range []vnet.Mapping{mapping(red, "10.17.34.51", "100.64.2.23", "h2", 7), mapping(red, "10.17.34.52", "fd64:0:0:3::17", "h3", 8), edge} {
		ns.OnMapping(m)
	}
	ns.OnSynced(17)
	if len(f.hosts) != 1 || !f.hosts[netip.MustParsePrefix("fd64:0:0:3::/112")] || len(f.mappings) != 1 {
		t.Errorf("hosts %v, mappings %v; want those over IPv6", f.hosts, f.mappings)
	}
	for _, want := range []string{"host=h2 has=IPv4", `host="vtep 172.31.9.5"`, "here=IPv6"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("told nothing of %s:\n%s", want, said.String())
		}
	}
	if n := strings.Count(said.String(), "level=ERROR"); n != 2 {
		t.Errorf("told %d times, want 2:\n%s", n, said.String())
	}
	edge.PA.Addr = netip.MustParseAddr("fd31::9:5")
	ns.OnMapping(edge)
	ns.OnHost(hostInfo("h2", "fd64:0:0:2::/112"))
	ns.OnMapping(mapping(red, "10.17.34.51", "fd64:0:0:2::17", "h2", 9))
	ns.OnSynced(18)
	if len(f.hosts) != 2 || len(f.mappings) != 3 {
		t.Errorf("once all are of one family: hosts %v, mappings %v", f.hosts, f.mappings)
	}
}
