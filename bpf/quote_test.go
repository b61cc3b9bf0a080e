package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// An error about a service's connection names the service to the client and the
// backend to the backend, in its header and in what it quotes, with right checksums.
func TestErrorsOfServices(t *testing.T) {
	a, b := newWorld(t)
	for family := range 2 {
		for _, proto := range []uint8{protoUDP, protoTCP} {
			errorsOfService(t, a, b, family, proto)
		}
	}
}

func errorsOfService(t *testing.T, a, b *host, family int, proto uint8) {
	t.Helper()
	name := fmt.Sprintf("protocol %d over IPv%d", proto, 4+2*family)
	client, backend, other := redA.cas()[family], redB.cas()[family], redA2.cas()[family]
	s := serviceOf(family, proto, Backend{CA: backend, Port: 7951, Weight: 3})
	a.must(a.dp.SetService(s))
	sent, answer := s.between(client, 40329, s.VIP, 8453), s.between(s.VIP, 8453, client, 40329)
	if v, _ := a.send(redA, redA.frame(sent)); v != actRedirect {
		t.Fatalf("%s: the connection doesn't begin: verdict %d; %v", name, int32(v), a.drops())
	}
	toBackend := s.between(client, 40329, backend, 7951)

	gets := func(what string, packet, want []byte) {
		t.Helper()
		before := a.drops()
		_, got := a.receive(redB.wire(redA, packet))
		a.counted(what+", "+name, before, "none")
		if string(got[14:]) != string(want) {
			t.Errorf("%s, %s: got\n%swant\n%s", what, name, dump(got[14:]), dump(want))
		}
		if wrong := rightSums(got); wrong != "" {
			t.Errorf("%s, %s: %s is wrong", what, name, wrong)
		}
	}
	gets("the backend's port is closed", unreachable(backend, client, toBackend), unreachable(s.VIP, client, sent))
	a.must(a.dp.PutMappings(Mapping{MappingKey{red, caNobody}, redB.pa, redB.mac, 7}, Mapping{MappingKey{red, caNobody6}, redB.pa, redB.mac, 7}))
	router := []netip.Addr{caNobody, caNobody6}[family]
	gets("a router on the way", unreachable(router, client, toBackend), unreachable(router, client, sent))
	gets("about what the client sent to the backend itself", unreachable(backend, client, s.between(client, 40331, backend, 7951)), unreachable(backend, client, s.between(client, 40331, backend, 7951)))

	// The client's own word about an answer, which it took for the service's.
	_, wire := a.send(redA, redA.frame(unreachable(client, s.VIP, answer)))
	want := unreachable(client, backend, s.between(backend, 7951, client, 40329))
	if len(wire) < 64 || string(wire[64:]) != string(want) {
		t.Errorf("the client's port is closed, %s: sent\n%swant\n%s", name, dump(wire), dump(want))
	}
	before := a.drops()
	a.send(redA, redA.frame(unreachable(client, other, answer)))
	a.must(a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{{ID: 95, Deny: true}}}))
	a.counted("an error to somebody else", before, "none")
	before = a.drops()
	a.send(redA, redA.frame(unreachable(client, other, answer)))
	a.counted("an error to somebody else, where nothing may out", before, "rule_out")
	a.must(a.dp.SetRules(redA.id, nil))
	errorToNeighbour(t, a, family, proto)
}

// errorToNeighbour: a backend on the same host is asked by the flow that it has,
// although the client speaks of the service.
func errorToNeighbour(t *testing.T, a *host, family int, proto uint8) {
	t.Helper()
	client, backend := redA.cas()[family], redA2.cas()[family]
	s := serviceOf(family, proto, Backend{CA: backend, Port: 7952, Weight: 3})
	s.Port = 8454
	a.must(a.dp.SetService(s))
	a.must(a.dp.SetRules(redA2.id, &RuleSet{In: []Rule{{ID: 96, Protocol: proto}}}))
	a.send(redA, redA.frame(s.between(client, 40333, s.VIP, 8454)))
	before := a.drops()
	_, got := a.send(redA, redA.frame(unreachable(client, s.VIP, s.between(s.VIP, 8454, client, 40333))))
	a.counted("an error to a backend beside it", before, "none")
	if want := unreachable(client, backend, s.between(backend, 7952, client, 40333)); string(got[14:]) != string(want) {
		t.Errorf("an error to a backend beside it: got\n%swant\n%s", dump(got[14:]), dump(want))
	}
	a.must(a.dp.SetRules(redA2.id, nil))
}

// between is a packet of the service's protocol.
func (s Service) between(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
	if s.Protocol == protoTCP {
		return tcpOf(src, dst, sport, dport, text(37))
	}
	return udpOf(src, dst, sport, dport, text(37))
}

// A datagram to a service whose backend has closed its port: the client's kernel
// knows the error for its own socket's. However little of it the NIC has left in the
// buffer's head: the quote stands behind more headers than any other packet has.
func TestClosedBackend(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { closedBackend(t, newBed(t, fabric4(1550), uncut)) })
	t.Run("IPv6", func(t *testing.T) { closedBackend(t, newBed(t, fabric6(1570), headless)) })
}

func closedBackend(t *testing.T, b *bed) {
	hosts := []*machine{b.host(0), b.host(1)}
	from, beside, away := b.guest(hosts[0], redA, 1500, 1500, hosts...), b.guest(hosts[0], redA2, 1500, 1500, hosts...), b.guest(hosts[1], redB, 1500, 1500, hosts...)
	for place, to := range map[string]*guest{"same host": beside, "cross host": away} {
		for family := range 2 {
			s := serviceOf(family, protoUDP, Backend{CA: to.cas()[family], Port: 7951, Weight: 3})
			if err := hosts[0].dp.SetService(s); err != nil {
				t.Fatal(err)
			}
			if err := refusedBy(from, netip.AddrPortFrom(s.VIP, s.Port)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s, family %d: %v, want that the connection was refused; drops %v and %v", place, family, err, hosts[0].reasons(), hosts[1].reasons())
			}
		}
	}
}

// refusedBy sends a datagram and returns what the kernel says of it.
func refusedBy(from *guest, to netip.AddrPort) error {
	var c *net.UDPConn
	from.in(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	defer c.Close()
	if _, err := c.Write(text(37)); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 64))
	return err
}
