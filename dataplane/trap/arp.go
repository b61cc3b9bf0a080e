// Package trap is how the host agent speaks to a guest on its own account: the
// answers to frames that the datapath trapped, and ARP.
//
// It sends frames that somebody else made, and builds an ARP one. The datapath's
// ring of trapped frames is read in package bpf; what a frame means and what to
// answer is for the parent to say.
package trap

import (
	"encoding/binary"
	"net/netip"

	"replug/directory/vnet"
)

const (
	etherARP   = 0x0806
	arpRequest = 1 // RFC 826
)

// Probe asks a guest whether it has the address: the gateway's question, sent to
// the guest alone (RFC 826). All addresses are IPv4.
func Probe(gateway netip.Addr, gatewayMAC vnet.MAC, target vnet.CA, targetMAC vnet.MAC) []byte {
	f := make([]byte, 0, 14+28)
	f = append(f, targetMAC[:]...)
	f = append(f, gatewayMAC[:]...)
	f = binary.BigEndian.AppendUint16(f, etherARP)
	f = append(f, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, and the lengths of their addresses
	f = binary.BigEndian.AppendUint16(f, arpRequest)
	sender, asked := gateway.As4(), target.As4()
	f = append(f, gatewayMAC[:]...)
	f = append(f, sender[:]...)
	f = append(f, make([]byte, len(vnet.MAC{}))...) // which is the question
	return append(f, asked[:]...)
}
