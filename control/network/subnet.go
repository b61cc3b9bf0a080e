package network

import (
	"fmt"
	"net/netip"

	"replug/directory/vnet"
)

// A Subnet is a range of CAs with its gateway: of IPv4 an address of the subnet, of
// IPv6 the network's own link-local one ([vnet.VNI.Gateway6]).
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix"`
	Gateway netip.Addr   `json:"gateway"`
	// SLAAC lets guests make their address from the prefix that the router
	// advertises, a /64. It is the one that their MAC says: no other is known before.
	SLAAC bool `json:"slaac,omitempty"`
}

// reserved ranges can't be customer addresses: the host or IP itself means
// something else by them.
var reserved = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "RFC 1122: this host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "RFC 1122: loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "RFC 3927: link-local, the metadata service is there"},
	{netip.MustParsePrefix("168.63.129.16/32"), "guests made for Azure ask for metadata there"},
	{netip.MustParsePrefix("224.0.0.0/4"), "RFC 5771: multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "RFC 1112: reserved, the host knows metadata callers by it"},
	{netip.MustParsePrefix("::/8"), "RFC 4291: unspecified, loopback and IPv4 in IPv6"},
	{netip.MustParsePrefix("fe80::/10"), "RFC 4291: link-local, every guest makes its own and the gateway is there"},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "the metadata service is there"},
	{netip.MustParsePrefix("fd52:5047::/32"), "the host knows metadata callers by it"},
	{netip.MustParsePrefix("ff00::/8"), "RFC 4291: multicast"},
}

// unreserved returns an error when p has a reserved address.
func unreserved(what string, p netip.Prefix) error {
	for _, r := range reserved {
		if r.prefix.Overlaps(p) {
			return fmt.Errorf("%w %s %s: %s is reserved (%s)", ErrInvalid, what, p, r.prefix, r.why)
		}
	}
	return nil
}

func (s *Subnet) complete() error {
	p := s.Prefix
	switch {
	case !p.IsValid():
		return fmt.Errorf("%w subnet: not a prefix, write it as in 10.0.0.0/24 or fd00:17::/64", ErrInvalid)
	case p.Addr().Is4In6() || p.Addr().Zone() != "":
		return fmt.Errorf("%w subnet %s: neither an IPv4 prefix nor a plain IPv6 one", ErrInvalid, p)
	case p != p.Masked():
		return fmt.Errorf("%w subnet %s: host bits are set; write %s", ErrInvalid, p, p.Masked())
	}
	if err := unreserved("subnet", p); err != nil {
		return err
	}
	if p.Addr().Is4() {
		return s.complete4()
	}
	return s.complete6()
}

func (s *Subnet) complete4() error {
	p := s.Prefix
	if s.SLAAC {
		return fmt.Errorf("%w subnet %s: SLAAC is of IPv6; leave it out, IPv4 guests ask by DHCP", ErrInvalid, p)
	}
	if p.Bits() < 8 || p.Bits() > 30 {
		return fmt.Errorf("%w subnet %s: the length must be 8 to 30", ErrInvalid, p)
	}
	if !s.Gateway.IsValid() {
		s.Gateway = p.Addr().Next()
	}
	if !p.Contains(s.Gateway) || s.Gateway == p.Addr() || s.Gateway == last(p) {
		return fmt.Errorf("%w gateway %s: not a host address of %s", ErrInvalid, s.Gateway, p)
	}
	return nil
}

// complete6 leaves the gateway open: the VNI says it.
func (s *Subnet) complete6() error {
	p := s.Prefix
	switch {
	case p.Bits() < 48:
		return fmt.Errorf("%w subnet %s: larger than what a site has (RFC 6177); the length must be 48 to 126, usually 64", ErrInvalid, p)
	case p.Bits() > 126:
		return fmt.Errorf("%w subnet %s: no room for a guest beside the anycast address of routers (RFC 4291); the length must be 48 to 126, usually 64", ErrInvalid, p)
	case s.SLAAC && p.Bits() != 64:
		return fmt.Errorf("%w subnet %s: a guest makes its address itself in a /64 only (RFC 4862); leave SLAAC out, or take a /64", ErrInvalid, p)
	case s.Gateway.IsValid():
		return fmt.Errorf("%w gateway %s of subnet %s: the gateway of an IPv6 subnet is link-local and made from the network's VNI, "+
			"so that a guest that moves notices (RFC 6059); leave it out", ErrInvalid, s.Gateway, p)
	}
	return nil
}

// last returns the broadcast address of an IPv4 prefix (RFC 919).
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// unusable says what a is when it can't be a port's address, or "".
func (s Subnet) unusable(a netip.Addr) string {
	switch {
	case a == s.Gateway:
		return "the gateway"
	case a == s.Prefix.Addr() && a.Is6():
		return "the anycast address of routers (RFC 4291)"
	case a == s.Prefix.Addr():
		return "the network address"
	case a.Is4() && a == last(s.Prefix):
		return "the broadcast address"
	}
	return ""
}

func (n *Network) subnet(ca vnet.CA) (Subnet, bool) {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(ca.Addr) {
			return s, true
		}
	}
	return Subnet{}, false
}

// overlap returns an error when p overlaps one of the prefixes of somebody.
func overlap(p netip.Prefix, others []netip.Prefix, whose string) error {
	for _, o := range others {
		if o.Overlaps(p) {
			return fmt.Errorf("%w subnet %s: it overlaps %s of %s, so an address would mean two places", ErrInvalid, p, o, whose)
		}
	}
	return nil
}

func (n *Network) prefixes() []netip.Prefix {
	all := make([]netip.Prefix, 0, len(n.Subnets))
	for _, s := range n.Subnets {
		all = append(all, s.Prefix)
	}
	return all
}
