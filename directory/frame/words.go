package frame

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"replug/directory/vnet"
)

// A Tuple says between whom a packet is.
type Tuple struct {
	Protocol vnet.Protocol  `json:"protocol"`
	Src      netip.AddrPort `json:"src"` // port 0: the packet has none
	Dst      netip.AddrPort `json:"dst"`
}

// String prints "tcp 10.0.0.5:50000 > 10.0.0.9:443".
func (t Tuple) String() string {
	return fmt.Sprintf("%s %s > %s", t.Protocol, end(t.Src), end(t.Dst))
}

func end(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

// A header is one header of a frame, in words.
type header struct {
	words string
	tuple Tuple // of an IP packet
	isIP  bool
	short bool // it runs past the end of the frame
}

// Words says what is in a frame, a line for each header; of VXLAN also the inner
// frame's. What is cut off or not known is said as such.
func Words(b []byte) []string {
	var lines []string
	for _, h := range parse(b, true) {
		lines = append(lines, h.words)
	}
	return lines
}

// TupleOf returns between whom a frame's IP packet is, the outer one of VXLAN;
// false for a frame that is no readable IP.
func TupleOf(b []byte) (Tuple, bool) {
	for _, h := range parse(b, false) {
		if h.isIP && !h.short {
			return h.tuple, true
		}
	}
	return Tuple{}, false
}

// Inner returns the frame inside of VXLAN over IP over Ethernet, with the VNI.
func Inner(b []byte) (inner []byte, vni vnet.VNI, ok bool) {
	at := etherLen
	switch {
	case len(b) >= at+ip4Len && kind(b) == typeIPv4 && b[at+9] == byte(vnet.UDP):
		at += headerLen(b[at:])
	case len(b) >= at+ip6Len && kind(b) == typeIPv6 && b[at+6] == byte(vnet.UDP):
		at += ip6Len
	default:
		return nil, 0, false
	}
	if len(b) < at+16 || binary.BigEndian.Uint16(b[at+2:]) != vxlanPort {
		return nil, 0, false
	}
	return b[at+16:], vnet.VNI(binary.BigEndian.Uint32(b[at+12:]) >> 8), true
}

const vxlanPort = 4789 // RFC 7348

func kind(b []byte) uint16 { return binary.BigEndian.Uint16(b[12:]) }

func short(what string, n int) []header {
	return []header{{words: fmt.Sprintf("%s: cut off after %d bytes", what, n), short: true}}
}

func parse(b []byte, inner bool) []header {
	if len(b) < etherLen {
		return short("Ethernet", len(b))
	}
	out := []header{{words: fmt.Sprintf("Ethernet %s > %s", vnet.MAC(b[6:12]), vnet.MAC(b[:6]))}}
	t, rest := kind(b), b[etherLen:]
	for (t == typeVLAN || t == typeQinQ) && len(rest) >= 4 {
		out = append(out, header{words: fmt.Sprintf("VLAN %d", binary.BigEndian.Uint16(rest)&0xfff)})
		t, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	switch t {
	case typeIPv4:
		return append(out, ipv4(rest, inner)...)
	case typeIPv6:
		return append(out, ipv6(rest, inner)...)
	case typeARP:
		return append(out, arp(rest)...)
	}
	return append(out, header{words: fmt.Sprintf("type %#04x, %d bytes", t, len(rest))})
}

func arp(b []byte) []header {
	if len(b) < 28 {
		return short("ARP", len(b))
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	words := fmt.Sprintf("ARP operation %d", binary.BigEndian.Uint16(b[6:]))
	switch binary.BigEndian.Uint16(b[6:]) {
	case 1:
		words = fmt.Sprintf("ARP who has %s? tell %s", target, sender)
	case 2:
		words = fmt.Sprintf("ARP %s is at %s", sender, vnet.MAC(b[8:14]))
	}
	return []header{{words: words}}
}

func ipv4(b []byte, inner bool) []header {
	if len(b) < ip4Len || len(b) < headerLen(b) {
		return short("IPv4", len(b))
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	words := fmt.Sprintf("IPv4 %s > %s, %d bytes, TTL %d%s", src, dst, binary.BigEndian.Uint16(b[2:]), b[8], congestion(b[1]))
	fragment := binary.BigEndian.Uint16(b[6:])
	if fragment&0x4000 != 0 {
		words += ", don't fragment"
	}
	rest := b[headerLen(b):]
	if fragment&0x3fff == 0 {
		return packet(words, vnet.Protocol(b[9]), src, dst, rest, inner)
	}
	words += fmt.Sprintf(", fragment at %d", int(fragment&0x1fff)*8)
	if fragment&0x1fff != 0 { // no ports in it
		return []header{ipHeader(words, vnet.Protocol(b[9]), src, dst, nil)}
	}
	return packet(words, vnet.Protocol(b[9]), src, dst, rest, false)
}

// headerLen is what an IPv4 header says of its length, or the least it can have.
func headerLen(b []byte) int { return max(int(b[0]&15)*4, ip4Len) }

func ipv6(b []byte, inner bool) []header {
	if len(b) < ip6Len {
		return short("IPv6", len(b))
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	words := fmt.Sprintf("IPv6 %s > %s, %d bytes, hop limit %d%s", src, dst, ip6Len+int(binary.BigEndian.Uint16(b[4:])), b[7],
		congestion(b[0]<<4|b[1]>>4))
	return packet(words, vnet.Protocol(b[6]), src, dst, b[ip6Len:], inner)
}

// congestion names the ECN field (RFC 3168) when it says something.
func congestion(tos byte) string {
	return [...]string{"", ", ECT(1)", ", ECT(0)", ", congestion"}[tos&3]
}

func ipHeader(words string, p vnet.Protocol, src, dst netip.Addr, ports []byte) header {
	h := header{words: words, isIP: true, tuple: Tuple{Protocol: p, Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0)}}
	if p.HasPorts() && len(ports) >= 4 {
		h.tuple.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(ports))
		h.tuple.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ports[2:]))
	}
	return h
}

func packet(words string, p vnet.Protocol, src, dst netip.Addr, b []byte, inner bool) []header {
	out := []header{ipHeader(words, p, src, dst, b)}
	need := map[vnet.Protocol]int{vnet.TCP: 20, vnet.UDP: 8, vnet.SCTP: 12, vnet.ICMP: 8, vnet.ICMPv6: 8}[p]
	if len(b) < need {
		return append(out, short(strings.ToUpper(p.String()), len(b))...)
	}
	switch p {
	case vnet.TCP:
		return append(out, header{words: fmt.Sprintf("TCP %d > %d [%s]", port(b), port(b[2:]), Flags(b[13]))})
	case vnet.UDP:
		return append(out, udp(b, inner)...)
	case vnet.SCTP:
		return append(out, header{words: fmt.Sprintf("SCTP %d > %d", port(b), port(b[2:]))})
	case vnet.ICMP, vnet.ICMPv6:
		return append(out, header{words: icmp(p, b)})
	}
	return append(out, header{words: fmt.Sprintf("protocol %s, %d bytes", p, len(b))})
}

func port(b []byte) uint16 { return binary.BigEndian.Uint16(b) }

func udp(b []byte, inner bool) []header {
	out := []header{{words: fmt.Sprintf("UDP %d > %d, %d bytes", port(b), port(b[2:]), port(b[4:]))}}
	if !inner || port(b[2:]) != vxlanPort {
		return out
	}
	if len(b) < 16 {
		return append(out, short("VXLAN", len(b)-8)...)
	}
	out = append(out, header{words: fmt.Sprintf("VXLAN VNI %d", binary.BigEndian.Uint32(b[12:])>>8)})
	return append(out, parse(b[16:], false)...)
}

// icmp names the messages that the datapath sends or asks about.
func icmp(p vnet.Protocol, b []byte) string {
	kinds := map[vnet.Protocol]map[byte]string{
		vnet.ICMP: {0: "echo reply", 3: "unreachable", echo4: "echo request", 11: "time exceeded"},
		vnet.ICMPv6: {1: "unreachable", 2: "packet too big", 3: "time exceeded", echo6: "echo request", 129: "echo reply",
			133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation", 136: "neighbour advertisement"},
	}
	name := map[vnet.Protocol]string{vnet.ICMP: "ICMP", vnet.ICMPv6: "ICMPv6"}[p]
	words := fmt.Sprintf("%s type %d code %d", name, b[0], b[1])
	if k := kinds[p][b[0]]; k != "" {
		words = name + " " + k
	}
	switch {
	case p == vnet.ICMP && b[0] == 3 && b[1] == 4: // RFC 1191
		words += fmt.Sprintf(": too big, MTU %d", port(b[6:]))
	case p == vnet.ICMPv6 && b[0] == 2:
		words += fmt.Sprintf(", MTU %d", binary.BigEndian.Uint32(b[4:]))
	}
	return words
}
