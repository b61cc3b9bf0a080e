package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"testing"
)

// Mappings hold a peer's number and an offset; what is read back, and what is on
// the wire, is the PA: within a registered host's prefix or on its own, over
// a restart, and with another next hop.
func TestPeers(t *testing.T) {
	a := newA(t)
	other := [6]byte{0x06, 0x2a, 0x3b, 0x4c, 0x5d, 0x6e}
	a.must(a.dp.SetNextHop(9, NextHop{Ifindex: a.uplink.Attrs().Index, Dst: other, Src: routerMAC}))
	to := func(last byte, pa string, hop uint32) Mapping {
		return Mapping{MappingKey{red, addr4([4]byte{10, 17, 34, last})}, addr(pa), [6]byte{2, 0x52, 0x44, 0x33, 0x22, last}, hop}
	}
	want := []Mapping{
		to(121, "100.64.27.0", 7),    // the first of a registered prefix
		to(122, "100.64.27.255", 7),  // the last of it
		to(123, "100.64.28.0", 9),    // one behind it
		to(124, "198.51.100.213", 9), // a VTEP of no host
		to(125, "198.51.100.214", 7), // its neighbour
		to(126, "100.64.18.137", 0),  // on this host
		to(127, "203.0.113.77", 0),   // by the kernel's tables
		{MappingKey{blue, caB}, addr("100.64.27.157"), blueB.mac, 7},
	}
	a.must(a.dp.PutMappings(want...))
	check := func(when string) {
		t.Helper()
		for _, m := range want {
			if got, ok, err := a.dp.Mapping(m.MappingKey); err != nil || !ok || got != m {
				t.Errorf("%s: got %+v, %v, %v, want %+v", when, got, ok, err, m)
			}
			if m.NextHop == 0 || m.VNI != red {
				continue
			}
			v, wire := a.send(redA, redA.frame(udpOf(caA, m.CA, 5353, 7946, text(37))))
			mac := map[uint32][6]byte{7: routerMAC, 9: other}[m.NextHop]
			if v != actRedirect || netip.AddrFrom4([4]byte(wire[30:])) != m.PA || [6]byte(wire[:6]) != mac || [6]byte(wire[50:]) != m.MAC {
				t.Errorf("%s: to %s: verdict %d, got\n%s", when, m.PA, int32(v), dump(wire))
			}
		}
	}
	check("at first")
	before := a.drops()
	a.send(redA, redA.frame(udpOf(caA, want[5].CA, 5353, 7946, text(37))))
	a.counted("to a MAC that no port of this host has", before, "not_local")

	a.must(a.dp.Close())
	dp, err := Load(a.options)
	a.must(err)
	a.dp = dp
	t.Cleanup(func() { a.must(dp.Close()) })
	a.must(a.dp.SetNextHop(9, NextHop{Ifindex: a.uplink.Attrs().Index, Dst: other, Src: routerMAC}))
	check("after a restart")

	// A host's next hop is one: whoever says another one says it for all of its PAs.
	want[1].NextHop = 9
	a.must(a.dp.PutMappings(want[1]))
	want[0].NextHop, want[7].NextHop = 9, 9
	check("by another next hop")
	a.must(a.dp.DeleteHost(prefixB))
	check("once the host isn't registered any more")
	peering(t, a)
}

// peering: a route into another network makes its frames that network's, and a
// frame from there is believed if the way back leads where it came from.
func peering(t *testing.T, a *host) {
	far := member{vni: blue, mac: [6]byte{2, 0x52, 0x66, 0x77, 0x88, 0x99}, pa: addr("100.64.27.211"), ca: addr("10.93.82.71")}
	a.must(errors.Join(a.dp.PutRoute(Route{VNI: red, Prefix: pfx("10.93.82.0/25"), Peer: blue}), a.dp.PutMappings(far.mapping(7))))
	want := []Route{{VNI: red, Prefix: pfx("10.93.82.0/25"), Peer: blue}}
	if got, err := a.dp.Routes(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("routes %v, %v, want %v", got, err, want)
	}
	v, wire := a.send(redA, redA.frame(udpOf(caA, far.ca, 5353, 7946, text(37))))
	if v != actRedirect || binary.BigEndian.Uint32(wire[46:])>>8 != blue || [6]byte(wire[50:]) != far.mac {
		t.Errorf("into the peer: verdict %d, got\n%s", int32(v), dump(wire))
	}
	// Back, the sender's host writes redA's network; its source is found by the same route.
	back := func(pa netip.Addr) []byte {
		return tunnel{src: pa, dst: redA.pa, vni: red}.with(far.inner(redA, udpOf(far.ca, caA, 7946, 5353, text(41))))
	}
	before := a.drops()
	a.receive(back(far.pa))
	a.counted("from the peer", before, "none")
	before = a.drops()
	a.receive(back(redB.pa))
	a.counted("from the peer by another PA", before, "wrong_source")
	a.must(a.dp.DeleteRoute(red, pfx("10.93.82.0/25")))
	before = a.drops()
	a.send(redA, redA.frame(udpOf(caA, far.ca, 5353, 7946, text(37))))
	a.counted("without the route", before, "no_route")
}

// A prefix longer than a mapping's offset can say doesn't lead astray, in IPv6
// least of all: the PA is then a peer of its own.
func TestPeersOfWidePrefixes(t *testing.T) {
	isolate(t)
	h := newHost(t, "a", hostA6, prefixA6, nil)
	h.must(h.dp.PutHost(pfx("2001:db8:9f27:6b5d::/64")))
	for i, pa := range []string{"2001:db8:9f27:6b5d::fffe", "2001:db8:9f27:6b5d::1:fffe", "2001:db8:9f27:6b5d:4c3b::7", "2001:db8:9f27:6b5d::7"} {
		m := Mapping{MappingKey{red, addr4([4]byte{10, 17, 34, byte(121 + i)})}, addr(pa), redB.mac, 7}
		h.must(h.dp.PutMappings(m))
		if got, _, err := h.dp.Mapping(m.MappingKey); err != nil || got != m {
			t.Errorf("got %+v, %v, want %+v", got, err, m)
		}
	}
	peersFull(t)
}

// peersFull: as many underlay prefixes as there are numbers, not one more, until
// a mapping has gone that used one.
func peersFull(t *testing.T) {
	h := newHost(t, "f", hostA, prefixA, func(o *Options) { o.Mappings = uint32(MaxPeers) + 100 })
	at := func(i int) Mapping {
		b := [4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}
		return Mapping{MappingKey{red, addr4([4]byte{10, b[1], b[2], b[3]})}, addr4(b), redB.mac, 7}
	}
	all := make([]Mapping, MaxPeers-1) // the first number is this host's
	for i := range all {
		all[i] = at(i)
	}
	h.must(h.dp.PutMappings(all...))
	one := at(MaxPeers)
	if err := h.dp.PutMappings(one); !errors.Is(err, ErrFull) {
		t.Fatalf("one prefix too many: got %v, want ErrFull", err)
	}
	if err := h.dp.PutHost(prefixB); !errors.Is(err, ErrFull) {
		t.Errorf("one host too many: got %v, want ErrFull", err)
	}
	h.must(h.dp.DeleteMappings(all[40001].MappingKey))
	other := at(MaxPeers + 1)
	if not := (NotPut{}); !errors.As(h.dp.PutMappings(one, other), &not) || len(not) != 1 || !errors.Is(not[other.MappingKey], ErrFull) {
		t.Errorf("two prefixes in one call where one has room: not put are %v, want %s", map[MappingKey]error(not), other.CA)
	}
	for _, m := range []Mapping{one, all[40000], all[40002], all[MaxPeers-2]} {
		if got, ok, err := h.dp.Mapping(m.MappingKey); err != nil || !ok || got != m {
			t.Errorf("got %+v, %v, %v, want %+v", got, ok, err, m)
		}
	}
	if err := h.dp.PutMappings(other); !errors.Is(err, ErrFull) {
		t.Errorf("full again: got %v, want ErrFull", err)
	}
}
