package nd

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"replug/directory/vnet"
)

// Lifetime is for how long a guest believes an advertisement. It is short, so
// that a guest that heard nothing of a swap forgets the former router by itself,
// and long enough for an agent that is away for some time: its absence must take
// no guest off the network.
const Lifetime = 30 * time.Minute

const (
	// retransTimer is how long a guest waits for an answer to a solicitation (ms).
	// The datapath answers at once; and a guest waits that long, instead of a
	// second, until it takes a new address for its own (RFC 4862, section 5.4).
	retransTimer = 100
	guestHops    = 64
	maxPrefixes  = 8
	maxDomain    = 253
	minMTU       = 1280 // RFC 8200, section 5
)

// A Router is what a guest is told of its network's IPv6 router. It is kept, so
// that it can be taken back.
type Router struct {
	VNI      vnet.VNI     `json:"vni"`
	MTU      uint16       `json:"mtu,omitempty"`
	Managed  bool         `json:"managed,omitempty"` // addresses come by DHCPv6
	Prefixes []Prefix     `json:"prefixes,omitempty"`
	DNS      []netip.Addr `json:"dns,omitempty"`
	Domain   string       `json:"domain,omitempty"`
}

// A Prefix is a subnet of the network. SLAAC: a guest makes its address from it.
type Prefix struct {
	Subnet netip.Prefix `json:"subnet"`
	SLAAC  bool         `json:"slaac,omitempty"`
}

// RouterOf returns what the router says at a place; false if there is no IPv6.
// mtu is used where the place says nothing.
func RouterOf(place *vnet.Place, mtu uint16) (Router, bool) {
	r := Router{VNI: place.VNI, MTU: place.MTU, Domain: place.DHCP.Domain}
	if r.MTU == 0 {
		r.MTU = mtu
	}
	for _, a := range place.Addrs {
		if !a.CA.Is6() {
			continue
		}
		r.Managed = r.Managed || !a.SLAAC
		p := Prefix{a.Prefix(), a.SLAAC}
		if !slices.Contains(r.Prefixes, p) && len(r.Prefixes) < maxPrefixes {
			r.Prefixes = append(r.Prefixes, p)
		}
	}
	for _, a := range place.DHCP.DNS {
		if a.Is6() && len(r.DNS) < vnet.MaxServers {
			r.DNS = append(r.DNS, a)
		}
	}
	return r, len(r.Prefixes) > 0
}

// Advertise returns the advertisement for a guest, to one address of it or, with
// the zero address, to all nodes of its link.
func (r Router) Advertise(mac vnet.MAC, to netip.Addr) []byte {
	return r.frame(mac, to, Lifetime, r.flags(), r.said(Lifetime))
}

// Withdraw returns the advertisement that takes back whatever r said and now does
// not say: its prefixes and name servers, and itself, if now is another network's.
// The zero Router says nothing.
func (r Router) Withdraw(now Router, mac vnet.MAC, to netip.Addr) []byte {
	gone := r
	gone.MTU = 0
	gone.Prefixes = slices.DeleteFunc(slices.Clone(r.Prefixes), func(p Prefix) bool {
		return slices.ContainsFunc(now.Prefixes, func(n Prefix) bool { return n.Subnet == p.Subnet })
	})
	gone.DNS = slices.DeleteFunc(slices.Clone(r.DNS), func(a netip.Addr) bool { return slices.Contains(now.DNS, a) })
	if gone.Domain == now.Domain {
		gone.Domain = ""
	}
	lifetime := time.Duration(0)
	if r.VNI == now.VNI {
		lifetime = Lifetime // it stays the guest's router
	}
	return gone.frame(mac, to, lifetime, now.flags(), gone.said(0))
}

// flags say whether DHCPv6 has addresses, and whether it has anything else. The
// guest heeds those that it heard last, whoever sent them.
func (r Router) flags() byte {
	const managed, other = 0x80, 0x40
	switch {
	case len(r.Prefixes) == 0:
		return 0
	case r.Managed:
		return managed | other
	}
	return other
}

// frame is an advertisement with these options (RFC 4861, section 4.2).
func (r Router) frame(mac vnet.MAC, to netip.Addr, lifetime time.Duration, flags byte, options []byte) []byte {
	if !to.IsValid() {
		to = allNodes
	}
	icmp := append(make([]byte, 0, 256), routerAdvert, 0, 0, 0, guestHops, flags)
	icmp = binary.BigEndian.AppendUint16(icmp, uint16(lifetime/time.Second))
	icmp = append(icmp, 0, 0, 0, 0) // reachable time: the guest's own
	icmp = binary.BigEndian.AppendUint32(icmp, retransTimer)
	icmp = append(icmp, optSourceMAC, 1)
	icmp = append(icmp, vnet.GatewayMAC[:]...)
	return encode(r.VNI.Gateway6(), to, mac, append(icmp, options...))
}

// said is what r says beside being there, with the lifetime of all of it.
func (r Router) said(lifetime time.Duration) []byte {
	var b []byte
	seconds := uint32(lifetime / time.Second)
	if r.MTU >= minMTU {
		b = append(b, optMTU, 1, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, r.MTU)
	}
	for _, p := range r.Prefixes {
		b = append(b, p.option(seconds)...)
	}
	if len(r.DNS) > 0 {
		b = append(b, optDNS, byte(1+2*len(r.DNS)), 0, 0)
		b = binary.BigEndian.AppendUint32(b, seconds)
		for _, a := range r.DNS {
			b = append(b, a.AsSlice()...)
		}
	}
	if name := labels(r.Domain); name != nil {
		b = append(b, optDomains, byte(1+len(name)/8), 0, 0)
		b = binary.BigEndian.AppendUint32(b, seconds)
		b = append(b, name...)
	}
	return b
}

// option says that the prefix is on the link: the datapath answers for all its
// addresses, as it does for those of an IPv4 subnet (RFC 4861, section 4.6.2).
func (p Prefix) option(seconds uint32) []byte {
	const onLink, autonomous = 0x80, 0x40
	flags := byte(onLink)
	if p.SLAAC {
		flags |= autonomous
	}
	b := append(make([]byte, 0, 32), optPrefix, 4, byte(p.Subnet.Bits()), flags)
	b = binary.BigEndian.AppendUint32(b, seconds) // valid
	b = binary.BigEndian.AppendUint32(b, seconds) // preferred
	b = append(b, 0, 0, 0, 0)
	return append(b, p.Subnet.Addr().AsSlice()...)
}

// labels is a domain name on the wire (RFC 1035, section 3.1), filled up to a
// multiple of eight; nil if it is none.
func labels(name string) []byte {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxDomain {
		return nil
	}
	var b []byte
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 {
			return nil
		}
		b = append(append(b, byte(len(label))), label...)
	}
	b = append(b, 0)
	return append(b, make([]byte, (8-len(b)%8)%8)...)
}

// ParseSolicit reads a guest's Router Solicitation and returns where the answer
// goes: the guest's link-local address, or none if it has none yet. It returns
// [ErrInvalid].
func ParseSolicit(frame []byte) (to netip.Addr, err error) {
	m, err := decode(frame, routerSolicit, 4)
	if err != nil {
		return netip.Addr{}, err
	}
	_, named := m.options[optSourceMAC]
	switch {
	case m.src.IsUnspecified() && !named:
		return netip.Addr{}, nil
	case m.src.IsLinkLocalUnicast():
		return m.src, nil
	}
	return netip.Addr{}, fmt.Errorf("solicited from %s: %w", m.src, ErrInvalid)
}
