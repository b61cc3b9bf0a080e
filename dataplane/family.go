package dataplane

import (
	"time"

	"replug/directory/vnet"
)

// A family is one of the two kinds of addresses. A guest is in its place when it
// was seen on an address of each family that the place has: its clients for the
// two are different programs, and one may follow without the other.
type family uint8

const (
	ipv4 family = 0
	ipv6 family = 1
)

func familyOf(ca vnet.CA) family {
	if ca.Is6() {
		return ipv6
	}
	return ipv4
}

// families lists those of a place.
func families(p *vnet.Place) []family {
	var list []family
	if _, ok := p.V4(); ok {
		list = append(list, ipv4)
	}
	if _, ok := p.V6(); ok {
		list = append(list, ipv6)
	}
	return list
}

// leasing lists the families whose addresses a guest leases at a place: it makes
// those of SLAAC itself.
func leasing(p *vnet.Place) []family {
	list := families(p)
	if a, ok := p.V6(); ok && a.SLAAC {
		list = list[:len(list)-1] // IPv6 comes last
	}
	return list
}

// A moment is when something happened, and in which epoch.
type moment struct {
	at    time.Time
	epoch vnet.Epoch
}

// in returns the moment if it is later than the flip to the epoch, else zero.
func (m moment) in(r *run) time.Time {
	if m.epoch != r.Epoch || !m.at.After(r.Flipped) {
		return time.Time{}
	}
	return m.at
}

// ack is when a lease of the family was acknowledged after the flip; zero: not yet.
func (r *run) ack(f family) *time.Time {
	if f == ipv6 {
		return &r.ACK6
	}
	return &r.ACK
}

// leaseHop names the step that a lease of the family is.
func (f family) leaseHop() string {
	if f == ipv6 {
		return "dhcpv6"
	}
	return "dhcp"
}
