package bpf

import (
	"encoding/binary"
	"net/netip"
)

const (
	unbroken = iota
	firstPiece
	laterFragment
)

// A parsed packet is what the model reads in IP and transport headers.
type parsed struct {
	v6           bool
	src, dst     netip.Addr
	proto, tos   byte
	header       int // bytes of IP headers
	payload      int // bytes behind them, as said there
	fragment     int
	fragmentID   uint32
	offset       int
	l4           []byte // from the transport header on; nil in a later fragment
	sport, dport uint16
	seq, ack     uint32
	tcpFlags     byte
	optionsLen   int
	icmpType     byte
	icmpCode     byte
	quoted       *modelKey // of the packet that an error is about, as its sender sees it
	quotes       int       // bytes of its IP header
}

// parse reads the packet behind an Ethernet header of the given type.
func parse(kind uint16, b []byte, gso int) (parsed, string) {
	var p parsed
	var why string
	var rest []byte
	switch kind {
	case etherIPv4:
		rest, why = p.parse4(b)
	case etherIPv6:
		rest, why = p.parse6(b)
	default:
		return p, "not_ip"
	}
	if why != "" {
		return p, why
	}
	if p.fragment == laterFragment {
		return p, ""
	}
	p.l4 = rest
	if !p.parseL4(rest, gso) {
		if p.fragment == firstPiece {
			return p, "fragment_tiny"
		}
		return p, "bad_l4"
	}
	return p, ""
}

func (p *parsed) parse4(b []byte) ([]byte, string) {
	if len(b) < 20 {
		return nil, "truncated"
	}
	ihl, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 != 4 || ihl < 20 || total < ihl || total > len(b) {
		return nil, "bad_ip"
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.proto, p.tos, p.header, p.payload = b[9], b[1], 20, total-20
	frag := binary.BigEndian.Uint16(b[6:])
	p.offset, p.fragmentID = int(frag&0x1fff)*8, uint32(binary.LittleEndian.Uint16(b[4:]))
	p.setFragment(frag&0x2000 != 0)
	if ihl != 20 {
		return nil, "ip_options"
	}
	return b[20:], ""
}

func (p *parsed) setFragment(more bool) {
	switch {
	case p.offset > 0:
		p.fragment = laterFragment
	case more:
		p.fragment = firstPiece
	}
}

func (p *parsed) parse6(b []byte) ([]byte, string) {
	if len(b) < 40 {
		return nil, "truncated"
	}
	p.v6, p.payload = true, int(binary.BigEndian.Uint16(b[4:]))
	if b[0]>>4 != 6 || p.payload+40 > len(b) {
		return nil, "bad_ip"
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	if p.src.Is4In6() || p.dst.Is4In6() {
		return nil, "bad_ip"
	}
	p.proto, p.tos, p.header = b[6], b[0]<<4|b[1]>>4, 40
	rest := b[40:]
	if p.proto == protoFragment {
		if len(rest) < 8 || p.payload < 8 {
			return nil, "truncated"
		}
		at := binary.BigEndian.Uint16(rest[2:])
		p.proto, p.header, p.payload = rest[0], 48, p.payload-8
		p.offset, p.fragmentID = int(at&0xfff8), binary.LittleEndian.Uint32(rest[4:])
		p.setFragment(at&1 != 0)
		rest = rest[8:]
	}
	switch p.proto {
	case 0, 43, protoFragment, 60, 135:
		return nil, "ip_options"
	}
	return rest, ""
}

// parseL4 reads the transport header; false: it is cut off or lies.
func (p *parsed) parseL4(b []byte, gso int) bool {
	need := map[byte]int{protoTCP: 20, protoUDP: 8, protoICMP: 8, protoICMPv6: 8, protoSCTP: 12}[p.proto]
	if len(b) < need || p.payload < need {
		return false
	}
	ports := func() { p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]) }
	switch p.proto {
	case protoTCP:
		words := int(b[12]>>4) * 4
		if words < 20 || p.fragment == unbroken && p.payload < words {
			return false
		}
		ports()
		p.seq, p.ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
		p.tcpFlags, p.optionsLen = b[13], words-20
	case protoUDP:
		n := int(binary.BigEndian.Uint16(b[4:]))
		if p.fragment == unbroken && gso == 0 && (n < 8 || n > p.payload) {
			return false
		}
		ports()
	case protoSCTP:
		ports()
	case protoICMP, protoICMPv6:
		if p.v6 != (p.proto == protoICMPv6) {
			return false
		}
		p.parseICMP(b)
	}
	return true
}

func (p *parsed) parseICMP(b []byte) {
	p.icmpType, p.icmpCode = b[0], b[1]
	switch {
	case !p.v6 && (b[0] == 8 || b[0] == 0), p.v6 && (b[0] == 128 || b[0] == 129):
		p.sport = binary.BigEndian.Uint16(b[4:])
		p.dport = p.sport
	case p.isError():
		p.parseQuote(b[8:])
	}
}

func (p *parsed) isICMP() bool {
	return !p.v6 && p.proto == protoICMP || p.v6 && p.proto == protoICMPv6
}

func (p *parsed) isEchoRequest() bool {
	return p.isICMP() && p.icmpType == map[bool]byte{false: 8, true: 128}[p.v6]
}

func (p *parsed) isEcho() bool {
	return p.isEchoRequest() || p.isICMP() && p.icmpType == map[bool]byte{false: 0, true: 129}[p.v6]
}

func (p *parsed) isError() bool {
	if p.proto == protoICMP {
		return p.icmpType == 3 || p.icmpType == 11 || p.icmpType == 12
	}
	return p.proto == protoICMPv6 && p.icmpType >= 1 && p.icmpType <= 4
}

func (p *parsed) parseQuote(b []byte) {
	k := modelKey{}
	switch {
	case p.v6 && len(b) >= 48:
		k.local, k.remote = netip.AddrFrom16([16]byte(b[8:])).Unmap(), netip.AddrFrom16([16]byte(b[24:])).Unmap()
		k.proto, b = b[6], b[40:]
		p.quotes = 40
		if k.proto == protoFragment {
			if len(b) < 16 || binary.BigEndian.Uint16(b[2:])&0xfff8 != 0 {
				return
			}
			k.proto, b = b[0], b[8:]
			p.quotes = 48
		}
	case !p.v6 && len(b) >= 28 && b[0]&15 == 5:
		k.local, k.remote = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		k.proto, b = b[9], b[20:]
		p.quotes = 20
	default:
		return
	}
	k.lport, k.rport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if k.proto == protoICMP || k.proto == protoICMPv6 {
		k.lport = binary.BigEndian.Uint16(b[4:])
		k.rport = k.lport
	}
	p.quoted = &k
}
