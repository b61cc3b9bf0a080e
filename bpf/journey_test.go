package bpf

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

// A frame's way from a VM over the wire to a VM on another host: one program's
// output is the next one's input.
func TestJourneyToAnotherHost(t *testing.T) {
	a, b := newWorld(t)
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))

	verdict, wire := a.send(redA, sent)
	if verdict != actRedirect {
		t.Fatalf("from_vm: verdict %d, want a redirect; %v", verdict, a.drops())
	}
	golden(t, "vxlan_ipv4", wire)
	verdict, got := b.receive(wire)
	if verdict != actRedirect {
		t.Fatalf("from_wire: verdict %d, want a redirect; %v", verdict, b.drops())
	}
	golden(t, "delivered_ipv4", got)

	if !bytes.Equal(got[14:], sent[14:]) {
		t.Errorf("the packet changed on its way: got % x, want % x", got[14:], sent[14:])
	}
	for _, c := range []struct {
		h    *host
		m    member
		want Counters
	}{
		{a, redA, Counters{FromPackets: 1, FromBytes: uint64(len(sent))}},
		{b, redB, Counters{ToPackets: 1, ToBytes: uint64(len(sent))}},
		{b, blueB, Counters{}},
	} {
		if n, err := c.h.dp.PortCounters(c.m.id); err != nil || n != c.want {
			t.Errorf("counters of port %d: got %+v, %v, want %+v", c.m.id, n, err, c.want)
		}
	}
}

// Invariant 1: the same CA in two networks is two VMs. Each frame reaches the one
// of its own network, over the wire and on the same host.
func TestNetworksStayApart(t *testing.T) {
	a, b := newWorld(t)
	for _, c := range []struct {
		from, to, other member
	}{
		{redA, redB, blueB},
		{blueA, blueB, redB},
	} {
		_, wire := a.send(c.from, eth(gatewayMAC, c.from.mac, etherIPv4, udp4(c.from.ca, caB, 5353, 7946, text(41))))
		verdict, got := b.receive(wire)
		if verdict != actRedirect || !bytes.Equal(got[:6], c.to.mac[:]) {
			t.Errorf("from port %d: verdict %d to % x, want port %d", c.from.id, verdict, got[:6], c.to.id)
		}
		n, err := b.dp.PortCounters(c.to.id)
		other, _ := b.dp.PortCounters(c.other.id)
		if err != nil || n.ToPackets != 1 {
			t.Errorf("port %d got %d frames, want 1 (port %d: %d)", c.to.id, n.ToPackets, c.other.id, other.ToPackets)
		}
	}
	// The same frame with the other network's VNI on it is refused, not delivered elsewhere.
	forged := tunnel{src: redA.pa, dst: redB.pa, vni: blue}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(41))))
	before := b.drops()
	if verdict, _ := b.receive(forged); verdict != actShot {
		t.Errorf("red's MAC with blue's VNI: verdict %d, want a drop", verdict)
	}
	b.counted("red's MAC with blue's VNI", before, "not_local")
}

func TestJourneyOnOneHost(t *testing.T) {
	a := newA(t)
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caA2, 5353, 7946, text(43)))
	verdict, got := a.send(redA, sent)
	if verdict != actRedirect {
		t.Fatalf("verdict %d, want a redirect; %v", verdict, a.drops())
	}
	golden(t, "delivered_same_host", got)
	if n, err := a.dp.PortCounters(redA2.id); err != nil || n.ToPackets != 1 {
		t.Errorf("port %d got %+v, %v, want 1 packet", redA2.id, n, err)
	}
}

// What the datapath answers itself.
func TestAnswers(t *testing.T) {
	a := newA(t)
	broadcast := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"arp_gateway", eth(broadcast, redA.mac, etherARP, arp(1, redA.mac, caA, [6]byte{}, gateway))},
		{"arp_peer", eth(broadcast, redA.mac, etherARP, arp(1, redA.mac, caA, [6]byte{}, caB))},
		{"ping_gateway", eth(gatewayMAC, redA.mac, etherIPv4, ping4(caA, gateway, 8, text(29)))},
		{"imds_request", eth(gatewayMAC, redA.mac, etherIPv4, tcp4(caA, imds, 40321, 80, text(31)))},
	} {
		verdict, got := a.send(redA, c.frame)
		if verdict != actRedirect {
			t.Errorf("%s: verdict %d, want a redirect; %v", c.name, verdict, a.drops())
			continue
		}
		golden(t, c.name, got)
	}
	_, request := a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, tcp4(caA, imds, 40321, 80, text(31))))
	caller := [4]byte(request[26:30])
	if want := callerOf(23, 0x9c41).As4(); caller != want {
		t.Errorf("caller % x, want % x: class E, port id, epoch", caller, want)
	}
	reply := eth([6]byte{}, imdsMAC, etherIPv4, tcp4(imds, addr4(caller), 80, 40321, text(53)))
	verdict, got, _ := a.run(a.dp.objs.FromHost, skb{Ifindex: 1}, reply)
	if verdict != actRedirect {
		t.Fatalf("imds reply: verdict %d, want a redirect; %v", verdict, a.drops())
	}
	golden(t, "imds_reply", got)
}

// A pooled VM reaches DHCP, its gateway and the metadata service, and is reached
// by nothing (issue 2, "pooled VMs isolated from one another").
func TestPooledVM(t *testing.T) {
	a, b := newWorld(t)
	a.must(a.dp.SetPortFlags(redA.id, Isolated, 0))
	b.must(b.dp.SetPortFlags(redB.id, Isolated, 0))
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"DHCP", eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, gateway, 68, 67, text(251)))},
		{"ARP for the gateway", eth(gatewayMAC, redA.mac, etherARP, arp(1, redA.mac, caA, [6]byte{}, gateway))},
		{"metadata", eth(gatewayMAC, redA.mac, etherIPv4, tcp4(caA, imds, 40321, 80, text(31)))},
	} {
		before := a.drops()
		a.send(redA, c.frame)
		a.counted(c.name, before, "none")
	}
	peer := udp4(caA2, caA, 5353, 7946, text(37))
	before := a.drops()
	a.send(redA2, eth(gatewayMAC, redA2.mac, etherIPv4, peer))
	a.counted("to a pooled VM on the same host", before, "to_isolated")
	_, wire := a.send(redA2, eth(gatewayMAC, redA2.mac, etherIPv4, udp4(caA2, caB, 5353, 7946, text(37))))
	before = b.drops()
	b.receive(wire)
	b.counted("to a pooled VM from the wire", before, "to_isolated")
	b.must(b.dp.SetPortFlags(redB.id, 0, Isolated))
	if verdict, _ := b.receive(wire); verdict != actRedirect {
		t.Errorf("once it isn't pooled any more: verdict %d, want a redirect", verdict)
	}
}

func TestTraps(t *testing.T) {
	a := newA(t)
	traps, err := a.dp.Traps()
	a.must(err)
	defer traps.Close()
	traps.SetDeadline(time.Now().Add(5 * time.Second))
	stale := addr("192.0.2.77") // of a network that the port has left
	for _, c := range []struct {
		name  string
		kind  TrapKind
		frame []byte
	}{
		{"DISCOVER without an address", TrapDHCP, eth([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, redA.mac, etherIPv4,
			udp4(addr("0.0.0.0"), addr("255.255.255.255"), 68, 67, text(251)))},
		{"REQUEST from a stale address", TrapDHCP, eth(gatewayMAC, redA.mac, etherIPv4, udp4(stale, gateway, 68, 67, text(307)))},
		{"ARP reply to the gateway", TrapARPReply, eth(gatewayMAC, redA.mac, etherARP, arp(2, redA.mac, caA, gatewayMAC, gateway))},
	} {
		before := a.drops()
		if verdict, _ := a.send(redA, c.frame); verdict != actShot {
			t.Errorf("%s: verdict %d, want it taken", c.name, verdict)
		}
		a.counted(c.name, before, "none")
		got, err := traps.Read()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got.Port != redA.id || got.Kind != c.kind || got.Epoch != redA.epoch || !bytes.Equal(got.Frame, c.frame) {
			t.Errorf("%s: trapped %+v, want %d bytes of port %d", c.name, got, len(c.frame), redA.id)
		}
	}
}

// Routes: a static one to a peer, an on-link one to another subnet.
func TestRoutes(t *testing.T) {
	a, b := newWorld(t)
	a.must(a.dp.PutRoute(Route{VNI: red, Prefix: pfx("203.0.113.0/24"), NextHop: caB}))
	b.must(b.dp.SetPortFlags(redB.id, Router, 0))
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, addr("203.0.113.79"), 5353, 7946, text(37)))
	verdict, wire := a.send(redA, sent)
	if verdict != actRedirect {
		t.Fatalf("static route: verdict %d; %v", verdict, a.drops())
	}
	if verdict, _ := b.receive(wire); verdict != actRedirect {
		t.Errorf("to the gateway VM: verdict %d; %v", verdict, b.drops())
	}
	// The answer comes from an address that only a route explains: the way back must match.
	b.must(a.dp.PutRoute(Route{VNI: red, Prefix: pfx("203.0.113.0/24"), NextHop: caB}))
	_, wire = b.send(redB, eth(gatewayMAC, redB.mac, etherIPv4, udp4(addr("203.0.113.79"), caA, 7946, 5353, text(37))))
	before := a.drops()
	a.receive(wire)
	a.counted("back from the gateway VM", before, "none")

	other := member{vni: red, mac: redB.mac, pa: redB.pa, ca: addr("10.29.61.47"), epoch: 9}
	a.must(a.dp.PutRoute(Route{VNI: red, Prefix: pfx("10.29.61.0/24")}))
	a.must(a.dp.PutMappings(other.mapping(7)))
	before = a.drops()
	a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, other.ca, 5353, 7946, text(37))))
	a.counted("another subnet, on-link", before, "none")
}

// Congestion and size: RFC 6040 and RFC 1191.
func TestECN(t *testing.T) {
	a, b := newWorld(t)
	inner := func(ecn byte) []byte {
		return eth(gatewayMAC, redA.mac, etherIPv4, ipv4{src: caA, dst: caB, proto: protoUDP, tos: 0xb8 | ecn}.with(udp(caA, caB, 5353, 7946, text(37))))
	}
	_, wire := a.send(redA, inner(2))
	if got := wire[15]; got != 2 {
		t.Errorf("outer TOS %#x, want ECT(0) and no DSCP", got)
	}
	wire[15] = 3 // a router on the way was congested
	sumTo(wire[14:34])
	_, got := b.receive(wire)
	golden(t, "delivered_congested", got)
	if sum(got[14:34]) != 0xffff {
		t.Errorf("inner header checksum is wrong: % x", got[14:34])
	}
	mergedECN(t, b)
}

// mergedECN: every pair of outer and inner marks makes what RFC 6040, 4.2, figure 4 says.
func mergedECN(t *testing.T, b *host) {
	t.Helper()
	const dropped = 9
	for inner, row := range [4][4]byte{ // by the outer mark: Not-ECT, ECT(1), ECT(0), CE
		{0, 0, 0, dropped},
		{1, 1, 1, 3},
		{2, 1, 2, 3},
		{3, 3, 3, 3},
	} {
		for outer, want := range row {
			for family := range 2 {
				v, got := b.receive(tunnel{src: redA.pa, dst: redB.pa, vni: red, ip: ipv4{tos: byte(outer)}}.with(redA.inner(redB, withECN(family, byte(inner)))))
				switch {
				case want == dropped:
					if v != actShot {
						t.Errorf("IPv%d: outer %d over inner %d: verdict %d", 4+2*family, outer, inner, int32(v))
					}
				case !bytes.Equal(got[14:], withECN(family, want)):
					t.Errorf("IPv%d: outer %d over inner %d: got\n%swant\n%s", 4+2*family, outer, inner, dump(got[14:]), dump(withECN(family, want)))
				}
			}
		}
	}
}

func withECN(family int, ecn byte) []byte {
	body := udp(redA.cas()[family], redB.cas()[family], 5353, 7946, text(37))
	if family == 0 {
		return ipv4{src: caA, dst: caB, proto: protoUDP, tos: 0xb8 | ecn}.with(body)
	}
	return ipv6{src: caA6, dst: caB6, next: protoUDP, tos: 0xb8 | ecn}.with(body)
}

func TestTooBig(t *testing.T) {
	a := newA(t)
	big := func(to int) []byte {
		return eth(gatewayMAC, redA.mac, etherIPv4, ipv4{src: caA, dst: caB, proto: protoUDP, frag: 0x4000}.with(udp(caA, caB, 5353, 7946, text(to-28))))
	}
	before := a.drops()
	verdict, _ := a.send(redA, big(1500))
	a.counted("as large as it may be", before, "none")
	if verdict != actRedirect {
		t.Fatalf("1500 bytes: verdict %d", verdict)
	}
	before = a.drops()
	verdict, told := a.send(redA, big(1501))
	a.counted("one byte more", before, "too_big")
	if verdict != actRedirect {
		t.Fatalf("1501 bytes: verdict %d, want the ICMP answer", verdict)
	}
	golden(t, "icmp_too_big", told)
	if sum(told[34:]) != 0xffff {
		t.Errorf("ICMP checksum is wrong")
	}
	// The underlay may take less than the port's network hands out.
	narrow := newHost(t, "n", hostB, prefixB, func(o *Options) { o.UnderlayMTU = 1549 })
	narrow.addPorts(redA)
	narrow.must(narrow.dp.PutMappings(Mapping{MappingKey{red, caB}, redA2.pa, redB.mac, 7}))
	before = narrow.drops()
	_, told = narrow.send(redA, big(1500))
	narrow.counted("1500 bytes over an underlay of 1549", before, "too_big")
	if mtu := binary.BigEndian.Uint16(told[40:]); mtu != 1499 {
		t.Errorf("told an MTU of %d, want 1499", mtu)
	}
	// A GSO frame is as large as its segments.
	gso := func(size uint32, frame []byte) string {
		before := a.drops()
		a.run(a.dp.objs.FromVm, skb{Ifindex: uint32(a.taps[redA.id]), GSOSize: size, GSOSegs: 3}, frame)
		for r, n := range a.drops() {
			if n != before[r] {
				return r
			}
		}
		return "nothing"
	}
	super := eth(gatewayMAC, redA.mac, etherIPv4, tcp4(caA, caB, 5353, 7946, text(3400)))
	// A test run can't say what kind of GSO it is, so the kernel won't grow the frame.
	if got := gso(1460, super); got != "no_room" {
		t.Errorf("segments of 1500 bytes: %s, want no_room", got)
	}
	if got := gso(1461, super); got != "too_big" {
		t.Errorf("segments of 1501 bytes: %s, want too_big", got)
	}
}
