package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A nic puts leases on the NIC. What it has set carries the kernel's mark for DHCP
// routes, so what others have set is left alone. Used by one goroutine at a time.
type nic struct {
	nl     *netlink.Handle
	client *dhcpClient
	index  int   // of the NIC that client speaks on
	held   lease // zero: none
}

func newNIC() (*nic, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	n := &nic{nl: h}
	if lo, err := h.LinkByName("lo"); err == nil {
		_ = h.LinkSetUp(lo) // a VM whose init didn't; services on localhost want it
	}
	return n, nil
}

func (n *nic) close() {
	n.nl.Close()
	if n.client != nil {
		n.client.close()
	}
}

// setUp is `ip link set up`.
func setUp(index int) error {
	return netlink.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}})
}

// setDown is `ip link set down`.
func (n *nic) setDown(index int) error {
	return n.nl.LinkSetDown(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}})
}

// lease gets a lease and puts it on: a renewal at T1, a fresh one in any other case.
func (n *nic) lease(ctx context.Context, st linkState, due bool, log logger) (time.Time, error) {
	start := time.Now()
	l, err := n.ask(ctx, st, due, log)
	if err != nil {
		if n.client != nil && ctx.Err() == nil { // whatever broke it, a new socket is a clean start
			n.client.close()
			n.client = nil
		}
		return time.Time{}, err
	}
	took := time.Since(start)
	if err := n.wear(st.index, l); err != nil {
		return time.Time{}, fmt.Errorf("configure %s with %s: %w", st.name, l.addr, err)
	}
	n.held = l
	log.say("lease %s in %d ms", &l, took.Milliseconds())
	if l.valid == forever {
		return time.Time{}, nil
	}
	return start.Add(l.renew), nil
}

func (n *nic) ask(ctx context.Context, st linkState, due bool, log logger) (lease, error) {
	if n.client == nil || n.index != st.index || !bytes.Equal(n.client.mac, st.mac[:]) {
		if n.client != nil {
			n.client.close()
		}
		var err error
		if n.client, err = newDHCPClient(st); err != nil {
			n.client = nil
			return lease{}, err
		}
		n.index = st.index
	}
	if due && n.held.addr.IsValid() {
		l, err := n.client.renew(ctx, n.held)
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, errNAK):
			log.say("lease %s refused, dropping it", n.held.addr.Addr())
			if err := n.clear(st.index, netip.Prefix{}); err != nil {
				return lease{}, err
			}
		case ctx.Err() != nil:
			return lease{}, err
		}
	}
	return n.client.acquire(ctx)
}

// wear makes l the only lease on the NIC. The old address goes first: in the same
// subnet the new one would be its secondary, and die with it.
func (n *nic) wear(index int, l lease) error {
	if err := n.clear(index, l.addr); err != nil {
		return err
	}
	link, err := n.nl.LinkByIndex(index)
	if err != nil {
		return fmt.Errorf("find the NIC: %w", err)
	}
	if l.mtu != 0 && link.Attrs().MTU != l.mtu {
		if err := n.nl.LinkSetMTU(link, l.mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", l.mtu, err)
		}
	}
	a := &netlink.Addr{IPNet: ipNet(l.addr)}
	if l.valid != forever { // the kernel takes it away when nobody renews
		a.ValidLft, a.PreferedLft = int(l.valid.Seconds()), int(l.valid.Seconds())
	}
	if err := n.nl.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	return n.route(index, l)
}

// clear removes every IPv4 address of the NIC but keep.
func (n *nic) clear(index int, keep netip.Prefix) error {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	addrs, err := n.nl.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ones, _ := a.Mask.Size()
		if netip.PrefixFrom(v4(a.IP), ones) == keep {
			continue
		}
		// EADDRNOTAVAIL: it was a secondary and went with its primary.
		if err := n.nl.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// route makes l's routes the only DHCP routes of the NIC.
func (n *nic) route(index int, l lease) error {
	have, err := n.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: index, Protocol: unix.RTPROT_DHCP},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	want := make(map[netip.Prefix]netip.Addr)
	for _, r := range l.routes {
		want[r.to] = r.via
	}
	for _, r := range have {
		if via, ok := want[destination(r)]; ok && via == v4(r.Gw) {
			continue
		}
		if err := n.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", r, err)
		}
	}
	for _, onLink := range []bool{true, false} { // next hops need their link route first
		for _, r := range l.routes {
			if r.via.IsValid() == onLink {
				continue
			}
			if err := n.nl.RouteReplace(netlinkRoute(index, l, r)); err != nil {
				return fmt.Errorf("add route %s via %s: %w", r.to, r.via, err)
			}
		}
	}
	return nil
}

func netlinkRoute(index int, l lease, r route) *netlink.Route {
	out := &netlink.Route{LinkIndex: index, Protocol: unix.RTPROT_DHCP, Dst: ipNet(r.to), Src: l.addr.Addr().AsSlice()}
	if !r.via.IsValid() {
		out.Scope = netlink.SCOPE_LINK
		return out
	}
	out.Gw = r.via.AsSlice()
	if !l.addr.Contains(r.via) {
		out.Flags = int(netlink.FLAG_ONLINK)
	}
	return out
}

func destination(r netlink.Route) netip.Prefix {
	if r.Dst == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(v4(r.Dst.IP), ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addresses lists the NIC's own view of its addresses that reach beyond the link.
func (n *nic) addresses(index int) []netip.Prefix {
	addrs, err := n.nl.AddrList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			out = append(out, prefixOf(a))
		}
	}
	return out
}

func prefixOf(a netlink.Addr) netip.Prefix {
	ip, _ := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

// remove takes an address from the NIC. One that is gone already is no error.
func (n *nic) remove(index int, p netip.Prefix) error {
	err := n.nl.AddrDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, &netlink.Addr{IPNet: ipNet(p)})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		err = nil
	}
	needed := func(o netip.Prefix) bool { return p.Masked().Contains(o.Addr()) }
	if err != nil || !p.Addr().Is6() || slices.ContainsFunc(n.addresses(index), needed) {
		return err
	}
	// The kernel's route to one address goes with it only if it had no lifetime, and
	// by DHCPv6 it has one (net/ipv6/addrconf.c, ipv6_del_addr); dhcpcd makes routes to
	// prefixes itself.
	for err == nil {
		err = n.nl.RouteDel(&netlink.Route{LinkIndex: index, Dst: ipNet(p.Masked()), Table: unix.RT_TABLE_MAIN})
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// clear6 removes every IPv6 address of the NIC that reaches beyond the link, but keep.
func (n *nic) clear6(index int, keep netip.Prefix) error {
	for _, p := range n.addresses(index) {
		if !p.Addr().Is6() || p == keep {
			continue
		}
		if err := n.remove(index, p); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	return nil
}
