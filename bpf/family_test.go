package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// Both families over both underlays: from a VM to one on another host and to
// one on the same, with congestion and too large packets on the way.
func TestFamiliesAndUnderlays(t *testing.T) {
	over := func(u underlay) {
		for family, name := range []string{"IPv4", "IPv6"} {
			name += " over " + u.name
			u.journey(t, name, family)
			u.congestion(t, name, family)
			u.sizes(t, name, family)
			u.smallest(t, name, family)
		}
	}
	a, b := newWorld(t)
	over(underlay{"IPv4", a, b, redA, redA2, redB, 4, OverheadIPv4})
	a, b = newWorld6(t)
	over(underlay{"IPv6", a, b, redA.over6(), redA2.over6(), redB.over6(), 6, OverheadIPv6})
}

// An underlay is a world over one.
type underlay struct {
	name     string
	a, b     *host
	from     member
	beside   member // on a
	to       member // on b
	version  int
	overhead int
}

func (u underlay) journey(t *testing.T, name string, family int) {
	src, dst := u.from.cas()[family], u.to.cas()[family]
	file := fmt.Sprintf("vxlan_ipv%d", u.version)
	if family == 1 || u.version == 6 {
		file = fmt.Sprintf("ipv%d_over_ipv%d", 4+2*family, u.version)
	}
	sent := u.from.frame(udpOf(src, dst, 5353, 7946, text(37)))
	before := u.a.drops()
	v, wire := u.a.send(u.from, sent)
	if v != actRedirect {
		t.Fatalf("%s: from_vm: verdict %d; %v", name, int32(v), u.a.drops())
	}
	u.a.counted(name+": sent", before, "none")
	golden(t, file, wire)
	before = u.b.drops()
	v, got := u.b.receive(wire)
	if v != actRedirect {
		t.Fatalf("%s: from_wire: verdict %d; %v", name, int32(v), u.b.drops())
	}
	u.b.counted(name+": delivered", before, "none")
	delivered(t, name, u.to, sent, got)

	sent = u.from.frame(udpOf(src, u.beside.cas()[family], 5353, 7946, text(43)))
	if v, got = u.a.send(u.from, sent); v != actRedirect {
		t.Fatalf("%s: on the same host: verdict %d; %v", name, int32(v), u.a.drops())
	}
	delivered(t, name+", same host", u.beside, sent, got)
}

// delivered fails unless got is the packet that was sent, from the gateway to m.
func delivered(t *testing.T, name string, m member, sent, got []byte) {
	t.Helper()
	if want := eth(m.mac, gatewayMAC, etherOf(sent[14:]), sent[14:]); !bytes.Equal(got, want) {
		t.Errorf("%s: delivered\n%swant\n%s", name, dump(got), dump(want))
	}
}

// congestion: RFC 6040. ECN is copied out, DSCP isn't; what the way has marked is told.
func (u underlay) congestion(t *testing.T, name string, family int) {
	src, dst := u.from.cas()[family], u.to.cas()[family]
	inner := func(tos byte) []byte {
		l4 := udp(src, dst, 5353, 7946, text(37))
		if family == 0 {
			return ipv4{src: src, dst: dst, proto: protoUDP, tos: tos}.with(l4)
		}
		return ipv6{src: src, dst: dst, next: protoUDP, tos: tos}.with(l4)
	}
	for _, ecn := range []byte{0, 1, 2, 3} {
		_, wire := u.a.send(u.from, u.from.frame(inner(0xb8|ecn)))
		outer := wire[14:]
		tos := outer[1]
		if u.version == 6 {
			tos = outer[0]<<4 | outer[1]>>4
		}
		if tos != ecn {
			t.Errorf("%s: ECN %d leaves with outer TOS %#x, want ECN %d and no DSCP", name, ecn, tos, ecn)
		}
		if u.version == 4 {
			outer[1] |= 3
			sumTo(outer[:20])
		} else {
			outer[1] |= 3 << 4
		}
		before := u.b.drops()
		v, got := u.b.receive(wire)
		if ecn == 0 {
			u.b.counted(name+": congestion on what isn't ECN-capable", before, "ecn")
			continue
		}
		want := inner(0xb8 | 3)
		if v != actRedirect || !bytes.Equal(got[14:], want) {
			t.Errorf("%s: ECN %d over a congested way: verdict %d, got\n%swant\n%s", name, ecn, int32(v), dump(got[14:]), dump(want))
		}
	}
}

// sizes: as large as it may be passes, one byte more is answered from the
// gateway; a SYN offers no more than that.
func (u underlay) sizes(t *testing.T, name string, family int) {
	src, dst := u.from.cas()[family], u.to.cas()[family]
	big := func(to int) []byte {
		if family == 0 {
			return ipv4{src: src, dst: dst, proto: protoUDP, frag: 0x4000}.with(udp(src, dst, 5353, 7946, text(to-28)))
		}
		return udpOf(src, dst, 5353, 7946, text(to-48))
	}
	before := u.a.drops()
	v, wire := u.a.send(u.from, u.from.frame(big(1500)))
	u.a.counted(name+": as large as it may be", before, "none")
	if v != actRedirect || len(wire) != 14+1500+u.overhead {
		t.Errorf("%s: 1500 bytes: verdict %d, %d bytes on the wire, want %d", name, int32(v), len(wire), 14+1500+u.overhead)
	}
	before = u.a.drops()
	v, told := u.a.send(u.from, u.from.frame(big(1501)))
	u.a.counted(name+": one byte more", before, "too_big")
	if v != actRedirect {
		t.Fatalf("%s: 1501 bytes: verdict %d, want the answer", name, int32(v))
	}
	golden(t, []string{"icmp_too_big", "icmpv6_too_big"}[family], told)
	if wrong := rightSums(told); wrong != "" {
		t.Errorf("%s: %s of the answer is wrong", name, wrong)
	}
	header := 40 + 20*family
	for _, c := range []struct{ offered, want int }{{8960, 1500 - header}, {1501 - header, 1500 - header}, {1500 - header, 1500 - header}, {1217, 1217}} {
		for _, flags := range []byte{flagSYN, flagSYN | flagACK} {
			s := segment{sport: 40321, dport: 7946, flags: flags, options: synOptions(c.offered)}
			_, wire := u.a.send(u.from, u.from.frame(s.of(src, dst)))
			s.options = synOptions(c.want)
			if got, want := wire[u.overhead+14:], s.of(src, dst); !bytes.Equal(got, want) {
				t.Errorf("%s: a SYN that offers %d becomes\n%swant %d\n%s", name, c.offered, dump(got), c.want, dump(want))
			}
		}
	}
}

// smallest: a packet that is shorter than the underlay's own header arrives.
func (u underlay) smallest(t *testing.T, name string, family int) {
	src, dst := u.from.cas()[family], u.to.cas()[family]
	for n, packet := range map[int][]byte{28: udpOf(src, dst, 5353, 7946, nil), 29: udpOf(src, dst, 5353, 7946, text(1)), 39: ping(src, dst, text(11)), 40: ping(src, dst, text(12))} {
		before := u.b.drops()
		v, got := u.b.receive(u.from.wire(u.to, packet))
		u.b.counted(name+": a small packet", before, "none")
		if v != actRedirect || !bytes.Equal(got[14:], packet) {
			t.Errorf("%s: %d bytes and %d of headers: verdict %d, got\n%s", name, n, 20*family, int32(v), dump(got))
		}
	}
}

// synOptions are those of a SYN: a window scale first, then the segment size.
func synOptions(mss int) []byte {
	return []byte{1, 3, 3, 7, 2, 4, byte(mss >> 8), byte(mss), 4, 2, 8, 10, 0x5a, 0x6b, 0x7c, 0x8d, 0, 0, 0, 0}
}

// What a SYN offers is clamped on the same host too, and left alone where
// nothing can be said of it.
func TestClampMSS(t *testing.T) {
	a := newA(t)
	small := redA2.port(a.taps[redA2.id])
	small.MTU = 1333
	a.must(a.dp.SetPort(redA2.id, small))
	for family := range 2 {
		src, dst := redA.cas()[family], redA2.cas()[family]
		fits := 1333 - 40 - 20*family
		for _, c := range []struct {
			name          string
			flags         byte
			options, want []byte
		}{
			{"a SYN", flagSYN, synOptions(1460), synOptions(fits)},
			{"not a SYN", flagACK, synOptions(1460), synOptions(1460)},
			{"no options", flagSYN, nil, nil},
			{"no segment size", flagSYN, []byte{1, 1, 4, 2}, []byte{1, 1, 4, 2}},
			{"behind the end of options", flagSYN, []byte{0, 0, 0, 0, 2, 4, 0x23, 0x45}, []byte{0, 0, 0, 0, 2, 4, 0x23, 0x45}},
			{"an option of no length", flagSYN, []byte{3, 0, 7, 1, 2, 4, 0x23, 0x45}, []byte{3, 0, 7, 1, 2, 4, 0x23, 0x45}},
			{"a segment size of three bytes", flagSYN, []byte{2, 3, 0x23, 1}, []byte{2, 3, 0x23, 1}},
			{"an option past the header", flagSYN, []byte{1, 1, 2, 8, 0x23, 0x45, 1, 1}, []byte{1, 1, 2, 8, 0x23, 0x45, 1, 1}},
			{"at an odd place", flagSYN, []byte{1, 2, 4, 0x23, 0x45, 1, 1, 0}, []byte{1, 2, 4, byte(fits >> 8), byte(fits), 1, 1, 0}},
			{"the last of forty bytes", flagSYN, append(bytes.Repeat([]byte{3, 3, 7, 1}, 9), 2, 4, 0x23, 0x45), append(bytes.Repeat([]byte{3, 3, 7, 1}, 9), 2, 4, 0x23, 0x45)},
		} {
			s := segment{sport: 40321, dport: 7946, flags: c.flags, options: c.options}
			v, got := a.send(redA, redA.frame(s.of(src, dst)))
			s.options = c.want
			if want := s.of(src, dst); v != actRedirect || !bytes.Equal(got[14:], want) {
				t.Errorf("IPv%d, %s: verdict %d, got\n%swant\n%s", 4+2*family, c.name, int32(v), dump(got[14:]), dump(want))
			}
		}
	}
}

// What the datapath answers itself, and what it carries to the metadata service.
func TestAnswersIPv6(t *testing.T) {
	a := newA(t)
	gateway6, own := redA.gateways()[1], redA.linkLocal()
	imds6, wireServer := addr("fd00:ec2::254"), addr("168.63.129.16")
	for _, c := range []struct {
		name   string
		packet []byte
	}{
		{"nd_gateway", solicit(own, solicitedNode(gateway6), gateway6, redA.mac)},
		{"nd_peer", solicit(caA6, solicitedNode(caB6), caB6, redA.mac)},
		{"nd_metadata", solicit(caA6, solicitedNode(imds6), imds6, redA.mac)},
		{"ping_gateway_ipv6", ping(caA6, gateway6, text(29))},
		{"ping_gateway_link_local", ping(own, gateway6, text(29))},
		{"imds_request_ipv6", tcpOf(caA6, imds6, 40321, 80, text(31))},
		{"imds_request_wire_server", tcpOf(caA, wireServer, 40321, 80, text(31))},
	} {
		before := a.drops()
		v, got := a.send(redA, redA.frame(c.packet))
		a.counted(c.name, before, "none")
		if v != actRedirect {
			t.Errorf("%s: verdict %d, want a redirect; %v", c.name, int32(v), a.drops())
			continue
		}
		golden(t, c.name, got)
		if wrong := rightSums(got); wrong != "" {
			t.Errorf("%s: %s is wrong", c.name, wrong)
		}
	}
	// Without the link-layer option the answer is as long as with it.
	short := solicit(caA6, gateway6, gateway6, redA.mac)[:64]
	short[5] = 24
	if v, got := a.send(redA, redA.frame(resum6(short))); v != actRedirect || len(got) != 14+40+32 || rightSums(got) != "" {
		t.Errorf("a solicitation without options: verdict %d, got\n%s", int32(v), dump(got))
	}
	metadataReplies(t, a, imds6, wireServer)
}

func metadataReplies(t *testing.T, a *host, imds6, wireServer netip.Addr) {
	caller6 := callerOf6(redA.id, redA.epoch)
	b := caller6.As16()
	caller := callerOf(redA.id, redA.epoch)
	reply := func(packet []byte) (uint32, []byte) {
		v, got, _ := a.run(a.dp.objs.FromHost, skb{Ifindex: 1}, eth([6]byte{}, imdsMAC, etherOf(packet), packet))
		return v, got
	}
	for _, c := range []struct {
		name   string
		packet []byte
	}{
		{"imds_reply_ipv6", tcpOf(imds6, caller6, 80, 40321, text(53))},
		{"imds_reply_wire_server", tcpOf(wireServer, caller, 80, 40321, text(53))},
	} {
		before := a.drops()
		v, got := reply(c.packet)
		a.counted(c.name, before, "none")
		if v != actRedirect {
			t.Errorf("%s: verdict %d, want a redirect", c.name, int32(v))
			continue
		}
		golden(t, c.name, got)
		if wrong := rightSums(got); wrong != "" {
			t.Errorf("%s: %s is wrong", c.name, wrong)
		}
	}
	b[15]++ // the next epoch, which isn't yet
	before := a.drops()
	if v, _ := reply(tcpOf(imds6, netip.AddrFrom16(b), 80, 40321, text(53))); v != actShot {
		t.Errorf("a reply to another epoch: verdict %d", int32(v))
	}
	a.counted("a reply to another epoch over IPv6", before, "stale_epoch")
	b[15]--
	b[4] = 0x77
	before = a.drops()
	reply(tcpOf(imds6, netip.AddrFrom16(b), 80, 40321, text(53)))
	a.counted("a reply to another prefix over IPv6", before, "not_metadata")
}

// What the agent answers: who asks in IPv6, and who answers its questions.
func TestTrapsIPv6(t *testing.T) {
	a := newA(t)
	traps, err := a.dp.Traps()
	a.must(err)
	defer traps.Close()
	traps.SetDeadline(time.Now().Add(5 * time.Second))
	gateway6, own := redA.gateways()[1], redA.linkLocal()
	probe := func(flags byte, family int) []byte {
		return segment{sport: 7946, dport: 40321, flags: flags}.of(redA.cas()[family], redA.gateways()[family])
	}
	for _, c := range []struct {
		name   string
		kind   TrapKind
		shows  uint64 // 1: it shows that the guest is there, with an address of the network
		packet []byte
	}{
		{"DHCPv6 to all servers", TrapDHCPv6, 0, udpOf(own, addr("ff02::1:2"), 546, 547, text(83))},
		{"DHCPv6 to the gateway", TrapDHCPv6, 0, udpOf(own, gateway6, 546, 547, text(83))},
		{"a router solicitation", TrapRouterSolicit, 0, nd(own, addr("ff02::2"), ndRS, append(make([]byte, 4), append([]byte{1, 1}, redA.mac[:]...)...))},
		{"a router solicitation without an address", TrapRouterSolicit, 0, nd(netip.IPv6Unspecified(), addr("ff02::2"), ndRS, make([]byte, 4))},
		{"an advertisement of its CA", TrapNeighbourAdvert, 1, advertise(caA6, gateway6, caA6, redA.mac)},
		{"an advertisement of its link-local address", TrapNeighbourAdvert, 0, advertise(own, gateway6, own, redA.mac)},
		{"a probe's SYN+ACK", TrapProbe, 1, probe(flagSYN|flagACK, 0)},
		{"a probe's reset", TrapProbe, 1, probe(flagRST|flagACK, 1)},
	} {
		frame := redA.frame(c.packet)
		n, err := a.dp.PortCounters(redA.id)
		a.must(err)
		before := a.drops()
		if v, _ := a.send(redA, frame); v != actShot {
			t.Errorf("%s: verdict %d, want it taken", c.name, int32(v))
		}
		a.counted(c.name, before, "none")
		got, err := traps.Read()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got.Port != redA.id || got.Kind != c.kind || got.Epoch != redA.epoch || !bytes.Equal(got.Frame, frame) {
			t.Errorf("%s: trapped %+v, want %d bytes of kind %d", c.name, got, len(frame), c.kind)
		}
		after, err := a.dp.PortCounters(redA.id)
		if err != nil || after.FromPackets != n.FromPackets+c.shows {
			t.Errorf("%s: counted %d from the VM, want %d, %v", c.name, after.FromPackets-n.FromPackets, c.shows, err)
		}
	}
	// A SYN to the gateway is nobody's.
	before := a.drops()
	a.send(redA, redA.frame(probe(flagSYN, 1)))
	a.counted("a SYN to the gateway", before, "to_gateway")
}
