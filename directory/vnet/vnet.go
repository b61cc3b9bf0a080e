// Package vnet holds the words every other package speaks: networks, addresses,
// ports, places, intents. It parses, checks and prints them, and does no I/O.
// It imports the standard library only.
package vnet

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
)

// Errors of the parsers in this package.
var (
	ErrVNI     = errors.New("not a VNI (1 to 16777215)")
	ErrCA      = errors.New("not a customer address")
	ErrPA      = errors.New("not a physical address")
	ErrMAC     = errors.New("not a unicast MAC address")
	ErrMoniker = errors.New("not a moniker (lower-case letters, digits and dashes, 1 to 63, a letter first)")
	ErrFile    = errors.New("not a file's")
	ErrEpoch   = errors.New("not an epoch (era.counter)")

	ErrPersonality = errors.New("not a personality (agent, cloud-init, cloud-init-savable, plain, ec2, openstack, nocloud)")
)

// A VNI is a VXLAN network identifier (RFC 7348, section 5), 24 bits, never 0.
type VNI uint32

// MaxVNI is the largest VNI.
const MaxVNI VNI = 1<<24 - 1

// ParseVNI reads a decimal VNI between 1 and [MaxVNI].
// It returns [ErrVNI] for a number outside that range.
func ParseVNI(s string) (VNI, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || !VNI(n).Valid() {
		return 0, fmt.Errorf("%q: %w", s, ErrVNI)
	}
	return VNI(n), nil
}

// Valid reports whether v can stand on the wire.
func (v VNI) Valid() bool { return v > 0 && v <= MaxVNI }

// Gateway6 is the IPv6 link-local address of the network's gateway. Each network
// has its own: a guest that found the one it knows after a link flap would
// conclude that it is still on the same link (RFC 6059).
func (v VNI) Gateway6() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: 0x52, 9: 0x50, 10: 0x4c, 13: byte(v >> 16), 14: byte(v >> 8), 15: byte(v)})
}

// A CA is a customer address: what a VM calls itself inside its network.
// It is not routable in the underlay.
type CA struct{ netip.Addr }

// ParseCA reads an IPv4 or IPv6 unicast address without a zone.
func ParseCA(s string) (CA, error) {
	a, err := parseUnicast(s)
	if err != nil {
		return CA{}, fmt.Errorf("%q: %w", s, ErrCA)
	}
	return CA{a}, nil
}

// A PA is a physical address: the underlay address through which a port is
// reached. It stays when the port changes its network.
// CA and PA are separate types so that one cannot be passed for the other.
type PA struct{ netip.Addr }

// ParsePA reads an IPv4 or IPv6 unicast address without a zone.
func ParsePA(s string) (PA, error) {
	a, err := parseUnicast(s)
	if err != nil {
		return PA{}, fmt.Errorf("%q: %w", s, ErrPA)
	}
	return PA{a}, nil
}

func parseUnicast(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, err
	}
	a = a.Unmap()
	if a.Zone() != "" || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return a, errors.New("not unicast")
	}
	return a, nil
}

// A Moniker is the stable name of a virtual network. Every manager but the
// networking manager knows a network only by it.
type Moniker string

var monikerForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// ParseMoniker checks the form of a moniker; it returns [ErrMoniker].
func ParseMoniker(s string) (Moniker, error) {
	if !monikerForm.MatchString(s) {
		return "", fmt.Errorf("%q: %w", s, ErrMoniker)
	}
	return Moniker(s), nil
}

// A PortID is a port's small number in one host's dataplane, 1 to [MaxPortID].
type PortID uint16

// TapPrefix begins the names of the taps that host agents make themselves.
const TapPrefix = "rp-tap"

// MaxPortID bounds the ports of one host: 14 bits of it stand in marks and in the
// addresses by which the metadata service knows its callers.
const MaxPortID PortID = 16382
