package vnet

import (
	"encoding/hex"
	"fmt"
	"net"
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
