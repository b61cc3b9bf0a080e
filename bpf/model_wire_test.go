package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

const markUp = 0x5eb70000

// outer is what the headers of the underlay say.
type outer struct {
	src, dst netip.Addr
	tos      byte
	header   int // bytes before the inner Ethernet header
}

// fromWire is what becomes of a frame from the underlay.
func (m *model) fromWire(frame []byte, gso int) outcome {
	if !m.ours(frame) {
		return outcome{verdict: actNext, out: frame}
	}
	o, vni, why := m.outer(frame)
	if why != "" {
		return refuse(why)
	}
	j := &judged{frame: frame[o.header:], gso: gso, outerSrc: o.src}
	if j.parsed, why = parse(binary.BigEndian.Uint16(j.frame[12:]), j.frame[14:], gso); why != "" {
		return refuse(asInner(why))
	}
	p := m.portAt(vni, [6]byte(j.frame))
	if why := m.arrives(j, p, o); why != "" {
		out := refuse(asInner(why))
		switch {
		case j.tooBig != 0:
			out.verdict, out.out = actRedirect, m.tooBigByWire(j, p, vni, frame)
		case j.reset:
			out.verdict, out.out = actRedirect, m.resetByWire(j, p, vni, frame)
		}
		return out
	}
	if o.tos&3 == 3 && j.tos&3 == 0 { // RFC 6040, 4.2
		return refuse("ecn")
	}
	if j.climbs {
		return m.climb(j, p, frame, o)
	}
	return m.deliver(j, p, o)
}

// ours: VXLAN for one of this host's PAs or for itself; a later fragment for a PA
// can be nothing else.
func (m *model) ours(frame []byte) bool {
	if [6]byte(frame) != m.mac {
		return false
	}
	kind, b := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	mine := func(a netip.Addr) bool { return m.pas.Contains(a) || a == m.self }
	vxlan := func(b []byte) bool { return len(b) >= 4 && binary.BigEndian.Uint16(b[2:]) == 4789 }
	if m.self.Is4() {
		if kind != etherIPv4 || len(b) < 20 || b[9] != protoUDP || !mine(netip.AddrFrom4([4]byte(b[16:]))) {
			return false
		}
		ihl := int(b[0]&15) * 4
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return netip.AddrFrom4([4]byte(b[16:])) != m.self
		}
		return ihl >= 20 && len(b) >= ihl && vxlan(b[ihl:])
	}
	if kind != etherIPv6 || len(b) < 40 || !mine(netip.AddrFrom16([16]byte(b[24:]))) {
		return false
	}
	if b[6] != protoFragment {
		return b[6] == protoUDP && vxlan(b[40:])
	}
	if len(b) < 48 || b[40] != protoUDP {
		return false
	}
	if binary.BigEndian.Uint16(b[42:])&0xfff8 != 0 {
		return netip.AddrFrom16([16]byte(b[24:])) != m.self
	}
	return vxlan(b[48:])
}

func (m *model) outer(frame []byte) (o outer, vni uint32, why string) {
	b := frame[14:]
	ip, n := 20, 0
	if m.self.Is6() {
		ip = 40
		if len(b) < 40 || b[0]>>4 != 6 {
			return o, 0, "outer_bad"
		}
		if b[6] == protoFragment {
			return o, 0, "outer_fragment"
		}
		o.src, o.dst, o.tos = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[0]<<4|b[1]>>4
		n = int(binary.BigEndian.Uint16(b[4:]))
	} else {
		total := int(binary.BigEndian.Uint16(b[2:]))
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return o, 0, "outer_fragment"
		}
		if b[0] != 0x45 || total < 20 {
			return o, 0, "outer_bad"
		}
		o.src, o.dst, o.tos = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[1]
		n = total - 20
	}
	t := b[ip:]
	if len(t) < 30 || n < 30 || n > len(t) || int(binary.BigEndian.Uint16(t[4:])) != n {
		return o, 0, "outer_bad"
	}
	if binary.BigEndian.Uint32(t[8:]) != 0x08000000 || t[15] != 0 {
		return o, 0, "vxlan_flags"
	}
	o.header = 14 + ip + 16
	return o, binary.BigEndian.Uint32(t[12:]) >> 8, ""
}

func asInner(why string) string {
	switch why {
	case "truncated", "bad_ip", "not_ip":
		return "inner_" + why
	case "vlan":
		return "inner_not_ip"
	}
	return why
}

// arrives is what a port checks of a packet for it.
func (m *model) arrives(j *judged, p *modelPort, o outer) string {
	if p == nil {
		return "not_local"
	}
	if p.PA != o.dst {
		return "wrong_pa"
	}
	if why := p.admit(j.dst); why != "" {
		return why
	}
	if j.tooLarge(p.MTU) {
		m.mayTell(j, p)
		return "to_too_big"
	}
	if isLinkScope(j.src) || j.isND() {
		return "link_scope"
	}
	if why := m.judge(j, p, true); why != "" {
		return why
	}
	return ""
}

// mayTell: nobody is told of a packet too big on behalf of a liar, nor too often.
func (m *model) mayTell(j *judged, p *modelPort) {
	if j.tooBig == 0 {
		return
	}
	liar := m.wayOf(j, p, true) != ""
	if liar || !m.spend(p, bucketTooBig, 1) {
		j.tooBig = 0
	}
	if !liar && j.tooBig == 0 {
		m.untold++
	}
}

// climb is a frame that goes up the VXLAN device: to the host's own address.
func (m *model) climb(j *judged, p *modelPort, frame []byte, o outer) outcome {
	out := bytes.Clone(frame)
	ip := out[14:]
	if m.self.Is4() {
		self := m.self.As4()
		fixSum(ip[10:], ip[16:20], self[:])
		copy(ip[16:], self[:])
	} else {
		copy(ip[24:], m.self.AsSlice())
	}
	udp := out[o.header-16:]
	udp[6], udp[7] = 0, 0
	mark := uint32(markUp) | uint32(p.id)
	if j.natted != 0 {
		mark |= 0x8000
	}
	return outcome{verdict: actNext, out: out, mark: mark}
}

// deliver is a frame into its port's tap: RFC 6040 on the way.
func (m *model) deliver(j *judged, p *modelPort, o outer) outcome {
	out := eth(p.MAC, gatewayMAC, etherIPv4, j.frame[14:])
	if j.v6 {
		out[12], out[13] = 0x86, 0xdd
	}
	// Congestion, and ECT(1) where the sender said ECT(0).
	if marked := o.tos & 3; marked == 3 || marked == 1 && j.tos&3 == 2 {
		if j.v6 {
			out[15] = out[15]&^0x30 | marked<<4
		} else {
			fixSum(out[24:], []byte{0, j.tos}, []byte{0, j.tos&^3 | marked})
			out[15] = out[15]&^3 | marked
		}
	}
	j.translate(out)
	return sendOut(out)
}
