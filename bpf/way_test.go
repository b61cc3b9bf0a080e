package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
)

// A flow remembers its way until the directory changes: then the next packet
// goes the new one, and one from where its source was before is refused.
func TestWayFollowsTheDirectory(t *testing.T) {
	a, b := newWorld(t)
	waysOfServices(t, a)
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))
	to := func() string { // the outer destination's last byte says which PA
		_, wire := a.send(redA, sent)
		return addr4([4]byte(wire[30:34])).String()
	}
	for range 2 {
		if got := to(); got != redB.pa.String() {
			t.Fatalf("sent to %s, want %s", got, redB.pa)
		}
	}
	moved := redB.mapping(7)
	moved.PA = blueB.pa
	a.must(a.dp.PutMappings(moved))
	if got := to(); got != blueB.pa.String() {
		t.Errorf("after the peer has moved: sent to %s, want %s", got, blueB.pa)
	}
	a.must(a.dp.DeleteMappings(moved.MappingKey))
	before := a.drops()
	a.send(redA, sent)
	a.counted("after the peer has gone", before, "no_mapping")

	wire := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	for range 2 {
		before = b.drops()
		b.receive(wire)
		b.counted("from where its source is", before, "none")
	}
	moved = redA.mapping(7)
	moved.PA = redA2.pa
	b.must(b.dp.PutMappings(moved))
	before = b.drops()
	b.receive(wire)
	b.counted("from where its source was", before, "wrong_source")
}

// oneThatDoesNotFit: the rows beside it are written, wherever it stands among them, and
// flows that remember the old way of one of them look for the new one. The host's three
// rows are taken.
func oneThatDoesNotFit(t *testing.T, h *host) {
	h.addPorts(redA)
	h.must(h.dp.SetNextHop(5, NextHop{Ifindex: h.uplink.Attrs().Index, Dst: routerMAC, Src: [6]byte(h.uplink.Attrs().HardwareAddr)}))
	h.must(h.dp.SetNextHop(7, NextHop{Ifindex: h.uplink.Attrs().Index, Dst: routerMAC, Src: [6]byte(h.uplink.Attrs().HardwareAddr)}))
	sent := redA.frame(udpOf(caA, caB, 5353, 7946, text(37)))
	sendsTo := func(name string, want netip.Addr) {
		t.Helper()
		if v, wire := h.send(redA, sent); v != actRedirect || addr4([4]byte(wire[30:34])) != want {
			t.Errorf("%s: verdict %d, want a frame to %s; got\n%s", name, int32(v), want, dump(wire))
		}
	}
	sendsTo("before", redB.pa)
	moved := redB.mapping(7)
	for i, at := range []netip.Addr{blueB.pa, redB.pa, blueB.pa} {
		moved.PA = at
		batch := slices.Insert([]Mapping{redA.mapping(7), moved}, i, blueA.mapping(7))
		want := NotPut{{blue, caA}: ErrFull}
		if i == 2 {
			batch, want[MappingKey{red, caNobody}] = append(batch, Mapping{MappingKey: MappingKey{red, caNobody}}), ErrAddress
		}
		var got NotPut
		if err := h.dp.PutMappings(batch...); !errors.As(err, &got) || !maps.EqualFunc(got, want, errors.Is) {
			t.Errorf("the new one as row %d: got %v, want %v", i, err, want)
		}
		sendsTo(fmt.Sprintf("the new one as row %d", i), at)
	}
}

// A flow to a service knows the way to its backend. What comes from the service's own
// address is none of its answers: it must come by the way that leads to that address,
// and the flow still goes to the backend.
func waysOfServices(t *testing.T, a *host) {
	for _, c := range []struct {
		vip              string
		route            string
		behind, backend  member
		reason, whenFrom string
	}{
		{"203.0.113.9", "203.0.113.0/24", redB, redA2, "none", "from where the service's address is"},
		{"203.0.113.77", "203.0.113.64/27", redA2, redB, "wrong_source", "from where the backend is"},
	} {
		vip := addr(c.vip)
		a.must(a.dp.PutRoute(Route{VNI: red, Prefix: pfx(c.route), NextHop: c.behind.ca}))
		a.must(a.dp.SetService(Service{ServiceKey: ServiceKey{VNI: red, VIP: vip, Port: 8453, Protocol: protoUDP}, Backends: []Backend{{CA: c.backend.ca, Port: 7951, Weight: 3}}}))
		sent := redA.frame(udpOf(caA, vip, 5353, 8453, text(37)))
		_, want := a.send(redA, sent)
		before := a.drops()
		a.receive(tunnel{src: redB.pa, dst: redA.pa, vni: red}.with(redB.inner(redA, udpOf(vip, caA, 8453, 5353, text(37)))))
		a.counted("by the service's address, "+c.whenFrom, before, c.reason)
		if v, out := a.send(redA, sent); v != actRedirect || !bytes.Equal(out, want) {
			t.Errorf("%s: goes on with verdict %d as\n%swant it as before\n%s", c.whenFrom, int32(v), dump(out), dump(want))
		}
	}
}
