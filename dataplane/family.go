package dataplane

import (
	"time"

	"replug/directory/vnet"
)

// A family is one of the two kinds of addresses. A guest is in its place when it
// was seen on an address of each family that the place has and that it is known to
// speak: its clients for the two are different programs, and one may follow without
// the other.
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

// A speech is what is known of a guest in a family.
type speech uint8

// Stored in records.
const (
	unknown speech = 0 // it had no occasion yet
	speaks  speech = 1 // it has leased an address of the family, or answered for one
	silent  speech = 2 // it was in a place that has the family, and showed only the other
)

// companion is how long a family of which nothing is known is waited for once the
// guest was seen in the other: a router is looked for first (RFC 4861, section
// 6.3.7), and a client may wait a second before it asks (RFC 8415, section 18.2.1).
const companion = 3 * time.Second

// heard is what is known of the guest's families at the end of a walk.
func (p *port) heard(r *run) [2]speech {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := r.Speaks
	for _, f := range []family{ipv4, ipv6} {
		if !r.ack(f).IsZero() || !p.events.acks[f].in(r).IsZero() || !p.events.answers[f].in(r).IsZero() {
			list[f] = speaks
		}
	}
	return list
}

// without reports whether the guest is in its place although it was not seen in
// these families: it has none of them, or what is not known had its time.
func (r *run) without(absent []family) bool {
	for _, f := range absent {
		if r.Speaks[f] == speaks || r.Speaks[f] == unknown && time.Since(r.half) < companion {
			return false
		}
	}
	return true
}

// String names the family in hops.
func (f family) String() string {
	if f == ipv6 {
		return "IPv6"
	}
	return "IPv4"
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
