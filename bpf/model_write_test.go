package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// fixSum changes a checksum by what its words were and have become (RFC 1624).
func fixSum(sum, was, is []byte) {
	s := uint32(^binary.BigEndian.Uint16(sum))
	for i := 0; i < len(was); i += 2 {
		s += uint32(^binary.BigEndian.Uint16(was[i:])) + uint32(binary.BigEndian.Uint16(is[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}

// rewrite makes one end of the packet in frame another, with its checksums. A
// datagram over either family whose checksum is 0 keeps it.
func (j *judged) rewrite(frame []byte, destination bool, to netip.AddrPort) {
	at, n := 26, 4
	if j.v6 {
		at, n = 22, 16
	}
	if destination {
		at += n
	}
	was, is := bytes.Clone(frame[at:at+n]), to.Addr().AsSlice()
	if !j.v6 {
		fixSum(frame[24:], was, is)
	}
	copy(frame[at:], is)
	if j.fragment == laterFragment {
		return
	}
	l4 := frame[14+j.header:]
	if to.Port() != 0 {
		port := l4
		if destination {
			port = l4[2:]
		}
		was = append(was, port[0], port[1])
		is = binary.BigEndian.AppendUint16(is, to.Port())
		copy(port, is[n:])
	}
	sum, ok := map[byte]int{protoTCP: 16, protoUDP: 6, protoICMPv6: 2}[j.proto]
	if !ok || j.proto == protoUDP && l4[6] == 0 && l4[7] == 0 {
		return
	}
	fixSum(l4[sum:], was, is)
	if j.proto == protoUDP && l4[6] == 0 && l4[7] == 0 {
		l4[6], l4[7] = 0xff, 0xff
	}
}

// clamp makes a SYN offer no more than mtu (RFC 9293, 3.7.1).
func (j *judged) clamp(frame []byte, mtu int) {
	if j.tcpFlags&flagSYN == 0 || j.fragment != unbroken || j.proto != protoTCP {
		return
	}
	fits := mtu - 40
	if j.v6 {
		fits -= 20
	}
	options := frame[14+j.header+20:][:j.optionsLen]
	at := segmentSizeIn(options)
	if at < 0 || int(binary.BigEndian.Uint16(options[at:])) <= fits {
		return
	}
	// A value at an odd place is halves of two words.
	from := at &^ 1
	to := min(from+4, len(options))
	was := bytes.Clone(options[from:to])
	binary.BigEndian.PutUint16(options[at:], uint16(fits))
	fixSum(frame[14+j.header+16:], was, options[from:to])
}

// segmentSizeIn returns where among a SYN's first 12 options the segment size is, or -1.
func segmentSizeIn(options []byte) int {
	at := 0
	for range 12 {
		if at+4 > len(options) {
			return -1
		}
		switch kind, n := options[at], int(options[at+1]); {
		case kind == 0:
			return -1
		case kind == 1:
			at++
		case kind == 2 && n == 4:
			return at + 2
		case kind == 2 || n < 2:
			return -1
		default:
			at += n
		}
	}
	return -1
}

// mend writes what a path's size and a service change in the packet.
func (j *judged) mend(mtu int) []byte {
	out := bytes.Clone(j.frame)
	j.clamp(out, mtu)
	j.translate(out)
	return out
}

// translate writes what a service changes: one end, or that end in what an error quotes.
func (j *judged) translate(out []byte) {
	switch {
	case j.natted != 0 && j.quoted != nil:
		j.translateError(out)
	case j.natted != 0:
		j.rewrite(out, j.natted&fService != 0, j.nat)
	}
}

// translateError: RFC 5508, 4. The client's kernel knows the service, the backend's
// itself. Another router's word stays its own.
func (j *judged) translateError(out []byte) {
	back, message := j.natted == fBackend, out[14+j.header:]
	before := bytes.Clone(message)
	j.translateQuote(message[8:], back)
	even := len(message) &^ 1
	if even < len(message) { // the last byte is as it was, unless a port's checksum ends there
		before, message = append(before, 0), append(bytes.Clone(message), 0)
		even += 2
	}
	fixSum(out[14+j.header+2:], before[8:even], message[8:even])
	if !back || j.src == j.quoted.remote {
		j.rewrite(out, !back, netip.AddrPortFrom(j.nat.Addr(), 0))
	}
}

func (j *judged) translateQuote(quote []byte, destination bool) {
	at, n := 12, 4
	if j.v6 {
		at, n = 8, 16
	}
	port := j.quotes
	if destination {
		at, port = at+n, port+2
	}
	was, is := bytes.Clone(quote[at:at+n]), j.nat.Addr().AsSlice()
	copy(quote[at:], is)
	if !j.v6 {
		fixSum(quote[10:], was, is)
	}
	was = append(was, quote[port], quote[port+1])
	is = binary.BigEndian.AppendUint16(is, j.nat.Port())
	copy(quote[port:], is[n:])
	sum, ok := map[byte]int{protoTCP: 16, protoUDP: 6, protoICMPv6: 2}[j.quoted.proto]
	if sum += j.quotes; !ok || len(quote) < sum+2 || j.quoted.proto == protoUDP && quote[sum]|quote[sum+1] == 0 {
		return
	}
	fixSum(quote[sum:], was, is)
	if j.quoted.proto == protoUDP && quote[sum]|quote[sum+1] == 0 {
		quote[sum], quote[sum+1] = 0xff, 0xff
	}
}

// sendToPort is a frame to a port of this host.
func (m *model) sendToPort(j *judged) outcome {
	to := m.portAt(j.route.vni, j.route.mac)
	if to == nil {
		return refuse("not_local")
	}
	why := to.admit(j.dst)
	if why == "" && j.tooLarge(to.MTU) {
		why = "to_too_big"
	}
	if why == "" {
		j.outerSrc = j.from.PA
		why = m.judge(j, to, true)
	}
	if why != "" {
		return m.refuseSent(j, why)
	}
	out := j.mend(to.MTU)
	return sendOut(eth(to.MAC, gatewayMAC, etherOfFamily(j.v6), out[14:]))
}

func etherOfFamily(v6 bool) uint16 {
	if v6 {
		return etherIPv6
	}
	return etherIPv4
}

// sendToWire is a frame with the underlay's headers before it. A test run can't
// say what kind of superpacket it has, so the kernel won't grow one.
func (m *model) sendToWire(j *judged) outcome {
	if j.gso != 0 {
		return refuse("no_room")
	}
	out := j.mend(m.pathMTU(j.from))
	if j.natted != 0 && j.quoted == nil { // what is hashed is read again
		j.parsed, _ = parse(binary.BigEndian.Uint16(out[12:]), j.frame[14:], 0)
	}
	return sendOut(m.wrap(j, j.from, j.route.pa, j.route.vni, j.route.mac, out[14:], j.tos&3, m.hop.Dst, m.hop.Src))
}

// wrap puts a packet into VXLAN (RFC 7348).
func (m *model) wrap(j *judged, p *modelPort, pa netip.Addr, vni uint32, mac [6]byte, packet []byte, ecn byte, dst, src [6]byte) []byte {
	hash := j.flowHash()
	v := binary.BigEndian.AppendUint32(nil, 0x08000000)
	v = binary.BigEndian.AppendUint32(v, vni<<8)
	v = append(v, eth(mac, p.MAC, etherOfFamily(j.v6), packet)...)
	b := binary.BigEndian.AppendUint16(nil, 0xc000|uint16(hash&0x3fff))
	b = binary.BigEndian.AppendUint16(b, 4789)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(v)))
	b = append(append(b, 0, 0), v...)
	if m.self.Is4() {
		return eth(dst, src, etherIPv4, plain4(p.PA, pa, protoUDP, ecn, b))
	}
	ip := plain6(p.PA, pa, protoUDP, b)
	ip[1], ip[2], ip[3] = ecn<<4|byte(hash>>16&0xf), byte(hash>>8), byte(hash)
	return eth(dst, src, etherIPv6, ip)
}

// plain4 and plain6 are packets as the datapath itself writes them.
func plain4(src, dst netip.Addr, proto, tos byte, l4 []byte) []byte {
	b := ipv4{src: src, dst: dst, proto: proto, tos: tos, frag: 0x4000}.with(l4)
	b[4], b[5], b[8] = 0, 0, 64
	sumTo(b[:20])
	return b
}

func plain6(src, dst netip.Addr, next byte, l4 []byte) []byte {
	b := ipv6{src: src, dst: dst, next: next, hops: 64}.with(l4)
	b[0], b[1], b[2], b[3] = 0x60, 0, 0, 0
	return b
}

// refuseSent is a refusal whose sender may be told.
func (m *model) refuseSent(j *judged, why string) outcome {
	out := refuse(why)
	switch {
	case j.tooBig != 0:
		out.verdict, out.out = actRedirect, m.tellTooBig(j)
	case j.reset:
		out.verdict, out.out = actRedirect, eth(j.from.MAC, gatewayMAC, etherOfFamily(j.v6), j.resetPacket())
	}
	return out
}

// tellTooBig: RFC 1191, RFC 4443 3.2.
func (m *model) tellTooBig(j *judged) []byte {
	return eth(j.from.MAC, gatewayMAC, etherOfFamily(j.v6), j.tooBigPacket(j.from.gatewayOf(j.v6)))
}

func (j *judged) tooBigPacket(from netip.Addr) []byte {
	quote := j.frame[14:]
	if j.v6 {
		body := binary.BigEndian.AppendUint32(nil, uint32(j.tooBig))
		p := icmp(from, j.src, 2, 0, append(body, quote[:68]...))
		return plain6(from, j.src, protoICMPv6, p[40:])
	}
	body := []byte{0, 0, byte(j.tooBig >> 8), byte(j.tooBig)}
	p := icmp(from, j.src, 3, 4, append(body, quote[:48]...))
	told := plain4(from, j.src, protoICMP, 0, p[20:])
	told[6], told[7] = 0, 0
	sumTo(told[:20])
	return told
}

// resetPacket answers the segment of j (RFC 9293, 3.10.7.1).
func (j *judged) resetPacket() []byte {
	s := segment{sport: j.dport, dport: j.sport, flags: flagRST}
	seq, ack := j.ack, uint32(0)
	if j.tcpFlags&flagACK == 0 {
		s.flags |= flagACK
		seq, ack = 0, j.seq+uint32(j.payload-20-j.optionsLen)+uint32(j.tcpFlags>>1&1)+uint32(j.tcpFlags&1)
	}
	// The addresses are those of the packet, which a service may have changed by now.
	src, dst := j.addrs()
	b := s.bytes(dst, src)
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[14], b[15], b[16], b[17] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(b[16:], l4sum(dst, src, protoTCP, b))
	if j.v6 {
		return plain6(dst, src, protoTCP, b)
	}
	return plain4(dst, src, protoTCP, 0, b)
}

func (j *judged) addrs() (src, dst netip.Addr) {
	b := j.frame[14:]
	if j.v6 {
		return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	}
	return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
}

// resetByWire and tooBigByWire answer by the router that brought the packet.
func (m *model) resetByWire(j *judged, p *modelPort, vni uint32, frame []byte) []byte {
	return m.wayBack(j, p, vni, frame, j.resetPacket())
}

func (m *model) tooBigByWire(j *judged, p *modelPort, vni uint32, frame []byte) []byte {
	return m.wayBack(j, p, vni, frame, j.tooBigPacket(j.dst))
}

func (m *model) wayBack(j *judged, p *modelPort, vni uint32, frame, packet []byte) []byte {
	if j.route.pa.IsValid() {
		vni = j.route.vni
	}
	return m.wrap(j, p, j.outerSrc, vni, [6]byte(j.frame[6:12]), packet, 0, [6]byte(frame[6:12]), [6]byte(frame))
}
