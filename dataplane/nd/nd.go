// Package nd speaks Neighbour Discovery (RFC 4861) with one guest in the name of
// its network's gateway: it advertises the router, takes the former one back, and
// asks whether the guest has an address. Each message is a pure function of the
// place.
//
// It does no I/O, keeps no state, and leaves the neighbours of a guest to the
// datapath, which answers for them. When something is to be said is its caller's
// business.
package nd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"replug/directory/vnet"
)

// ErrInvalid is a frame that RFC 4861 wants discarded, or no Neighbour Discovery.
var ErrInvalid = errors.New("not a valid Neighbour Discovery message")

const (
	etherLen  = 14
	ipv6Len   = 40
	etherIPv6 = 0x86dd
	icmpv6    = 58
	hopLimit  = 255 // what a router has forwarded has less

	routerSolicit   = 133
	routerAdvert    = 134
	neighbourSol    = 135
	neighbourAdvert = 136

	optSourceMAC = 1
	optPrefix    = 3
	optMTU       = 5
	optDNS       = 25 // RFC 8106
	optDomains   = 31 // RFC 8106
)

// allNodes is every host of the link.
var allNodes = netip.MustParseAddr("ff02::1")

// encode puts an ICMPv6 message, whose checksum is still 0, into IPv6 and Ethernet.
func encode(src, dst netip.Addr, mac vnet.MAC, icmp []byte) []byte {
	f := make([]byte, 0, etherLen+ipv6Len+len(icmp))
	if dst.IsMulticast() {
		group := dst.As16()
		mac = vnet.MAC{0x33, 0x33, group[12], group[13], group[14], group[15]} // RFC 2464, section 7
	}
	f = append(f, mac[:]...)
	f = append(f, vnet.GatewayMAC[:]...)
	f = binary.BigEndian.AppendUint16(f, etherIPv6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(icmp)))
	f = append(f, icmpv6, hopLimit)
	f = append(f, src.AsSlice()...)
	f = append(f, dst.AsSlice()...)
	f = append(f, icmp...)
	binary.BigEndian.PutUint16(f[etherLen+ipv6Len+2:], ^sum(f[etherLen:]))
	return f
}

// sum is the ones' complement sum of an ICMPv6 packet and its pseudo header
// (RFC 8200, section 8.1).
func sum(ip []byte) uint16 {
	s := uint32(icmpv6) + uint32(len(ip)-ipv6Len)
	for i, b := range ip[8:] {
		s += uint32(b) << (8 * (1 - i%2))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// A message is a Neighbour Discovery message as it came from a guest.
type message struct {
	src, dst netip.Addr
	fixed    []byte          // after the checksum
	options  map[byte][]byte // the last of each type, without type and length
}

// decode reads an untagged frame with a message of one type, and checks what RFC
// 4861 (sections 6.1.1, 7.1.2) wants checked. fixed is how long the message is
// between checksum and options.
func decode(frame []byte, kind byte, fixed int) (message, error) {
	if len(frame) < etherLen+ipv6Len || binary.BigEndian.Uint16(frame[12:]) != etherIPv6 || frame[etherLen]>>4 != 6 {
		return message{}, fmt.Errorf("%d bytes that are no IPv6: %w", len(frame), ErrInvalid)
	}
	ip := frame[etherLen:]
	size := int(binary.BigEndian.Uint16(ip[4:]))
	if size < 4+fixed || size > len(ip)-ipv6Len {
		return message{}, fmt.Errorf("payload length %d, frame holds %d: %w", size, len(ip)-ipv6Len, ErrInvalid)
	}
	ip = ip[:ipv6Len+size]
	icmp := ip[ipv6Len:]
	switch {
	case ip[6] != icmpv6 || icmp[0] != kind || icmp[1] != 0:
		return message{}, fmt.Errorf("next header %d, type %d, code %d: %w", ip[6], icmp[0], icmp[1], ErrInvalid)
	case ip[7] != hopLimit:
		return message{}, fmt.Errorf("hop limit %d, from another link: %w", ip[7], ErrInvalid)
	case sum(ip) != 0xffff:
		return message{}, fmt.Errorf("wrong checksum: %w", ErrInvalid)
	}
	m := message{
		src: netip.AddrFrom16([16]byte(ip[8:])), dst: netip.AddrFrom16([16]byte(ip[24:])),
		fixed: icmp[4 : 4+fixed], options: map[byte][]byte{},
	}
	for opts := icmp[4+fixed:]; len(opts) > 0; {
		if len(opts) < 2 || opts[1] == 0 || int(opts[1])*8 > len(opts) {
			return message{}, fmt.Errorf("option of no length, or past the end: %w", ErrInvalid)
		}
		n := int(opts[1]) * 8
		m.options[opts[0]] = opts[2:n]
		opts = opts[n:]
	}
	return m, nil
}
