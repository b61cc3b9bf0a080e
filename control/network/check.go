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
	minMTU   = 576  // RFC 791: every host must take a datagram of this size
	minMTU6  = 1280 // RFC 8200: the same of IPv6
	maxMTU   = 9216
)

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// complete fills in what was left open, but for what the VNI says, and checks the rest.
func (n *Network) complete() error {
	if _, err := vnet.ParseMoniker(string(n.Moniker)); err != nil {
		return fmt.Errorf("%w moniker: %w", ErrInvalid, err)
	}
	if len(n.Subnets) == 0 {
		return fmt.Errorf("%w: no subnet; give at least one, as in 10.0.0.0/24 or fd00:17::/64", ErrInvalid)
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

func (n *Network) checkDHCP() error {
	if err := n.checkServers("DNS", n.DNS); err != nil {
		return err
	}
	if err := n.checkServers("NTP", n.NTP); err != nil {
		return err
	}
	if n.Domain != "" && (len(n.Domain) > 253 || !domainForm.MatchString(n.Domain)) {
		return fmt.Errorf("%w domain %q: lower-case labels with dots between (RFC 1035)", ErrInvalid, n.Domain)
	}
	if err := CheckMTU(n.MTU, n.Families()); err != nil {
		return err
	}
	if n.Lease == 0 {
		n.Lease = DefaultLease
	}
	if n.Lease < minLease || n.Lease.Seconds() >= 1<<32-1 {
		return fmt.Errorf("%w lease %s: must be at least %s", ErrInvalid, n.Lease, minLease)
	}
	return nil
}

func (n *Network) checkServers(kind string, all []netip.Addr) error {
	count := make(map[Families]int)
	for _, a := range all {
		if err := n.checkServer(a); err != nil {
			return err
		}
		count[FamilyOf(a)]++
	}
	for _, f := range []Families{V4, V6} {
		if count[f] > vnet.MaxServers {
			return fmt.Errorf("%w: %d %s servers of %s; guests are told of %d at most, name those", ErrInvalid, count[f], kind, f, vnet.MaxServers)
		}
	}
	return nil
}

func (n *Network) checkServer(a netip.Addr) error {
	switch {
	case a.Is4In6() || a.Zone() != "" || !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast():
		return fmt.Errorf("%w server %s: DNS and NTP servers are unicast addresses that a guest can reach", ErrInvalid, a)
	case !n.Families().Has(FamilyOf(a)):
		return fmt.Errorf("%w server %s: the network has %s subnets only, no guest could ask it", ErrInvalid, a, n.Families())
	}
	return nil
}

// CheckMTU returns [ErrInvalid] for what can't be the MTU of a port with addresses
// of some families; 0 is what the underlay leaves.
func CheckMTU(mtu uint16, f Families) error {
	least := uint16(minMTU)
	if f.Has(V6) {
		least = minMTU6
	}
	if mtu != 0 && (mtu < least || mtu > maxMTU) {
		return fmt.Errorf("%w MTU %d: must be %d to %d for %s, or 0 for what the underlay leaves", ErrInvalid, mtu, least, maxMTU, f)
	}
	return nil
}
