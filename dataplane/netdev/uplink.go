package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// An Uplink is the device that leads to the underlay, with the host's address on it.
type Uplink struct {
	Device
	Addr   netip.Addr
	Prefix netip.Prefix // Addr with its subnet's length
}

// FindUplink returns the named device, or the one of the default route if name is
// empty, with an address of the family asked for. It returns [ErrNoDevice] or
// [ErrNoUplink].
func FindUplink(name string, family Family) (Uplink, error) {
	link, err := uplinkLink(name, family)
	if err != nil {
		return Uplink{}, err
	}
	addrs, err := netlink.AddrList(link, int(family))
	if err != nil {
		return Uplink{}, fmt.Errorf("addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		// A secondary IPv4 address has the flag of a temporary IPv6 one (RFC 8981).
		const unfit = unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED | unix.IFA_F_DADFAILED
		if ok && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unfit == 0 {
			bits, _ := a.Mask.Size()
			ip = ip.Unmap()
			return Uplink{Device: deviceOf(link), Addr: ip, Prefix: netip.PrefixFrom(ip, bits)}, nil
		}
	}
	return Uplink{}, fmt.Errorf("%s, %s: %w", link.Attrs().Name, family, ErrNoUplink)
}

// uplinkLink looks for the default route with the lowest metric.
func uplinkLink(name string, family Family) (netlink.Link, error) {
	if name != "" {
		return find(name)
	}
	routes, err := netlink.RouteList(nil, int(family))
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	best := netlink.Route{Priority: int(^uint(0) >> 1)}
	for _, r := range routes {
		if len(r.MultiPath) > 0 {
			r.LinkIndex = r.MultiPath[0].LinkIndex
		}
		all := r.Dst == nil || (r.Dst.IP.IsUnspecified() && r.Dst.Mask[0] == 0)
		if all && r.LinkIndex != 0 && r.Priority < best.Priority {
			best = r
		}
	}
	if best.LinkIndex == 0 {
		return nil, fmt.Errorf("%s: %w", family, ErrNoUplink)
	}
	link, err := netlink.LinkByIndex(best.LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("device %d of the default route: %w", best.LinkIndex, err)
	}
	return link, nil
}

// A NextHop is how a frame to some address leaves the host.
type NextHop struct {
	Ifindex  int
	Gateway  netip.Addr // the neighbour: a router, or the address itself
	SrcMAC   vnet.MAC
	DstMAC   vnet.MAC // good only if Resolved
	Resolved bool
}

// usable are the states in which the kernel itself would send to a neighbour.
const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
	netlink.NUD_PERMANENT | netlink.NUD_NOARP

// Resolve asks the kernel for the next hop to an underlay address, and has it
// ask the neighbour unless it has just heard from it: frames that the datapath
// sends don't, so a router that was replaced would never be noticed. It doesn't
// wait; [Watch] tells when the answer is there. It returns [ErrNoRoute] (also
// for a blackhole) or [ErrLocal].
func Resolve(dst netip.Addr) (NextHop, error) {
	routes, err := netlink.RouteGet(dst.AsSlice())
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES) {
		return NextHop{}, fmt.Errorf("%s: %w (%w)", dst, ErrNoRoute, err)
	}
	if err != nil || len(routes) == 0 {
		return NextHop{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	r := routes[0]
	if r.Type == unix.RTN_LOCAL {
		return NextHop{}, fmt.Errorf("%s: %w", dst, ErrLocal)
	}
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return NextHop{}, fmt.Errorf("device %d to %s: %w", r.LinkIndex, dst, err)
	}
	hop := NextHop{Ifindex: r.LinkIndex, Gateway: dst, SrcMAC: deviceOf(link).MAC}
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		hop.Gateway = gw.Unmap()
	}
	fresh, err := hop.look()
	if err != nil || fresh {
		return hop, err
	}
	return hop, hop.ask()
}

// look fills in what the neighbour table says. Fresh: the neighbour was heard
// from lately, or needs no asking.
func (n *NextHop) look() (fresh bool, err error) {
	neighbours, err := netlink.NeighList(n.Ifindex, int(FamilyOf(n.Gateway)))
	if err != nil {
		return false, fmt.Errorf("list neighbours: %w", err)
	}
	for _, e := range neighbours {
		if ip, ok := netip.AddrFromSlice(e.IP); !ok || ip.Unmap() != n.Gateway {
			continue
		}
		if len(e.HardwareAddr) == 6 && e.State&usable != 0 {
			n.DstMAC, n.Resolved = vnet.MAC(e.HardwareAddr), true
		}
		return n.Resolved && e.State != netlink.NUD_STALE, nil
	}
	return false, nil
}

// ask has the kernel use the neighbour, as a frame of its own would.
func (n *NextHop) ask() error {
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: n.Ifindex, Family: int(FamilyOf(n.Gateway)), IP: net.IP(n.Gateway.AsSlice()), Flags: netlink.NTF_USE,
	})
	if err != nil {
		return fmt.Errorf("ask for %s: %w", n.Gateway, err)
	}
	return nil
}
