package bpf

import (
	"encoding/binary"
	"net/netip"
)

const (
	etherIPv6 = 0x86dd

	protoICMPv6   = 58
	protoSCTP     = 132
	protoFragment = 44

	flagFIN, flagSYN, flagRST, flagACK = 1, 2, 4, 16

	ndRS, ndRA, ndNS, ndNA, ndRedirect = 133, 134, 135, 136, 137
)

// An ipv6 header; zero fields get sensible values.
type ipv6 struct {
	src, dst netip.Addr
	next     byte
	tos      byte
	hops     byte
	said     int  // payload length, if not the real one
	version  byte // if not 6
}

func (h ipv6) with(payload []byte) []byte {
	v := or(h.version, 6)
	b := []byte{v<<4 | h.tos>>4, h.tos<<4 | 0x07, 0x3a, 0x9d, 0, 0, h.next, or(h.hops, 61)}
	binary.BigEndian.PutUint16(b[4:], uint16(or(h.said, len(payload))))
	src, dst := h.src.As16(), h.dst.As16()
	return append(append(append(b, src[:]...), dst[:]...), payload...)
}

// packet is a whole IP packet, of the family of src.
func packet(src, dst netip.Addr, proto byte, l4 []byte) []byte {
	if src.Is4() {
		return ipv4{src: src, dst: dst, proto: proto}.with(l4)
	}
	return ipv6{src: src, dst: dst, next: proto}.with(l4)
}

// fragment is a piece of an IP packet: offset in bytes, of the payload.
func fragment(src, dst netip.Addr, proto byte, id uint16, offset int, more bool, piece []byte) []byte {
	if src.Is4() {
		frag := uint16(offset / 8)
		if more {
			frag |= 0x2000
		}
		b := ipv4{src: src, dst: dst, proto: proto, frag: frag}.with(piece)
		binary.BigEndian.PutUint16(b[4:], id)
		sumTo(b[:20])
		return b
	}
	at := uint16(offset)
	if more {
		at |= 1
	}
	h := binary.BigEndian.AppendUint16([]byte{proto, 0}, at)
	h = binary.BigEndian.AppendUint32(h, 0x5a6b0000|uint32(id))
	return ipv6{src: src, dst: dst, next: protoFragment}.with(append(h, piece...))
}

func udpOf(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	return packet(src, dst, protoUDP, udp(src, dst, sport, dport, payload))
}

func tcpOf(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	return segment{sport: sport, dport: dport, flags: flagACK | 8, payload: payload}.of(src, dst)
}

// A segment of TCP.
type segment struct {
	sport, dport uint16
	flags        byte
	seq, ack     uint32 // 0: 0x1a2b3c4d, 0x5e6f7182
	options      []byte
	payload      []byte
}

func (s segment) bytes(src, dst netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16(nil, s.sport)
	b = binary.BigEndian.AppendUint16(b, s.dport)
	b = binary.BigEndian.AppendUint32(b, or(s.seq, 0x1a2b3c4d))
	b = binary.BigEndian.AppendUint32(b, or(s.ack, 0x5e6f7182))
	b = append(b, byte(5+len(s.options)/4)<<4, s.flags, 0x7d, 0x3a, 0, 0, 0, 0)
	b = append(append(b, s.options...), s.payload...)
	binary.BigEndian.PutUint16(b[16:], l4sum(src, dst, protoTCP, b))
	return b
}

func (s segment) of(src, dst netip.Addr) []byte {
	return packet(src, dst, protoTCP, s.bytes(src, dst))
}

// icmp is a message of the family of src, with its checksum.
func icmp(src, dst netip.Addr, kind, code byte, body []byte) []byte {
	b := append([]byte{kind, code, 0, 0}, body...)
	if src.Is4() {
		binary.BigEndian.PutUint16(b[2:], ^sum(b))
		return packet(src, dst, protoICMP, b)
	}
	binary.BigEndian.PutUint16(b[2:], l4sum(src, dst, protoICMPv6, b))
	return packet(src, dst, protoICMPv6, b)
}

// ping is an echo request with identifier 0x4e83.
func ping(src, dst netip.Addr, payload []byte) []byte {
	kind := byte(8)
	if src.Is6() {
		kind = 128
	}
	return icmp(src, dst, kind, 0, append([]byte{0x4e, 0x83, 0x29, 0x57}, payload...))
}

// unreachable is an error that says "port unreachable" about a packet.
func unreachable(src, dst netip.Addr, about []byte) []byte {
	kind, code := byte(3), byte(3)
	if src.Is6() {
		kind, code = 1, 4
	}
	return icmp(src, dst, kind, code, append([]byte{0, 0, 0, 0}, about[:min(len(about), 68)]...))
}

// nd is a message of neighbour discovery: hop limit 255, no options unless in body.
func nd(src, dst netip.Addr, kind byte, body []byte) []byte {
	b := icmp(src, dst, kind, 0, body)
	b[7] = 255
	return b
}

// solicit asks for a target's link-layer address, as a guest of that MAC does.
func solicit(src, dst, target netip.Addr, mac [6]byte) []byte {
	t := target.As16()
	body := append([]byte{0, 0, 0, 0}, t[:]...)
	if !src.IsUnspecified() {
		body = append(append(body, 1, 1), mac[:]...)
	}
	return nd(src, dst, ndNS, body)
}

// advertise says that target is at mac.
func advertise(src, dst, target netip.Addr, mac [6]byte) []byte {
	t := target.As16()
	body := append([]byte{0x60, 0, 0, 0}, t[:]...)
	return nd(src, dst, ndNA, append(append(body, 2, 1), mac[:]...))
}

// solicitedNode is the group that target's owner listens to (RFC 4291, 2.7.1).
func solicitedNode(target netip.Addr) netip.Addr {
	t := target.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
}

// frame is a packet as m's VM sends it.
func (m member) frame(packet []byte) []byte { return eth(gatewayMAC, m.mac, etherOf(packet), packet) }

// inner is a packet from m as the wire carries it to another port.
func (m member) inner(to member, packet []byte) []byte {
	return eth(to.mac, m.mac, etherOf(packet), packet)
}

// wire is a packet from m to another port with its outer headers.
func (m member) wire(to member, packet []byte) []byte {
	return tunnel{src: m.pa, dst: to.pa, vni: m.vni}.with(m.inner(to, packet))
}

func etherOf(packet []byte) uint16 {
	if packet[0]>>4 == 4 {
		return etherIPv4
	}
	return etherIPv6
}

// rightSums says what is wrong with the checksums of a frame; "": nothing.
func rightSums(frame []byte) string {
	p := frame[14:]
	var src, dst netip.Addr
	var proto byte
	var l4 []byte
	if p[0]>>4 == 4 {
		if sum(p[:20]) != 0xffff {
			return "IPv4 header checksum"
		}
		src, dst, proto, l4 = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[9], p[20:]
	} else {
		src, dst, proto, l4 = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[6], p[40:]
	}
	switch proto {
	case protoTCP, protoUDP, protoICMPv6:
		if ^l4sum(src, dst, proto, l4) != 0xffff {
			return "transport checksum"
		}
	case protoICMP:
		if sum(l4) != 0xffff {
			return "ICMP checksum"
		}
	}
	return ""
}
