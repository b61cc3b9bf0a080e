package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// An advert is what a Router Advertisement (RFC 4861, section 4.2) says that the
// kernel doesn't act upon, and who it came from.
type advert struct {
	router   netip.Addr
	lifetime time.Duration  // as a default router; 0: it is none any more
	managed  bool           // addresses by DHCPv6
	prefixes []netip.Prefix // from which guests make an address themselves
	dns      []netip.Addr   // RFC 8106
}

var allRouters = netip.MustParseAddr("ff02::2")

const (
	ipv6Retry      = 50 * time.Millisecond // the answers come from the host that the VM runs on
	ipv6RetryBound = 4 * time.Second
	ipv6Tries      = 12 // then a network that has no IPv6 is left in peace, and a router heard if it comes
)

// follow6 keeps the NIC's IPv6 in step until ctx ends: it asks for the router, makes
// the address by DHCPv6 where the router says so, and takes away what belongs to
// another one. The kernel takes routes, and makes addresses of prefixes, by itself.
// Ready is closed with the first address.
func (l *linux) follow6(ctx context.Context, st linkState, ready chan<- struct{}) {
	if !quiet6(st.name) {
		return
	}
	conn, err := listenAdverts(st)
	if err != nil {
		l.log.say("IPv6 is left alone: %v", err)
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })
	defer stop()
	asked := time.Now()
	var last advert
	var renew time.Time // zero: nothing to renew
	for retry, first, tries := ipv6Retry, true, 0; ctx.Err() == nil; {
		if tries++; last.router == (netip.Addr{}) && tries <= ipv6Tries {
			_, _ = conn.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, nil, &net.IPAddr{IP: allRouters.AsSlice(), Zone: st.name}) // no address yet: again soon
		}
		wait := time.Now().Add(retry)
		if last.router.IsValid() {
			wait = renew
		}
		conn.SetReadDeadline(wait)
		if ctx.Err() != nil {
			return
		}
		a, ok := readAdvert(conn)
		switch {
		case ok && a.lifetime == 0:
			continue // the former router says that it is none
		case ok:
			last = a
		case !last.router.IsValid():
			retry = min(2*retry, ipv6RetryBound)
			continue
		case renew.IsZero() || time.Now().Before(renew):
			continue
		}
		if renew, err = l.wear6(ctx, st, &last); err != nil {
			if ctx.Err() == nil {
				l.log.say("IPv6 failed, trying again: %v", err)
			}
			last, retry, tries = advert{}, ipv6Retry, 0
			continue
		}
		if first {
			first = false
			l.log.say("IPv6 %s from %s in %d ms", list(l.nic.six(st.index)), last.router, time.Since(asked).Milliseconds())
			close(ready)
		}
	}
}

// quiet6 lets the NIC use its addresses at once, whoever makes them: the host gives each
// to one port only, so there is nobody to ask whether it is free (RFC 4862, section 5.4).
// False: somebody has turned IPv6 off, or the kernel has none.
func quiet6(nic string) bool {
	dir := filepath.Join("/proc/sys/net/ipv6/conf", nic)
	if off, err := os.ReadFile(filepath.Join(dir, "disable_ipv6")); err != nil || off[0] != '0' {
		return false
	}
	return os.WriteFile(filepath.Join(dir, "accept_dad"), []byte("0"), 0o644) == nil
}

func listenAdverts(st linkState) (*ipv6.PacketConn, error) {
	lc := net.ListenConfig{}
	c, err := lc.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::%"+st.name)
	if err != nil {
		return nil, fmt.Errorf("open a socket for router advertisements: %w", err)
	}
	p := ipv6.NewPacketConn(c)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	err = errors.Join(p.SetICMPFilter(&filter), p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		p.SetMulticastHopLimit(255), p.SetMulticastInterface(&net.Interface{Index: st.index}))
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("router advertisements: %w", err)
	}
	return p, nil
}

// readAdvert reads one that is valid (RFC 4861, section 6.1.2).
func readAdvert(conn *ipv6.PacketConn) (advert, bool) {
	b := make([]byte, 1500)
	n, cm, from, err := conn.ReadFrom(b)
	if err != nil || cm == nil || cm.HopLimit != 255 {
		return advert{}, false
	}
	ip, ok := from.(*net.IPAddr)
	if !ok {
		return advert{}, false
	}
	router, _ := netip.AddrFromSlice(ip.IP)
	return parseAdvert(router, b[:n])
}

func parseAdvert(router netip.Addr, b []byte) (advert, bool) {
	if len(b) < 16 || b[0] != 134 || !router.IsLinkLocalUnicast() {
		return advert{}, false
	}
	a := advert{router: router, managed: b[5]&0x80 != 0, lifetime: time.Duration(binary.BigEndian.Uint16(b[6:])) * time.Second}
	for b = b[16:]; len(b) >= 8 && b[1] > 0 && len(b) >= int(b[1])*8; b = b[int(b[1])*8:] {
		if b[0] == 3 && b[1] == 4 && b[3]&0x40 != 0 { // prefix, autonomous
			ip, _ := netip.AddrFromSlice(b[16:32])
			if p := netip.PrefixFrom(ip, int(b[2])); p.IsValid() && binary.BigEndian.Uint32(b[4:]) > 0 {
				a.prefixes = append(a.prefixes, p.Masked())
			}
		}
		if b[0] == 25 && binary.BigEndian.Uint32(b[4:]) > 0 { // name servers, with a lifetime
			for s := b[8 : int(b[1])*8]; len(s) >= 16; s = s[16:] {
				ip, _ := netip.AddrFromSlice(s[:16])
				a.dns = append(a.dns, ip)
			}
		}
	}
	return a, true
}

// wear6 makes the addresses that the router speaks of the only ones, and it the only
// router. It returns when the lease is to be renewed.
func (l *linux) wear6(ctx context.Context, st linkState, a *advert) (renew time.Time, err error) {
	if err := l.nic.onlyRouter(st.index, a.router); err != nil {
		return renew, err
	}
	var keep netip.Prefix
	dns := a.dns
	if a.managed {
		var ia lease6
		if ia, err = l.lease6(ctx, st); err != nil {
			return renew, err
		}
		keep = netip.PrefixFrom(ia.addr, 128)
		if err := l.nic.add6(st.index, keep, ia.valid, ia.preferred); err != nil {
			return renew, fmt.Errorf("add address %s: %w", ia.addr, err)
		}
		renew, dns = time.Now().Add(ia.renew), append(ia.dns, dns...)
	}
	for _, p := range l.nic.six(st.index) {
		if p == keep || contains(a.prefixes, p.Addr()) {
			continue
		}
		if err := l.nic.remove(st.index, p); err != nil {
			return renew, fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	l.names.set6(slices.DeleteFunc(slices.Clone(dns), func(s netip.Addr) bool { return s.IsLinkLocalUnicast() || s.IsMulticast() || s.IsUnspecified() }))
	return renew, nil
}

func contains(all []netip.Prefix, ip netip.Addr) bool {
	for _, p := range all {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// A lease6 is what DHCPv6 gave.
type lease6 struct {
	addr                    netip.Addr
	valid, preferred, renew time.Duration
	dns                     []netip.Addr
}

// lease6 asks for an address by DHCPv6 (RFC 8415), in two messages where the server
// can, until ctx ends.
func (l *linux) lease6(ctx context.Context, st linkState) (lease6, error) {
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: linkLocal(st.name), Port: dhcpv6.DefaultClientPort, Zone: st.name})
	if err != nil {
		return lease6{}, fmt.Errorf("open DHCPv6: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })()
	msg, err := dhcpv6.NewSolicit(st.mac[:], dhcpv6.WithRapidCommit)
	if err != nil {
		return lease6{}, fmt.Errorf("make SOLICIT: %w", err)
	}
	to := &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers, Port: dhcpv6.DefaultServerPort, Zone: st.name}
	buf := make([]byte, 1500)
	for retry := ipv6Retry; ctx.Err() == nil; retry = min(2*retry, ipv6RetryBound) {
		if _, err := conn.WriteToUDP(msg.ToBytes(), to); err != nil {
			return lease6{}, fmt.Errorf("send %s: %w", msg.MessageType, err)
		}
		conn.SetReadDeadline(time.Now().Add(retry))
		for ctx.Err() == nil {
			n, _, err := conn.ReadFromUDP(buf)
			if err != nil {
				break
			}
			m, err := dhcpv6.MessageFromBytes(buf[:n])
			if err != nil || m.TransactionID != msg.TransactionID {
				continue
			}
			if m.MessageType == dhcpv6.MessageTypeReply {
				return readLease6(m)
			}
			if m.MessageType == dhcpv6.MessageTypeAdvertise {
				if request, err := dhcpv6.NewRequestFromAdvertise(m); err == nil {
					msg, retry = request, ipv6Retry
					break
				}
			}
		}
	}
	return lease6{}, ctx.Err()
}

func readLease6(m *dhcpv6.Message) (lease6, error) {
	ia := m.Options.OneIANA()
	if ia == nil || len(ia.Options.Addresses()) == 0 {
		return lease6{}, fmt.Errorf("%w: no address in the REPLY", errLease)
	}
	a := ia.Options.Addresses()[0]
	ip, ok := netip.AddrFromSlice(a.IPv6Addr)
	if !ok || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || a.ValidLifetime == 0 {
		return lease6{}, fmt.Errorf("%w: address %s for %s", errLease, a.IPv6Addr, a.ValidLifetime)
	}
	l := lease6{addr: ip, valid: a.ValidLifetime, preferred: a.PreferredLifetime, renew: ia.T1}
	if l.renew <= 0 || l.renew > l.valid {
		l.renew = l.valid / 2
	}
	for _, ip := range m.Options.DNS() {
		if s, ok := netip.AddrFromSlice(ip); ok {
			l.dns = append(l.dns, s)
		}
	}
	return l, nil
}

// linkLocal returns the NIC's link-local address; nil: it has none yet.
func linkLocal(name string) net.IP {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
			return n.IP
		}
	}
	return nil
}

// six lists the NIC's IPv6 addresses that reach beyond the link.
func (n *nic) six(index int) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.addresses(index) {
		if p.Addr().Is6() {
			out = append(out, p)
		}
	}
	return out
}

// add6 gives the NIC an address, or a new term to one that it has.
func (n *nic) add6(index int, p netip.Prefix, valid, preferred time.Duration) error {
	a := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
	if valid < forever {
		a.ValidLft, a.PreferedLft = int(valid.Seconds()), int(preferred.Seconds())
	}
	return n.nl.AddrReplace(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, a)
}

// onlyRouter removes default routes that another router has announced.
func (n *nic) onlyRouter(index int, router netip.Addr) error {
	routes, err := n.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: index, Protocol: unix.RTPROT_RA},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list IPv6 routes: %w", err)
	}
	for _, r := range routes {
		gw, _ := netip.AddrFromSlice(r.Gw)
		if !gw.IsValid() || gw == router {
			continue
		}
		if err := n.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route via %s: %w", gw, err)
		}
	}
	return nil
}
