package network

import (
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"replug/directory/vnet"
)

// DefaultLease is how long an address is leased unless the network says otherwise:
// long enough that an agent outage takes no address away.
const DefaultLease = 24 * time.Hour

const (
	minLease = time.Minute
	minMTU   = 576 // RFC 791: every host must take a datagram of this size
	maxMTU   = 9216
)

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// reserved ranges can't be customer addresses: the host or IP itself means
// something else by them.
var reserved = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "RFC 1122: this host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "RFC 1122: loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "RFC 3927: link-local, the metadata service is there"},
	{netip.MustParsePrefix("224.0.0.0/4"), "RFC 5771: multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "RFC 1112: reserved, the host knows metadata callers by it"},
}

// complete fills in what was left open and checks the rest.
func (n *Network) complete() error {
	if _, err := vnet.ParseMoniker(string(n.Moniker)); err != nil {
		return fmt.Errorf("%w moniker: %w", ErrInvalid, err)
	}
	if len(n.Subnets) == 0 {
		return fmt.Errorf("%w: no subnet; give at least one, as in 10.0.0.0/24", ErrInvalid)
	}
	for i := range n.Subnets {
		if err := n.Subnets[i].complete(); err != nil {
			return err
		}
		for _, other := range n.Subnets[:i] {
			if other.Prefix.Overlaps(n.Subnets[i].Prefix) {
				return fmt.Errorf("%w: subnets %s and %s of one network overlap", ErrInvalid, other.Prefix, n.Subnets[i].Prefix)
			}
		}
	}
	if err := n.checkRoutes(); err != nil {
		return err
	}
	return n.checkDHCP()
}

func (s *Subnet) complete() error {
	p := s.Prefix
	switch {
	case !p.IsValid():
		return fmt.Errorf("%w subnet: not a prefix, write it as in 10.0.0.0/24", ErrInvalid)
	case !p.Addr().Is4():
		return fmt.Errorf("%w subnet %s: only IPv4 is served so far", ErrInvalid, p)
	case p != p.Masked():
		return fmt.Errorf("%w subnet %s: host bits are set; write %s", ErrInvalid, p, p.Masked())
	case p.Bits() < 8 || p.Bits() > 30:
		return fmt.Errorf("%w subnet %s: the length must be 8 to 30", ErrInvalid, p)
	}
	for _, r := range reserved {
		if r.prefix.Overlaps(p) {
			return fmt.Errorf("%w subnet %s: %s is reserved (%s)", ErrInvalid, p, r.prefix, r.why)
		}
	}
	if !s.Gateway.IsValid() {
		s.Gateway = p.Addr().Next()
	}
	if !p.Contains(s.Gateway) || s.Gateway == p.Addr() || s.Gateway == last(p) {
		return fmt.Errorf("%w gateway %s: not a host address of %s", ErrInvalid, s.Gateway, p)
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

func (n *Network) checkRoutes() error {
	seen := make(map[netip.Prefix]bool, len(n.Routes))
	for _, r := range n.Routes {
		if !r.Prefix.IsValid() || !r.Prefix.Addr().Is4() || r.Prefix != r.Prefix.Masked() {
			return fmt.Errorf("%w route %s: not an IPv4 prefix in its canonical form", ErrInvalid, r.Prefix)
		}
		if seen[r.Prefix] {
			return fmt.Errorf("%w route %s: given twice", ErrInvalid, r.Prefix)
		}
		seen[r.Prefix] = true
		if _, ok := n.subnet(vnet.CA{Addr: r.NextHop}); !ok {
			return fmt.Errorf("%w route %s: next hop %s is in no subnet of the network", ErrInvalid, r.Prefix, r.NextHop)
		}
	}
	return nil
}

func (n *Network) checkDHCP() error {
	for _, a := range append(n.DNS[:len(n.DNS):len(n.DNS)], n.NTP...) {
		if !a.Is4() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() {
			return fmt.Errorf("%w server %s: DNS and NTP servers are unicast IPv4 addresses", ErrInvalid, a)
		}
	}
	if n.Domain != "" && (len(n.Domain) > 253 || !domainForm.MatchString(n.Domain)) {
		return fmt.Errorf("%w domain %q: lower-case labels with dots between (RFC 1035)", ErrInvalid, n.Domain)
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		return fmt.Errorf("%w MTU %d: must be %d to %d, or 0 for what the underlay leaves", ErrInvalid, n.MTU, minMTU, maxMTU)
	}
	if n.Lease == 0 {
		n.Lease = DefaultLease
	}
	if n.Lease < minLease || n.Lease.Seconds() >= 1<<32-1 {
		return fmt.Errorf("%w lease %s: must be at least %s", ErrInvalid, n.Lease, minLease)
	}
	return nil
}
