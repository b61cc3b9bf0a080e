package frame

import (
	"encoding/binary"
	"net/netip"

	"replug/directory/vnet"
)

// Flags of TCP that programs ask for by name.
const (
	FIN Flags = 1 << 0
	SYN Flags = 1 << 1
	RST Flags = 1 << 2
	ACK Flags = 1 << 4
)

// A Segment is the header of a TCP segment, with its ends.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Flags    Flags
}

// SegmentOf reads the TCP header of an Ethernet frame; false for anything else. It
// checks no checksums: the datapath does not either.
func SegmentOf(b []byte) (Segment, bool) {
	t, ok := TupleOf(b)
	if !ok || t.Protocol != vnet.TCP {
		return Segment{}, false
	}
	at := etherLen + ip6Len
	if t.Src.Addr().Is4() {
		at = etherLen + headerLen(b[etherLen:])
	}
	if kind(b) != typeIPv4 && kind(b) != typeIPv6 || len(b) < at+20 {
		return Segment{}, false
	}
	tcp := b[at:]
	return Segment{Src: t.Src, Dst: t.Dst, Seq: binary.BigEndian.Uint32(tcp[4:]), Ack: binary.BigEndian.Uint32(tcp[8:]),
		Flags: Flags(tcp[13])}, true
}

// An Outer says between which hosts an encapsulated frame goes.
type Outer struct {
	SrcMAC, DstMAC vnet.MAC
	Src, Dst       netip.Addr
	VNI            vnet.VNI
}

const (
	udpLen   = 8
	vxlanLen = 8
)

// Encapsulate puts a frame into VXLAN (RFC 7348). The source port tells flows
// apart, as the RFC wants it (section 5). Over IPv6 the UDP checksum is there:
// not every receiver does without.
func Encapsulate(o Outer, inner []byte) []byte {
	s := Spec{SrcMAC: o.SrcMAC, DstMAC: o.DstMAC, Src: o.Src, Dst: o.Dst, Protocol: vnet.UDP}
	network := ip4Len
	if o.Src.Is6() {
		network = ip6Len
	}
	b := make([]byte, etherLen+network+udpLen+vxlanLen+len(inner))
	copy(b, o.DstMAC[:])
	copy(b[6:], o.SrcMAC[:])
	udp := b[etherLen+network:]
	s.network(b, len(udp))
	binary.BigEndian.PutUint16(udp, 0xc000|fold(add(0, inner[:min(len(inner), 64)]))>>2)
	binary.BigEndian.PutUint16(udp[2:], vxlanPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	udp[udpLen] = 8 // the VNI is valid
	binary.BigEndian.PutUint32(udp[udpLen+4:], uint32(o.VNI)<<8)
	copy(udp[udpLen+vxlanLen:], inner)
	if o.Src.Is6() {
		s.checksum(udp, 6)
	}
	return b
}
