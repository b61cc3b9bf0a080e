package guest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var errLease = errors.New("unusable lease")

// A lease is what a DHCP ACK gave.
type lease struct {
	addr   netip.Prefix // the VM's address with its subnet's length
	routes []route
	mtu    int // bytes; 0: not said
	dns    []netip.Addr
	domain string
	valid  time.Duration
	renew  time.Duration // T1, from the time of the ACK
}

// A route sends to through via; an invalid via is the link itself.
type route struct {
	to  netip.Prefix
	via netip.Addr
}

// forever is the lease time that means it (RFC 2131, section 3.3).
const forever = 0xffffffff * time.Second

// readLease takes the lease out of an ACK. Routes of option 121 stand instead of
// the router option (RFC 3442, page 5).
func readLease(ack *dhcpv4.DHCPv4) (lease, error) {
	addr, mask := v4(ack.YourIPAddr), ack.SubnetMask()
	bits, size := mask.Size()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
		return lease{}, fmt.Errorf("%w: address %s", errLease, ack.YourIPAddr)
	}
	if size != 32 || bits == 0 {
		return lease{}, fmt.Errorf("%w: mask %s", errLease, net.IP(mask))
	}
	l := lease{addr: netip.PrefixFrom(addr, bits), domain: ack.DomainName(), valid: ack.IPAddressLeaseTime(forever)}
	for _, ip := range ack.DNS() {
		l.dns = append(l.dns, v4(ip))
	}
	for _, r := range ack.ClasslessStaticRoute() {
		ones, _ := r.Dest.Mask.Size()
		to := route{to: netip.PrefixFrom(v4(r.Dest.IP), ones).Masked(), via: v4(r.Router)}
		if to.via.IsUnspecified() {
			to.via = netip.Addr{}
		}
		l.routes = append(l.routes, to)
	}
	if via := ack.Router(); len(l.routes) == 0 && len(via) > 0 {
		l.routes = []route{{to: netip.PrefixFrom(netip.IPv4Unspecified(), 0), via: v4(via[0])}}
	}
	if b := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		l.mtu = int(b[0])<<8 | int(b[1])
	}
	if l.mtu != 0 && l.mtu < 576 {
		return lease{}, fmt.Errorf("%w: MTU %d", errLease, l.mtu)
	}
	l.renew = ack.IPAddressRenewalTime(l.valid / 2)
	if l.renew <= 0 || l.renew > l.valid {
		l.renew = l.valid / 2
	}
	return l, nil
}

// gateway is the next hop of the default route, or "".
func (l *lease) gateway() string {
	for _, r := range l.routes {
		if r.to.Bits() == 0 && r.via.IsValid() {
			return r.via.String()
		}
	}
	return ""
}

// String prints "10.0.0.20/24 via 10.0.0.1".
func (l *lease) String() string {
	if g := l.gateway(); g != "" {
		return l.addr.String() + " via " + g
	}
	return l.addr.String()
}
