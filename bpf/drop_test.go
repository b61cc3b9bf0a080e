package bpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// covered collects the reasons that a case of this file has asserted.
type covered map[string]bool

// Every reason is asserted to count exactly once, and nothing else with it; and
// after each refused frame one that should arrive does. What needs a real device
// or a clock has its own test, named here.
func TestEveryDropReason(t *testing.T) {
	seen := covered{
		"vlan":    true, // also TestVLANEscape: a tag that the kernel took out of the frame
		"changed": true, // TestOverRealDevices: needs tunnel metadata
		"no_room": true, // TestTooBig
		"too_big": true, // TestTooBig
		"none":    true,
	}
	dropsFromVM(t, seen)
	dropsFromWire(t, seen)
	dropsToPort(t, seen)
	dropsFromHost(t, seen)
	dropsOfBuckets(t, seen)
	a, b := newWorld(t)
	dropsOfPackets(t, seen, a, b)
	dropsOfLinks(t, seen, a, b)
	dropsOfPolicy(t, seen, a, b)
	for r := DropReason(0); r < DropReason(datapathDropReasonDROP_MAX); r++ {
		if !seen[r.String()] {
			t.Errorf("no case for %s", r)
		}
	}
}

func dropsFromVM(t *testing.T, seen covered) {
	a := newA(t)
	everyone, group := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, [6]byte{0x01, 0x00, 0x5e, 0x17, 0x28, 0x39}
	payload := text(37)
	good := udp4(caA, caB, 5353, 7946, payload)
	from := func(packet []byte) []byte { return eth(gatewayMAC, redA.mac, etherIPv4, packet) }
	arpFrom := func(p []byte) []byte { return eth(everyone, redA.mac, etherARP, p) }
	header := func(h ipv4) []byte {
		h.src, h.dst, h.proto = caA, caB, protoUDP
		return from(h.with(udp(caA, caB, 5353, 7946, payload)))
	}
	wrongHardware := arp(1, redA.mac, caA, [6]byte{}, gateway)
	wrongHardware[1] = 6

	for _, c := range []struct {
		name, reason string
		frame        []byte
	}{
		{"VLAN tag in the frame", "vlan", tagged(good, etherVLAN)},
		{"service VLAN tag", "vlan", tagged(good, etherQinQ)},
		{"QinQ", "vlan", tagged(good, etherQinQ, etherVLAN)},
		{"another VM's MAC", "spoofed_mac", eth(gatewayMAC, redA2.mac, etherIPv4, good)},
		{"LLDP", "not_ip", eth(gatewayMAC, redA.mac, 0x88cc, good)},
		{"IPv4 in an IPv6 frame", "bad_ip", eth(gatewayMAC, redA.mac, 0x86dd, good)},
		{"IP options cut off", "bad_ip", from(ipv4{src: caA, dst: caB, proto: protoUDP, vihl: 0x4f, total: 60}.with(nil))[:34]},
		{"IP version 6 in an IPv4 frame", "bad_ip", header(ipv4{vihl: 0x65})},
		{"IP header of 16 bytes", "bad_ip", header(ipv4{vihl: 0x44})},
		{"longer than the frame", "bad_ip", header(ipv4{total: 66})},
		{"shorter than its header", "bad_ip", header(ipv4{total: 19})},
		{"ARP cut off", "truncated", arpFrom(arp(1, redA.mac, caA, [6]byte{}, gateway)[:27])},
		{"ARP for another hardware", "bad_arp", arpFrom(wrongHardware)},
		{"reverse ARP", "bad_arp", arpFrom(arp(3, redA.mac, caA, [6]byte{}, gateway))},
		{"ARP in another VM's MAC", "spoofed_arp", arpFrom(arp(1, redA2.mac, caA, [6]byte{}, gateway))},
		{"ARP in another VM's CA", "spoofed_arp", arpFrom(arp(1, redA.mac, caA2, [6]byte{}, gateway))},
		{"ARP reply in another VM's CA", "spoofed_arp", arpFrom(arp(2, redA.mac, caA2, gatewayMAC, gateway))},
		{"ARP probe for its own CA", "arp_probe", arpFrom(arp(1, redA.mac, addr("0.0.0.0"), [6]byte{}, caA))},
		{"ARP announcement", "arp_own", arpFrom(arp(1, redA.mac, caA, [6]byte{}, caA))},
		{"ARP outside the subnet", "arp_stranger", arpFrom(arp(1, redA.mac, caA, [6]byte{}, addr("10.17.35.86")))},
		{"ARP reply to a peer", "arp_unasked", arpFrom(arp(2, redA.mac, caA, redA2.mac, caA2))},
		{"DHCP larger than a trap", "trap_size", from(udp4(caA, gateway, 68, 67, text(1600)))},
		{"metadata in a stale CA", "imds_source", from(tcp4(caA2, imds, 40321, 80, payload))},
		{"metadata at another port", "imds_other", from(tcp4(caA, imds, 40321, 8080, payload))},
		{"metadata over UDP", "imds_other", from(udp4(caA, imds, 40321, 80, payload))},
		{"another link-local address", "imds_other", from(tcp4(caA, addr("169.254.17.23"), 40321, 80, payload))},
		{"metadata without a TCP header", "bad_l4", from(ipv4{src: caA, dst: imds, proto: protoTCP}.with([]byte{7, 9}))},
		{"metadata with half a TCP header", "bad_l4", from(tcp4(caA, imds, 40321, 80, nil)[:20+16])[:50]},
		{"metadata as itself", "imds_source", from(tcp4(imds, imds, 40321, 80, payload))},
		{"metadata as its callers", "imds_source", from(tcp4(callerOf(redA.id, redA.epoch), imds, 40321, 80, payload))},
		{"metadata over IPv6 as itself", "imds_source", redA.frame(tcpOf(addr("fd00:ec2::254"), addr("fd00:ec2::254"), 40321, 80, payload))},
		{"a metadata reply to a peer", "spoofed_ca", from(tcp4(imds, caB, 80, 40321, payload))},
		{"a wire server's reply to a peer", "spoofed_ca", from(tcp4(addr("168.63.129.16"), caB, 80, 40321, payload))},
		{"a metadata reply to a peer over IPv6", "spoofed_ca", redA.frame(tcpOf(addr("fd00:ec2::254"), caB6, 80, 40321, payload))},
		{"a metadata reply to its own caller", "spoofed_ca", from(tcp4(imds, callerOf(redA.id, redA.epoch), 80, 40321, payload))},
		{"to another VM as the metadata service knows it", "no_route", from(tcp4(caA, callerOf(redA2.id, redA2.epoch), 40321, 80, payload))},
		{"to another VM as it is known over IPv6", "no_route", redA.frame(tcpOf(caA6, callerOf6(redA2.id, redA2.epoch), 40321, 80, payload))},
		{"another VM's CA", "spoofed_ca", from(udp4(caA2, caB, 5353, 7946, payload))},
		{"no CA at all", "spoofed_ca", from(udp4(addr("0.0.0.0"), caB, 5353, 7946, payload))},
		{"broadcast", "broadcast", eth(everyone, redA.mac, etherIPv4, udp4(caA, addr("255.255.255.255"), 5353, 7946, payload))},
		{"subnet broadcast", "broadcast", from(udp4(caA, addr("10.17.34.255"), 5353, 7946, payload))},
		{"unicast in a broadcast frame", "broadcast", eth(everyone, redA.mac, etherIPv4, good)},
		{"multicast", "multicast", eth(group, redA.mac, etherIPv4, udp4(caA, addr("224.0.0.251"), 5353, 7946, payload))},
		{"unicast in a multicast frame", "multicast", eth(group, redA.mac, etherIPv4, good)},
		{"DNS to the gateway", "to_gateway", from(udp4(caA, gateway, 5353, 53, payload))},
		{"fragment of a ping to the gateway", "to_gateway", from(ipv4{src: caA, dst: gateway, proto: protoICMP, frag: 0x2000}.with(text(64)))},
		{"outside the subnet", "no_route", from(udp4(caA, addr("203.0.113.79"), 5353, 7946, payload))},
		{"VXLAN in its PA, as a host sends it", "spoofed_ca", from(tunnel{src: redA.pa, dst: redB.pa, vni: blue}.with(from(good))[14:])},
		{"VXLAN to a port's PA", "no_route", from(tunnel{src: caA, dst: redB.pa, vni: blue}.with(from(good))[14:])},
		{"VXLAN to a host", "no_route", from(tunnel{src: caA, dst: hostB, vni: blue}.with(from(good))[14:])},
		{"an address that nobody has", "no_mapping", from(udp4(caA, caNobody, 5353, 7946, payload))},
	} {
		if c.name == "metadata with half a TCP header" {
			binary.BigEndian.PutUint16(c.frame[16:], 36)
			sumTo(c.frame[14:34])
		}
		seen.refused(a, c.name, c.reason, func() uint32 { v, _ := a.send(redA, c.frame); return v })
		before := a.drops()
		if v, _ := a.send(redA, from(good)); v != actRedirect {
			t.Errorf("after %s: a good frame gets verdict %d", c.name, v)
		}
		a.counted("a good frame after "+c.name, before, "none")
	}
	a.must(a.dp.SetPortFlags(redA.id, Isolated, 0))
	seen.refused(a, "a pooled VM to a peer", "isolated", func() uint32 { v, _ := a.send(redA, from(good)); return v })
	seen.refused(a, "a pooled VM asks for a peer's MAC", "arp_stranger", func() uint32 {
		v, _ := a.send(redA, arpFrom(arp(1, redA.mac, caA, [6]byte{}, caB)))
		return v
	})
	a.must(a.dp.SetPortFlags(redA.id, 0, Open))
	seen.refused(a, "closed", "closed", func() uint32 { v, _ := a.send(redA, from(good)); return v })
	a.must(a.dp.DeletePort(redA.id))
	seen.refused(a, "deleted", "no_port", func() uint32 { v, _ := a.send(redA, from(good)); return v })
}

// An outside is what host B's underlay has beside it, and around what comes from it.
type outside struct {
	name     string
	of       func(member) member
	stranger netip.Addr // no host's address
	self     netip.Addr
}

func dropsFromWire(t *testing.T, seen covered) {
	dropsFromUnderlay(t, seen, newB(t), outside{"IPv4", over4, addr("198.51.100.27"), hostB})
	dropsFromUnderlay(t, seen, newB6(t), outside{"IPv6", member.over6, addr("2001:db8:7e5d:4c3b:91a2:83f4:6d75:c827"), hostB6})
}

func dropsFromUnderlay(t *testing.T, seen covered, b *host, out outside) {
	payload := text(37)
	inner := func(src, dst string) []byte {
		return eth(redB.mac, redA.mac, etherIPv4, udp4(addr(src), addr(dst), 5353, 7946, payload))
	}
	good := inner("10.17.34.51", "10.17.34.86")
	right := tunnel{src: out.of(redA).pa, dst: out.of(redB).pa, vni: red}
	change := func(f func(*tunnel)) []byte { u := right; f(&u); return u.with(good) }
	packet := func(h ipv4) []byte {
		h.src, h.dst, h.proto = caA, caB, protoUDP
		return right.with(eth(redB.mac, redA.mac, etherIPv4, h.with(udp(caA, caB, 5353, 7946, payload))))
	}
	type row struct {
		name, reason string
		frame        []byte
	}
	rows := []row{
		{"outer length past the frame", "outer_bad", change(func(u *tunnel) { u.ip.total = 116 })},
		{"outer lengths past the frame", "outer_bad", change(func(u *tunnel) { u.ip.total, u.udpLen = 116, 96 })},
		{"UDP length too short", "outer_bad", change(func(u *tunnel) { u.udpLen = 94 })},
		{"no room for an inner frame", "outer_bad", right.with(good[:13])},
		{"first fragment", "outer_fragment", change(func(u *tunnel) { u.ip.frag = 0x2000 })},
		{"later fragment", "outer_fragment", change(func(u *tunnel) { u.ip.frag = 0x0017 })},
		{"no VNI flag", "vxlan_flags", change(func(u *tunnel) { u.flags = 0x04000000 })},
		{"reserved bits", "vxlan_flags", change(func(u *tunnel) { u.flags = 0x08000500 })},
		{"inner ARP", "inner_not_ip", right.with(eth(redB.mac, redA.mac, etherARP, arp(1, redA.mac, caA, [6]byte{}, caB)))},
		{"inner VLAN tag", "inner_not_ip", right.with(eth(redB.mac, redA.mac, etherVLAN, append([]byte{0, 7, 8, 0}, good[14:]...)))},
		{"inner header cut off", "inner_truncated", right.with(good[:33])},
		{"inner version 7", "inner_bad_ip", packet(ipv4{vihl: 0x75})},
		{"inner length past the frame", "inner_bad_ip", packet(ipv4{total: 66})},
		{"another network", "not_local", change(func(u *tunnel) { u.vni = blue })},
		{"another MAC", "not_local", right.with(eth(redA2.mac, redA.mac, etherIPv4, good[14:]))},
		{"another port's PA", "wrong_pa", change(func(u *tunnel) { u.dst = out.of(blueB).pa })},
		{"another CA", "wrong_ca", right.with(inner("10.17.34.51", "10.17.34.119"))},
		{"to the metadata service", "wrong_ca", right.with(inner("10.17.34.51", "169.254.169.254"))},
		{"to the wire server", "wrong_ca", right.with(inner("10.17.34.51", "168.63.129.16"))},
		{"to the metadata service over IPv6", "wrong_ca", right.with(redA.inner(redB, udpOf(caA6, addr("fd00:ec2::254"), 5353, 80, payload)))},
		{"to the port as the metadata service knows it", "wrong_ca", right.with(redA.inner(redB, udp4(caA, callerOf(redB.id, redB.epoch), 80, 40321, payload)))},
		{"to the port as it is known over IPv6", "wrong_ca", right.with(redA.inner(redB, udpOf(caA6, callerOf6(redB.id, redB.epoch), 80, 40321, payload)))},
		{"from another PA than its mapping's", "wrong_source", change(func(u *tunnel) { u.src = out.of(redA2).pa })},
		{"unknown CA from nowhere", "unknown_source", tunnel{src: out.stranger, dst: right.dst, vni: red}.with(inner("10.17.34.119", "10.17.34.86"))},
		{"congestion on a packet that isn't ECN-capable", "ecn", change(func(u *tunnel) { u.ip.tos = 3 })},
	}
	if right.src.Is4() { // options of IPv6 are another protocol's header: not ours
		rows = append(rows, row{"outer IP options", "outer_bad", change(func(u *tunnel) { u.ip.options = []byte{7, 3, 4, 0} })})
	}
	for _, c := range rows {
		name := c.name + ", over " + out.name
		seen.refused(b, name, c.reason, func() uint32 { v, _ := b.receive(c.frame); return v })
		before := b.drops()
		if v, _ := b.receive(right.with(good)); v != actRedirect {
			t.Errorf("after %s: a good frame gets verdict %d", name, v)
		}
		b.counted("a good frame after "+name, before, "none")
	}
	notOurs(t, b, out, right, good)
	seen.refused(b, "up the VXLAN device without a mark, over "+out.name, "unmarked", func() uint32 {
		v, _, _ := b.run(b.dp.objs.FromVxlan, skb{Ifindex: 1}, good)
		return v
	})
	seen.refused(b, "a mark, but no tunnel, over "+out.name, "unmarked", func() uint32 {
		v, _, _ := b.run(b.dp.objs.FromVxlan, skb{Ifindex: 1, Mark: 0x5eb70000 | uint32(redB.id)}, good)
		return v
	})
}

// notOurs: what isn't VXLAN for this host goes on as if nothing were there, uncounted.
func notOurs(t *testing.T, b *host, out outside, right tunnel, good []byte) {
	t.Helper()
	others := map[string]tunnel{
		"another UDP port":        {src: right.src, dst: right.dst, vni: red, dport: 4790},
		"another host's PA":       {src: right.src, dst: out.of(redA).pa, vni: red},
		"a fragment for the host": {src: right.src, dst: out.self, vni: red, ip: ipv4{frag: 0x0017}},
	}
	if right.src.Is4() {
		others["a header of 12 bytes"] = tunnel{src: right.src, dst: right.dst, vni: red, ip: ipv4{vihl: 0x43}}
	} else {
		others["options that look like ports"] = tunnel{src: right.src, dst: right.dst, vni: red, ip: ipv4{options: []byte{protoUDP, 0, 4789 >> 8, 4789 & 0xff, 0, 0, 0, 0}}}
	}
	for name, u := range others {
		before := b.drops()
		v, _ := b.receive(u.with(good))
		after := b.drops()
		if v != actNext || len(after) != len(before) || after["none"] != before["none"] {
			t.Errorf("%s, over %s: verdict %d, counted %v before and %v after", name, out.name, int32(v), before, after)
		}
	}
}

// The target's own checks, for a frame from the same host and one from the wire.
func dropsToPort(t *testing.T, seen covered) {
	a, b := newWorld(t)
	local := func() uint32 {
		v, _ := a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caA2, 5353, 7946, text(1200))))
		return v
	}
	wire := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(1200))))
	remote := func() uint32 { v, _ := b.receive(wire); return v }
	for _, side := range []struct {
		name string
		h    *host
		to   member
		try  func() uint32
	}{
		{"same host", a, redA2, local},
		{"from the wire", b, redB, remote},
	} {
		h, try := side.h, side.try
		if v := try(); v != actRedirect {
			t.Fatalf("%s: verdict %d before anything is wrong; %v", side.name, v, h.drops())
		}
		h.must(h.dp.SetPortFlags(side.to.id, 0, Open))
		seen.refused(h, side.name, "to_closed", try)
		h.must(h.dp.SetPortFlags(side.to.id, Open|Isolated, 0))
		seen.refused(h, side.name, "to_isolated", try)
		h.must(h.dp.SetPortFlags(side.to.id, 0, Isolated))
		small := side.to.port(h.taps[side.to.id])
		small.MTU = 1227
		h.must(h.dp.SetPort(side.to.id, small))
		seen.refused(h, side.name, "to_too_big", try)
		small.MTU = 1228
		h.must(h.dp.SetPort(side.to.id, small))
		if v := try(); v != actRedirect {
			t.Errorf("%s: verdict %d with the smallest MTU that fits", side.name, v)
		}
		moved := small
		moved.CAs = []netip.Prefix{netip.PrefixFrom(caNobody, 24)}
		h.must(h.dp.SetPort(side.to.id, moved))
		seen.refused(h, side.name, "wrong_ca", try)
		moved.VNI = blue
		h.must(h.dp.SetPort(side.to.id, moved))
		seen.refused(h, side.name, "not_local", try)
	}
}

func dropsFromHost(t *testing.T, seen covered) {
	a := newA(t)
	caller := callerOf(redA.id, redA.epoch)
	reply := func(packet []byte) func() uint32 {
		return func() uint32 {
			v, _, _ := a.run(a.dp.objs.FromHost, skb{Ifindex: 1}, eth([6]byte{}, imdsMAC, etherIPv4, packet))
			return v
		}
	}
	good := reply(tcp4(imds, caller, 80, 40321, text(53)))
	for _, c := range []struct {
		name, reason string
		try          func() uint32
	}{
		{"from another address", "not_metadata", reply(tcp4(addr("169.254.17.23"), caller, 80, 40321, text(53)))},
		{"from another port", "not_metadata", reply(tcp4(imds, caller, 8080, 40321, text(53)))},
		{"over UDP", "not_metadata", reply(udp4(imds, caller, 80, 40321, text(53)))},
		{"to an address of ours", "not_metadata", reply(tcp4(imds, hostA, 80, 40321, text(53)))},
		{"of the last epoch", "stale_epoch", reply(tcp4(imds, callerOf(redA.id, redA.epoch-1), 80, 40321, text(53)))},
		{"to a port that isn't there", "stale_epoch", reply(tcp4(imds, callerOf(99, redA.epoch), 80, 40321, text(53)))},
		{"larger than the guest's MTU", "to_too_big", reply(tcp4(imds, caller, 80, 40321, text(1461)))},
	} {
		seen.refused(a, "metadata reply "+c.name, c.reason, c.try)
		if v := good(); v != actRedirect {
			t.Errorf("after %s: a good reply gets verdict %d", c.name, v)
		}
	}
	a.must(a.dp.SetPortFlags(redA.id, 0, Open))
	seen.refused(a, "metadata reply to a closed port", "to_closed", good)
}

// Token buckets and the ring, filled to the brim.
func dropsOfBuckets(t *testing.T, seen covered) {
	isolate(t)
	b := newHost(t, "b", hostB, prefixB, func(o *Options) { o.TrapRate, o.UnresolvedRate = 3, 2 })
	b.addPorts(redB, blueB)
	b.must(b.dp.PutHost(prefixA))
	dhcp := eth(gatewayMAC, redB.mac, etherIPv4, udp4(caB, gateway, 68, 67, text(251)))
	for range 4 { // the burst, and the one that is due now
		before := b.drops()
		b.send(redB, dhcp)
		b.counted("DHCP within the rate", before, "none")
	}
	b.drain(redB.id, bucketTrap)
	seen.refused(b, "DHCP above the rate", "trap_rate", func() uint32 { v, _ := b.send(redB, dhcp); return v })

	unresolved := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	for range 3 {
		before := b.drops()
		b.receive(unresolved)
		b.counted("a source without a mapping", before, "none")
	}
	b.drain(redB.id, bucketUnresolved)
	seen.refused(b, "too many from sources without a mapping", "unresolved_rate", func() uint32 { v, _ := b.receive(unresolved); return v })
	if n, err := b.dp.PortCounters(redB.id); err != nil || n.Unresolved != 3 || n.Drops != 2 {
		t.Errorf("counters %+v, %v, want 3 unresolved, 2 drops", n, err)
	}
	answerRate(b, seen)
	fillRing(t, seen)
}

// answerRate: ARP, neighbour discovery and pings of both families share one bucket.
func answerRate(b *host, seen covered) {
	gateways := redB.gateways()
	asks := []func() uint32{}
	for _, frame := range [][]byte{
		eth(gatewayMAC, redB.mac, etherARP, arp(1, redB.mac, caB, [6]byte{}, gateway)),
		redB.frame(solicit(caB6, solicitedNode(caA6), caA6, redB.mac)),
		redB.frame(ping(caB, gateways[0], text(29))),
		redB.frame(ping(caB6, gateways[1], text(29))),
		redB.frame(solicit(caB6, gateways[1], gateways[1], redB.mac)),
	} {
		asks = append(asks, func() uint32 { v, _ := b.send(redB, frame); return v })
	}
	for i, ask := range asks {
		before := b.drops()
		ask()
		b.counted(fmt.Sprintf("answer %d within the rate", i), before, "none")
	}
	b.drain(redB.id, bucketAnswer)
	for i, ask := range asks {
		seen.refused(b, fmt.Sprintf("answer %d above the rate", i), "answer_rate", ask)
	}
	b.must(b.resetBuckets(redB.id))
	before := b.drops()
	asks[0]()
	b.counted("an answer later", before, "none")
}

func fillRing(t *testing.T, seen covered) {
	isolate(t)
	b := newHost(t, "b", hostB, prefixB, func(o *Options) { o.TrapRate = 1_000_000 })
	b.addPorts(redB)
	dhcp := eth(gatewayMAC, redB.mac, etherIPv4, udp4(caB, gateway, 68, 67, text(251)))
	for range 1 << 20 {
		before := b.drops()
		b.send(redB, dhcp)
		if b.drops()["none"] == before["none"] {
			b.counted("ring full", before, "trap_full")
			seen["trap_full"] = true
			return
		}
	}
	t.Error("the trap ring never filled")
}

// refused fails unless try drops its frame and exactly reason counts it.
func (c covered) refused(h *host, name, reason string, try func() uint32) {
	h.t.Helper()
	c[reason] = true
	before := h.drops()
	if v := try(); v != actShot {
		h.t.Errorf("%s: verdict %d, want a drop for %s", name, int32(v), reason)
	}
	h.counted(name, before, reason)
}

// A frame for another machine, seen because the uplink is promiscuous, is its business.
func TestPromiscuousUplink(t *testing.T) {
	b := newB(t)
	b.must(netlink.LinkSetHardwareAddr(b.uplink, net.HardwareAddr{0x06, 0x77, 0x66, 0x55, 0x44, 0x33}))
	frame := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	if v, _ := b.receive(frame); v != actNext || len(b.drops()) != 0 {
		t.Errorf("verdict %d, counted %v, want it left alone", int32(v), b.drops())
	}
}
