package bpf

import (
	"errors"
	"net/netip"
	"testing"
)

// A gateway VM may send from any address that nobody else has: what it forges gets
// the same name whether its victim is on the same host or on another one, in a new
// flow and in one that the victim has with the real owner.
func TestForgedSources(t *testing.T) {
	a, b := newWorld(t)
	far := member{id: 43, vni: blue, mac: [6]byte{2, 0x52, 0x66, 0x77, 0x88, 0x99}, pa: addr("100.64.18.211"), ca: addr("10.93.82.71"), ca6: addr("fd93:7c21:5ae8:9b46:c837:d952:61f4:4b71"), epoch: 9}
	for _, h := range []*host{a, b} {
		h.must(errors.Join(
			h.dp.PutMappings(far.mapping(7), far.mapping6(7)),
			h.dp.PutRoute(Route{VNI: red, Prefix: pfx("10.93.82.0/25"), Peer: blue}),
			h.dp.PutRoute(Route{VNI: red, Prefix: pfx("fd93:7c21:5ae8:9b46::/64"), Peer: blue}),
			h.dp.PutRoute(Route{VNI: red, Prefix: pfx("203.0.113.0/24"), NextHop: redA.ca}),
			h.dp.PutRoute(Route{VNI: red, Prefix: pfx("2001:db8:9f27::/48"), NextHop: redA.ca6}),
			h.dp.PutRoute(Route{VNI: blue, Prefix: pfx("10.17.34.0/24"), Peer: red}),
			h.dp.PutRoute(Route{VNI: blue, Prefix: pfx("fd17:2a5c:8b3e:4d91::/64"), Peer: red})))
	}
	a.addPorts(far)
	a.must(a.dp.SetPortFlags(redA.id, Router, Router))
	for _, to := range []struct {
		where         string
		member, other member // who gets it, and whose address is forged
		host          *host
	}{{"on the same host", redA2, redB, a}, {"on another host", redB, redA2, b}} {
		s := &forger{t: t, a: a, to: to.member, host: to.host, where: to.where}
		for family, its := range redA.cas() {
			s.begins(redA, "its own address", its, "none", 0)
			s.begins(redA, "another VM's", to.other.cas()[family], "wrong_source", 0)
			s.begins(redA, "the receiver's own", to.member.cas()[family], "wrong_source", 0)
			s.begins(redA, "a peer network's VM", far.cas()[family], "wrong_source", 0)
			s.begins(far, "a peer's own", far.cas()[family], "none", 0)
		}
		overlaps := far.port(a.taps[far.id])
		overlaps.CAs = append(overlaps.CAs, netip.PrefixFrom(to.other.ca, 32))
		a.must(a.dp.SetPort(far.id, overlaps))
		s.begins(far, "a peer's own that is another VM's here", to.other.ca, "wrong_source", 0)
		s.begins(redA, "the gateway", gateway, "wrong_source", 0)
		for _, at := range []netip.Addr{imds, wireServer, imds6, addr("169.254.7.9")} {
			s.begins(redA, "the metadata service", at, "wrong_source", 0)
		}
		for _, behind := range []string{"203.0.113.79", "2001:db8:9f27::53"} {
			s.begins(redA, "an address behind it", addr(behind), "none", 0)
		}
		for _, nowhere := range []netip.Addr{caNobody, caNobody6, addr("192.0.2.77"), addr("2001:db8:71c4::9")} {
			s.begins(redA, "an address of nobody's", nowhere, "none", 1)
		}
		s.joins(to.other)
	}
	for _, nth := range []string{"first", "second"} { // as a service might lead it
		before := a.drops()
		a.send(redA2, redA2.frame(udpOf(caA2, caA2, 5353, 7946, text(37))))
		a.counted("to itself, "+nth+" packet", before, "wrong_source")
		before = a.drops()
		a.receive(redA2.wire(redA2, udpOf(caA2, caA2, 7946, 5353, text(37))))
		a.counted("from itself by the wire, "+nth+" packet", before, "wrong_source")
	}
}

// A forger sends to one member, and looks what becomes of it there.
type forger struct {
	t     *testing.T
	a     *host // of the forger
	to    member
	host  *host // of the receiver
	where string
	port  uint16 // of the next flow
}

// begins sends two packets of a new flow. unresolved: each of them counts as that.
func (s *forger) begins(from member, name string, src netip.Addr, want string, unresolved uint64) {
	s.t.Helper()
	s.port++
	before, err := s.host.dp.PortCounters(s.to.id)
	s.host.must(err)
	for _, nth := range []string{"first", "second"} {
		s.send(from, name+", "+nth+" packet", src, 5353+s.port, want)
	}
	after, err := s.host.dp.PortCounters(s.to.id)
	s.host.must(err)
	if got := after.Unresolved - before.Unresolved; got != 2*unresolved {
		s.t.Errorf("%s, from %s %s: %d packets count as unresolved, want %d", s.where, name, src, got, 2*unresolved)
	}
}

func (s *forger) send(from member, name string, src netip.Addr, port uint16, want string) {
	s.t.Helper()
	dst := s.to.cas()[0]
	if src.Is6() {
		dst = s.to.cas()[1]
	}
	before := s.host.drops()
	_, wire := s.a.send(from, from.frame(udpOf(src, dst, port, 7946, text(37))))
	if s.host != s.a {
		before = s.host.drops()
		s.host.receive(wire)
	}
	s.host.counted(s.where+", from "+name+" "+src.String(), before, want)
}

// joins forges what a flow of the receiver's with its real peer would bring.
func (s *forger) joins(real member) {
	s.t.Helper()
	for family, src := range real.cas() {
		s.host.send(s.to, s.to.frame(udpOf(s.to.cas()[family], src, 7946, 7951, text(41))))
		s.send(redA, "the peer of a known flow", src, 7951, "wrong_source")
	}
}

// Where ports share their host's address, the inner source MAC tells who has sent.
// A VTEP, which the agent never registers as a host, may send by another MAC than it
// gets by, but what the directory knows there and nothing else.
func TestSourcesBehindOneAddress(t *testing.T) {
	a := newA(t)
	one, two := redB, blueB
	two.vni, two.ca, two.ca6 = red, addr("10.17.34.94"), addr("fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b794")
	vtep := member{vni: red, mac: [6]byte{2, 0x52, 0x74, 0x85, 0x96, 0xa7}, pa: addr("198.51.100.27"), ca: addr("10.17.34.103")}
	one.pa, two.pa = hostB, hostB
	a.must(errors.Join(a.dp.PutHost(netip.PrefixFrom(hostB, 32)), a.dp.PutMappings(one.mapping(7), one.mapping6(7), two.mapping(7), two.mapping6(7), vtep.mapping(7))))
	port := uint16(5353)
	try := func(name, want string, by member, src, dst netip.Addr) {
		t.Helper()
		for _, nth := range []string{"first", "second"} {
			before := a.drops()
			a.receive(tunnel{src: by.pa, dst: redA.pa, vni: red}.with(by.inner(redA, udpOf(src, dst, port, 7946, text(37)))))
			a.counted(name+", "+nth+" packet", before, want)
		}
	}
	for family, ca := range one.cas() {
		dst := redA.cas()[family]
		try("its own address", "none", one, ca, dst)
		try("its neighbour's, in a known flow", "wrong_source", two, ca, dst)
		port++
		try("its neighbour's", "wrong_source", two, ca, dst)
		try("its own address after that", "none", one, ca, dst)
	}
	itself := one
	itself.mac = gatewayMAC
	try("the host, for a VM of its own", "none", itself, one.ca, caA)
	other := vtep
	other.mac[5]++
	try("a VTEP", "none", vtep, vtep.ca, caA)
	try("a VTEP by another MAC", "none", other, vtep.ca, caA)
	try("a VTEP, as somebody it isn't", "wrong_source", vtep, one.ca, caA)
	try("a VTEP, as nobody", "unknown_source", vtep, caNobody, caA)
	try("its host, as nobody", "none", one, caNobody, caA)
	elsewhere := tunnel{src: vtep.pa, dst: blueA.pa, vni: blue}
	before := a.drops()
	a.receive(elsewhere.with(vtep.inner(blueA, udpOf(caNobody, blueA.ca, port, 7946, text(37)))))
	a.counted("a VTEP of another network, as nobody", before, "unknown_source")
}
