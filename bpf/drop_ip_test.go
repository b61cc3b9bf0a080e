package bpf

import (
	"fmt"
	"net/netip"
	"testing"
)

// A pair is who speaks to whom, in one family.
type pair struct {
	name       string
	src, dst   netip.Addr
	icmp, echo byte // protocol and type
}

func pairs(from, to member) [2]pair {
	return [2]pair{
		{"IPv4", from.ca, to.ca, protoICMP, 8},
		{"IPv6", from.ca6, to.ca6, protoICMPv6, 128},
	}
}

// What is wrong with a packet itself, whoever sees it: the VM's host and the
// receiver's, which believes the other no more than a guest.
func dropsOfPackets(t *testing.T, seen covered, a, b *host) {
	for _, way := range []struct {
		name  string
		h     *host
		try   func(packet []byte) uint32
		pairs [2]pair
	}{
		{"from the VM", a, func(p []byte) uint32 { v, _ := a.send(redA, redA.frame(p)); return v }, pairs(redA, redB)},
		{"from the wire", b, func(p []byte) uint32 { v, _ := b.receive(redA.wire(redB, p)); return v }, pairs(redA, redB)},
	} {
		for _, f := range way.pairs {
			good := udpOf(f.src, f.dst, 5353, 7946, text(37))
			for _, c := range badPackets(f) {
				name := fmt.Sprintf("%s, %s, %s", c.name, f.name, way.name)
				seen.refused(way.h, name, reasonAt(way.name, c.reason), func() uint32 { return way.try(c.packet) })
				before := way.h.drops()
				if v := way.try(good); v != actRedirect {
					t.Errorf("after %s: a good packet gets verdict %d", name, int32(v))
				}
				way.h.counted("a good packet after "+name, before, "none")
			}
			fragments(t, seen, way.h, way.name, f, way.try)
		}
	}
}

type badPacket struct {
	name, reason string
	packet       []byte
}

// badPackets are those whose headers behind the first one are wrong.
func badPackets(f pair) []badPacket {
	of := func(proto byte, l4 []byte) []byte { return packet(f.src, f.dst, proto, l4) }
	datagram := udp(f.src, f.dst, 5353, 7946, text(37))
	lying := func(n int) []byte {
		b := append([]byte(nil), datagram...)
		b[4], b[5] = byte(n>>8), byte(n)
		return b
	}
	seg := func(words byte) []byte {
		b := segment{sport: 5353, dport: 7946, flags: flagACK, payload: text(37)}.bytes(f.src, f.dst)
		b[12] = words << 4
		return b
	}
	other := byte(protoICMP)
	if f.icmp == protoICMP {
		other = protoICMPv6
	}
	all := []badPacket{
		{"UDP header cut off", "bad_l4", of(protoUDP, datagram[:7])},
		{"UDP length less than its header", "bad_l4", of(protoUDP, lying(7))},
		{"UDP length past the packet", "bad_l4", of(protoUDP, lying(46))},
		{"TCP header cut off", "bad_l4", of(protoTCP, seg(5)[:19])},
		{"TCP header of 16 bytes", "bad_l4", of(protoTCP, seg(4))},
		{"TCP options past the packet", "bad_l4", of(protoTCP, seg(15)[:59])},
		{"echo cut off", "bad_l4", of(f.icmp, []byte{f.echo, 0, 0x3a, 0x5b, 0x4e, 0x83, 0x29})},
		{"SCTP header cut off", "bad_l4", of(protoSCTP, text(11))},
		{"the other family's ICMP", "bad_l4", of(other, text(37))},
		{"tiny first fragment of UDP", "fragment_tiny", fragment(f.src, f.dst, protoUDP, 0x3b6d, 0, true, datagram[:7])},
		{"tiny first fragment of TCP", "fragment_tiny", fragment(f.src, f.dst, protoTCP, 0x3b6e, 0, true, seg(5)[:16])},
		{"first fragment with a TCP header of 16 bytes", "fragment_tiny", fragment(f.src, f.dst, protoTCP, 0x3b6f, 0, true, seg(4)[:24])},
	}
	if f.src.Is4() {
		h := ipv4{src: f.src, dst: f.dst, proto: protoUDP, options: []byte{7, 7, 4, 0x2d, 0x3e, 0x4f, 0x5a, 0}}
		return append(all, badPacket{"record route", "ip_options", h.with(datagram)})
	}
	for _, next := range []byte{0, 43, 60, 135} {
		extension := append([]byte{protoUDP, 0, 1, 4, 0x2d, 0x3e, 0x4f, 0x5a}, datagram...)
		all = append(all,
			badPacket{fmt.Sprintf("extension header %d", next), "ip_options", of(next, extension)},
			badPacket{fmt.Sprintf("extension header %d in a fragment", next), "ip_options", fragment(f.src, f.dst, next, 0x3b71, 0, true, extension[:40])},
		)
	}
	inner := fragment(f.src, f.dst, protoUDP, 0x3b73, 0, false, datagram)[40:]
	mapped := netip.AddrFrom16(caA.As16())
	return append(all,
		badPacket{"a fragment in a fragment", "ip_options", of(protoFragment, append([]byte{protoFragment, 0, 0, 0, 0x3b, 0x73, 0x29, 0x57}, inner...))},
		badPacket{"version 5", "bad_ip", ipv6{src: f.src, dst: f.dst, next: protoUDP, version: 5}.with(datagram)},
		badPacket{"payload length past the frame", "bad_ip", ipv6{src: f.src, dst: f.dst, next: protoUDP, said: 46}.with(datagram)},
		badPacket{"from an IPv4 address in IPv6's clothes", "bad_ip", ipv6{src: mapped, dst: f.dst, next: protoUDP}.with(datagram)},
		badPacket{"to an IPv4 address in IPv6's clothes", "bad_ip", ipv6{src: f.src, dst: mapped, next: protoUDP}.with(datagram)},
		badPacket{"fragment header cut off", "truncated", of(protoFragment, []byte{protoUDP, 0, 0, 1, 0x5a})},
	)
}

// fragments: what is refused among the pieces of a packet, and that the right ones pass.
func fragments(t *testing.T, seen covered, h *host, way string, f pair, try func([]byte) uint32) {
	t.Helper()
	whole := udp(f.src, f.dst, 5353, 7946, text(120))
	piece := func(id uint16, offset, end int) []byte {
		return fragment(f.src, f.dst, protoUDP, id, offset, end < len(whole), whole[offset:end])
	}
	pass := func(name string, packet []byte) {
		t.Helper()
		before := h.drops()
		if v := try(packet); v != actRedirect {
			t.Errorf("%s, %s, %s: verdict %d, want it to pass; %v", name, f.name, way, int32(v), h.drops())
		}
		h.counted(name, before, "none")
	}
	refuse := func(name, reason string, packet []byte) {
		t.Helper()
		seen.refused(h, fmt.Sprintf("%s, %s, %s", name, f.name, way), reason, func() uint32 { return try(packet) })
	}
	refuse("the last fragment, alone", "fragment_lost", piece(0x4c27, 48, 128))
	pass("the first fragment", piece(0x4c28, 0, 48))
	pass("the one in the middle", piece(0x4c28, 48, 88))
	refuse("another packet's fragment", "fragment_lost", piece(0x4c29, 48, 88))
	refuse("one that begins in the first", "fragment_overlap", piece(0x4c28, 40, 128))
	refuse("one that ends beyond the largest packet", reasonAt(way, "bad_ip"), fragment(f.src, f.dst, protoUDP, 0x4c28, 0xfff8, false, whole[:16]))
	pass("the last fragment", piece(0x4c28, 88, 128))
}

// reasonAt is how a hook names it: what is inside a tunnel has names of its own.
func reasonAt(way, reason string) string {
	if way == "from the wire" && (reason == "bad_ip" || reason == "truncated") {
		return "inner_" + reason
	}
	return reason
}
