package vnet

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// A MAC is an Ethernet address (IEEE 802), in wire order.
type MAC [6]byte

// ParseMAC reads six octets ("02:52:0a:01:02:03"). It refuses the zero address
// and group addresses with [ErrMAC]: neither can be a port.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q: %w", s, ErrMAC)
	}
	m := MAC(hw)
	if m == (MAC{}) || m[0]&1 == 1 {
		return MAC{}, fmt.Errorf("%q: %w", s, ErrMAC)
	}
	return m, nil
}

// String prints the colon form, in lower case.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText prints m as [MAC.String] does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what [ParseMAC] reads, and "00:00:00:00:00:00" as none.
func (m *MAC) UnmarshalText(b []byte) error {
	if string(b) == (MAC{}).String() {
		*m = MAC{}
		return nil
	}
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// EUI64 is the address that a host with this MAC makes itself in a /64 (RFC 4291,
// appendix A); false for any other prefix.
func (m MAC) EUI64(p netip.Prefix) (CA, bool) {
	if p.Bits() != 64 || !p.Addr().Is6() {
		return CA{}, false
	}
	a := p.Masked().Addr().As16()
	copy(a[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return CA{netip.AddrFrom16(a)}, true
}

// GatewayMAC is the one gateway address of every virtual network on every host.
// A guest that moves finds the same neighbour in its new network.
var GatewayMAC = MAC{0x02, 0x52, 0x50, 0x4c, 0x47, 0x57}

// PortMAC makes the MAC of the n-th port ever made: locally administered,
// unicast, the prefix 02:52, then n.
func PortMAC(n uint32) MAC {
	m := MAC{0x02, 0x52}
	_, _ = hex.Decode(m[2:], fmt.Appendf(nil, "%08x", n))
	return m
}
