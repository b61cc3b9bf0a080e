package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Family says which addresses the underlay has: those, and no others.
type Family string

// The two families. Stored in the lab's record.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Family returns that of the underlay.
func (l *Lab) Family() Family { return l.rec.Family }

// HostAddr returns the underlay address of host n.
func (l *Lab) HostAddr(n int) netip.Addr { return l.rec.Family.gateway(n).Addr().Next() }

// ServerAddr returns the server's address in the underlay.
func (l *Lab) ServerAddr() netip.Addr { return l.HostAddr(serverSubnet) }

// PAPrefix returns the provider addresses of host n, a prefix that is routed to it.
func (l *Lab) PAPrefix(n int) netip.Prefix {
	if l.rec.Family == IPv6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x64, 7: byte(n)}), 112)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(n), 0}), 24)
}

// GuestMTU returns what VXLAN leaves to a guest's IP packets, bytes.
func (l *Lab) GuestMTU() int {
	if l.rec.Family == IPv6 {
		return l.rec.MTU - 70
	}
	return l.rec.MTU - 50
}

// gateway is the router's address in a subnet, with the subnet's length.
func (f Family) gateway(subnet int) netip.Prefix {
	if f == IPv6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x31, 7: byte(subnet), 15: 1}), 64)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(subnet), 1}), 24)
}

// forward is the setting that makes a namespace a router.
func (f Family) forward() string {
	if f == IPv6 {
		return "ipv6/conf/all/forwarding=1"
	}
	return "ipv4/ip_forward=1"
}

// settle waits until every node of an IPv6 underlay hears its neighbours: the kernel
// makes a device ready for IPv6, and joins the groups by which its addresses are asked
// for, up to a second after it is up. Its link-local address comes with that.
func (l *Lab) settle(ctx context.Context) error {
	if l.rec.Family != IPv6 {
		return nil
	}
	return Until(ctx, "the underlay's devices to be ready for IPv6", func() error {
		for _, n := range l.nodes {
			if err := n.Netlink(ready); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		return nil
	})
}

// ready returns an error that names a device without a link-local address.
func ready(h *netlink.Handle) error {
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		addrs, err := h.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		local := func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 }
		if link.Attrs().Flags&net.FlagLoopback == 0 && !slices.ContainsFunc(addrs, local) {
			return fmt.Errorf("%s has no link-local address", link.Attrs().Name)
		}
	}
	return nil
}

// enable lets a node have IPv6, as every kernel does unless told otherwise: at its
// devices too. Addresses are good at once, and come from nobody else.
func (f Family) enable(n *Node) error {
	if f != IPv6 {
		return nil
	}
	for _, dev := range []string{"all", "default"} {
		for _, s := range []string{"accept_dad=0", "accept_ra=0", "disable_ipv6=0"} {
			if err := n.sysctl(fmt.Sprintf("ipv6/conf/%s/%s", dev, s)); err != nil {
				return err
			}
		}
	}
	return nil
}
