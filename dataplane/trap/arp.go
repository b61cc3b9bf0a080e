// Package trap is how the host agent speaks to a guest on its own account: the
// answers to frames that the datapath trapped, and ARP.
//
// It sends frames that somebody else made, and builds ARP ones. The datapath's
// ring of trapped frames is read in package bpf; what a frame means and what to
// answer is for the parent to say.
package trap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"replug/directory/vnet"
)

// ErrARP is a frame that is no ARP for IPv4 over Ethernet.
var ErrARP = errors.New("not ARP for IPv4 over Ethernet")

// The operations (RFC 826).
const (
	ARPRequest uint16 = 1
	ARPAnswer  uint16 = 2
)

const (
	etherARP = 0x0806
	arpLen   = 14 + 28
)

// An ARP is an ARP packet for IPv4 over Ethernet (RFC 826).
type ARP struct {
	Op        uint16
	SenderMAC vnet.MAC
	SenderIP  netip.Addr
	TargetMAC vnet.MAC // zero in a request
	TargetIP  netip.Addr
}

// Probe asks a guest whether it has the address: the gateway's question, sent to
// the guest alone. All addresses are IPv4.
func Probe(gateway netip.Addr, gatewayMAC vnet.MAC, target vnet.CA, targetMAC vnet.MAC) []byte {
	return ARP{Op: ARPRequest, SenderMAC: gatewayMAC, SenderIP: gateway, TargetIP: target.Addr}.frame(targetMAC)
}

// Announce tells a guest that ip is at mac, unasked (RFC 5227, section 2.3).
func Announce(ip netip.Addr, mac vnet.MAC) []byte {
	return ARP{Op: ARPRequest, SenderMAC: mac, SenderIP: ip, TargetIP: ip}.frame(vnet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
}

func (a ARP) frame(dst vnet.MAC) []byte {
	f := make([]byte, 0, arpLen)
	f = append(f, dst[:]...)
	f = append(f, a.SenderMAC[:]...)
	f = binary.BigEndian.AppendUint16(f, etherARP)
	f = append(f, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, and the lengths of their addresses
	f = binary.BigEndian.AppendUint16(f, a.Op)
	sender, target := a.SenderIP.As4(), a.TargetIP.As4()
	f = append(f, a.SenderMAC[:]...)
	f = append(f, sender[:]...)
	f = append(f, a.TargetMAC[:]...)
	return append(f, target[:]...)
}

// ParseARP reads an untagged frame; it may be padded. It returns [ErrARP].
func ParseARP(frame []byte) (ARP, error) {
	if len(frame) < arpLen {
		return ARP{}, fmt.Errorf("%d bytes: %w", len(frame), ErrARP)
	}
	b := frame[14:]
	if binary.BigEndian.Uint16(frame[12:]) != etherARP || [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} {
		return ARP{}, fmt.Errorf("EtherType and types % x % x: %w", frame[12:14], b[:6], ErrARP)
	}
	return ARP{
		Op:        binary.BigEndian.Uint16(b[6:]),
		SenderMAC: vnet.MAC(b[8:]),
		SenderIP:  netip.AddrFrom4([4]byte(b[14:])),
		TargetMAC: vnet.MAC(b[18:]),
		TargetIP:  netip.AddrFrom4([4]byte(b[24:])),
	}, nil
}
