package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// of is a member as its underlay has it.
func (f *fuzzer) of(m member) member {
	if f.v6 {
		return m.over6()
	}
	return m
}

// next makes a trial: a good frame in a third of all, the others are spoilt.
func (f *fuzzer) next() trial {
	r := f.r
	if r.IntN(24) == 0 {
		return f.reply()
	}
	from := f.of(pick(r, redA, redA, redA2, blueA, redB, blueB))
	if r.IntN(2) == 0 {
		host := 0
		if from.id == redB.id || from.id == blueB.id {
			host = 1
		}
		frame := from.frame(f.packet(from, true))
		if r.IntN(12) == 0 {
			frame = eth(gatewayMAC, from.mac, etherARP, f.arp(from))
		}
		if r.IntN(8) == 0 {
			copy(frame, pick(r, redA.mac[:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, []byte{0x33, 0x33, 0, 0, 0, 0xfb}))
		}
		frame = f.spoil(frame, 14+70)
		return trial{host, from.id, f.gso(len(frame), 16), frame}
	}
	to := f.of(pick(r, redA, redA2, blueA, redB, blueB))
	for r.IntN(16) > 0 && (from.vni != to.vni || from.id == to.id) {
		from = f.of(pick(r, redA, redA2, blueA, redB, blueB))
	}
	host := 0
	if to.id == redB.id || to.id == blueB.id {
		host = 1
	}
	u := tunnel{src: from.pa, dst: to.pa, vni: from.vni}
	if r.IntN(10) == 0 {
		u.src = pick(r, f.of(redA2).pa, f.of(redB).pa, f.twins[1-host].model.pas.Addr().Next().Next())
	}
	if r.IntN(6) == 0 {
		u.ip.tos = byte(r.IntN(4))
	}
	inner := from.inner(to, f.packetTo(from, to))
	if r.IntN(16) == 0 { // by a neighbour, or the host itself
		mac := pick(r, redA.mac, redA2.mac, redB.mac, gatewayMAC)
		copy(inner[6:], mac[:])
	}
	frame := u.with(inner)
	frame = f.twins[host].arriving(f.spoil(frame, 14+126))
	return trial{host, 0, f.gso(len(frame), 5), frame}
}

// reply is one of the metadata service, to a port in its epoch or nearly so.
func (f *fuzzer) reply() trial {
	r := f.r
	host := r.IntN(2)
	to := pick(r, redA, redA2, blueA)
	if host == 1 {
		to = pick(r, redB, blueB)
	}
	id, epoch := to.id, f.twins[host].model.ports[to.id].Epoch
	switch r.IntN(8) {
	case 0:
		epoch += uint64(r.IntN(3)) << pick(r, 0, 13, 14, 48)
	case 1:
		id = uint16(r.IntN(12))
	}
	family := r.IntN(2)
	src, dst := pick(r, imds, imds, wireServer, caB), callerIn(id, epoch, false)
	if family == 1 {
		src, dst = pick(r, imds6, imds6, imds6, caB6), callerIn(id, epoch, true)
	}
	packet := f.df(segment{sport: pick[uint16](r, 80, 80, 80, 81), dport: 40321, flags: flagACK, payload: text(pick(r, 0, 37, 1200, 1473))}.of(src, dst))
	return trial{host, metadata, 0, f.spoil(eth(to.mac, imdsMAC, etherOf(packet), packet), 14+70)}
}

// gso makes one of so many frames a superpacket: of segments that are smaller than it.
func (f *fuzzer) gso(size, of int) int {
	if g := pick(f.r, 17, 17, 536, 1187, 1400, 1448, 1460, 1473); f.r.IntN(of) == 0 && g+200 < size {
		return g
	}
	return 0
}

func (f *fuzzer) arp(m member) []byte {
	return arp(pick[uint16](f.r, 1, 1, 2, 3), pick(f.r, m.mac, m.mac, redA2.mac), pick(f.r, m.ca, m.ca, caA2, addr("0.0.0.0")), [6]byte{},
		pick(f.r, gateway, caA, caB, caA2, imds, addr("203.0.113.79")))
}

// packet is one that a member might send: to anybody there is.
func (f *fuzzer) packet(m member, out bool) []byte {
	r := f.r
	family := r.IntN(2)
	src := m.cas()[family]
	gateways := m.gateways()
	all := [2][]netip.Addr{
		{caA, caB, caA2, caA, caB, caA2, caNobody, gateways[0], imds, vips[0], vips[0], wireServer, addr("203.0.113.79"), addr("203.0.113.9"), addr("198.51.100.7"), addr("192.0.2.77"), addr("255.255.255.255"), addr("10.17.34.255"), addr("224.0.0.251")},
		{caA6, caB6, caA26, caA6, caB6, caA26, caNobody6, gateways[1], imds6, vips[1], vips[1], addr("2001:db8:9f27::53"), addr("ff02::fb"), redB.linkLocal(), addr("ff02::1:2")},
	}
	dst := pick(r, all[family]...)
	if r.IntN(12) == 0 {
		src = pick(r, all[family]...)
	}
	if family == 1 && r.IntN(8) == 0 {
		src = m.linkLocal()
	}
	if family == 1 && r.IntN(6) == 0 {
		return f.nd(m, src)
	}
	if out && r.IntN(12) == 0 { // the host's own business
		if family == 0 {
			return udpOf(src, pick(r, gateway, dst), pick[uint16](r, 68, 67), pick[uint16](r, 67, 68), text(40))
		}
		return udpOf(pick(r, src, m.linkLocal()), dst, pick[uint16](r, 546, 547), pick[uint16](r, 547, 546), text(40))
	}
	return f.l4(src, dst)
}

// packetTo is one that the wire might bring to a member.
func (f *fuzzer) packetTo(from, to member) []byte {
	family := f.r.IntN(2)
	if f.r.IntN(10) == 0 {
		return f.packet(from, false)
	}
	return f.l4(from.cas()[family], to.cas()[family])
}

// l4 is a packet of one of few flows, so that most frames meet another of theirs.
func (f *fuzzer) l4(src, dst netip.Addr) []byte {
	r := f.r
	sport, dport := pick[uint16](r, 5353, 7946, 7951, 7952, 7953, 8453, 80), pick[uint16](r, 5353, 7946, 7951, 7952, 8453, 80)
	if dst == vips[0] || dst == vips[1] {
		dport = pick[uint16](r, 8453, 8453, 8453, dport)
	}
	body := text(pick(r, 0, 1, 19, 37, 120, 1200, 1400, 1452, 1473))
	switch r.IntN(8) {
	case 0, 1, 2:
		s := segment{sport: sport, dport: dport, payload: body, flags: pick[byte](r, flagSYN, flagSYN|flagACK, flagACK, flagACK, flagACK|8, flagFIN|flagACK, flagRST, flagFIN)}
		if r.IntN(3) == 0 {
			s.options = pick(r, synOptions(1460), synOptions(8960), synOptions(512), []byte{1, 2, 4, 0x23, 0x45, 1, 1, 0}, []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, text(40))
		}
		return f.df(s.of(src, dst))
	case 3, 4:
		return f.df(udpOf(src, dst, sport, dport, body))
	case 5:
		if r.IntN(3) == 0 { // others than echoes, and echoes whose identifier they might be taken for
			return icmp(src, dst, pick[byte](r, 0, 8, 128, 129, 5, 13, 14, 17, 42, 143), 0, append([]byte{pick[byte](r, 0, 0, 0x4e), pick[byte](r, 0, 0, 0x83), 0x29, 0x57}, text(29)...))
		}
		return pick(r, ping(src, dst, text(29)), unreachable(src, dst, udpOf(dst, src, dport, sport, text(37))), unreachable(src, dst, tcpOf(dst, src, dport, sport, nil)), unreachable(src, dst, ping(dst, src, nil)), large(src, dst))
	case 6:
		return sctpOf(src, dst, sport, dport)
	}
	if r.IntN(4) == 0 { // a first one that is too big for some, and an error about it
		first := fragment(src, dst, protoUDP, 0x6e4a, 0, true, udp(src, dst, sport, dport, text(1472))[:1456])
		return pick(r, first, unreachable(dst, src, first))
	}
	whole := udp(src, dst, sport, dport, text(120))
	at := pick(r, 0, 0, 24, 48, 40, 88)
	n := pick(r, 48, 48, 47, 49) // the last bytes of a first one may lie in the next eight
	return fragment(src, dst, pick[byte](r, protoUDP, protoUDP, protoTCP), pick[uint16](r, 0x3b6d, 0x4c28, 0x5d39), at, at < 88, whole[at:min(at+n, len(whole))])
}

// large is an error that is too big: nobody is told of an error about an error.
func large(src, dst netip.Addr) []byte {
	kind := byte(3)
	if src.Is6() {
		kind = 1
	}
	return icmp(src, dst, kind, 1, append(make([]byte, 4), text(1500)...))
}

// df sets "don't fragment" in half of the IPv4 packets, and ECN in some.
func (f *fuzzer) df(p []byte) []byte {
	if p[0]>>4 == 4 {
		if f.r.IntN(2) == 0 {
			p[6] |= 0x40
		}
		p[1] |= byte(f.r.IntN(4))
		sumTo(p[:20])
		return p
	}
	p[1] |= byte(f.r.IntN(4)) << 4
	return p
}

func (f *fuzzer) nd(m member, src netip.Addr) []byte {
	r := f.r
	gateway6 := m.gateways()[1]
	target := pick(r, gateway6, caA6, caB6, caA26, imds6, m.linkLocal(), caNobody6, addr("2001:db8::7"))
	mac := pick(r, m.mac, m.mac, redA2.mac)
	src = pick(r, src, src, m.linkLocal(), netip.IPv6Unspecified())
	switch r.IntN(5) {
	case 0, 1:
		return solicit(src, pick(r, solicitedNode(target), target), target, mac)
	case 2:
		return advertise(src, pick(r, gateway6, caB6), target, mac)
	default:
		return nd(src, pick(r, addr("ff02::2"), addr("ff02::1"), caB6), pick[byte](r, ndRS, ndRA, ndRedirect), make([]byte, 4))
	}
}

// spoil leaves a third of the frames alone, and cuts or changes the others.
func (f *fuzzer) spoil(frame []byte, headers int) []byte {
	r := f.r
	frame = bytes.Clone(frame)
	if r.IntN(3) == 0 {
		return frame
	}
	for range r.IntN(3) {
		at := 12 + r.IntN(min(headers, len(frame))-12)
		switch r.IntN(3) {
		case 0:
			frame[at] = byte(r.Uint32())
		case 1:
			frame[at] ^= 1 << r.IntN(8)
		case 2:
			frame[at] += byte(r.IntN(3)) - 1
		}
	}
	switch r.IntN(8) {
	case 0:
		frame = frame[:14+r.IntN(len(frame)-13)]
	case 1:
		frame = append(frame, text(1+r.IntN(20))...)
	}
	if r.IntN(2) == 0 && len(frame) >= 34 && binary.BigEndian.Uint16(frame[12:]) == etherIPv4 {
		sumTo(frame[14:34])
	}
	return frame
}
