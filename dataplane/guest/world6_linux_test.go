package guest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// six is the host's side of IPv6: a router that is asked, and DHCPv6.
type sixHost struct {
	advert atomic.Pointer[[]byte]
	addr   atomic.Pointer[netip.Addr] // by DHCPv6
	asked  chan dhcpv6.MessageType
}

func (w *world) six() *sixHost {
	w.t.Helper()
	h := &sixHost{asked: make(chan dhcpv6.MessageType, 99)}
	var icmp net.PacketConn
	var udp *net.UDPConn
	w.inHost(func() {
		var err error
		if icmp, err = net.ListenPacket("ip6:ipv6-icmp", "::"); err != nil {
			w.t.Error(err)
			return
		}
		p := ipv6.NewPacketConn(icmp)
		var filter ipv6.ICMPFilter
		filter.SetAll(true)
		filter.Accept(ipv6.ICMPTypeRouterSolicitation)
		link := &net.Interface{Index: w.host.Attrs().Index, Name: "host0"}
		for _, err := range []error{p.SetICMPFilter(&filter), p.SetMulticastHopLimit(255), p.SetMulticastInterface(link),
			p.JoinGroup(link, &net.IPAddr{IP: net.ParseIP("ff02::2")})} {
			if err != nil {
				w.t.Error(err)
			}
		}
		if udp, err = net.ListenMulticastUDP("udp6", link, &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547}); err != nil {
			w.t.Error(err)
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() { h.route(icmp) })
	wg.Go(func() { h.lease(udp) })
	w.t.Cleanup(func() { icmp.Close(); udp.Close(); wg.Wait() })
	return h
}

func (h *sixHost) route(c net.PacketConn) {
	b := make([]byte, 1500)
	for {
		if _, _, err := c.ReadFrom(b); err != nil {
			return
		}
		if a := h.advert.Load(); a != nil {
			c.WriteTo(*a, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "host0"})
		}
	}
}

func (h *sixHost) lease(c *net.UDPConn) {
	b := make([]byte, 1500)
	for {
		n, peer, err := c.ReadFromUDP(b)
		if err != nil {
			return
		}
		m, err := dhcpv6.MessageFromBytes(b[:n])
		if err != nil {
			continue
		}
		h.asked <- m.MessageType
		a := h.addr.Load()
		if a == nil {
			continue
		}
		r := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
		ia := &dhcpv6.OptIANA{T1: time.Hour}
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), ValidLifetime: 33 * time.Hour, PreferredLifetime: 22 * time.Hour})
		r.AddOption(ia)
		c.WriteToUDP(r.ToBytes(), peer)
	}
}

// serve sets what the router says and what DHCPv6 gives.
func (h *sixHost) serve(managed bool, prefixAddr, addr string) {
	ra := []byte{134, 0, 0, 0, 64, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0}
	if managed {
		ra[5] = 0x80
	}
	if prefixAddr != "" {
		ra = append(ra, prefix(0xc0, 77, prefixAddr, 64)...)
	}
	h.advert.Store(&ra)
	h.addr.Store(nil)
	if addr != "" {
		a := netip.MustParseAddr(addr)
		h.addr.Store(&a)
	}
}

// addrs6 is what the kernel has on the guest's NIC of IPv6 beyond the link.
func (w *world) addrs6() string {
	l, err := netlink.LinkByName(w.nic)
	check(w.t, err)
	list, err := netlink.AddrList(l, netlink.FAMILY_V6)
	check(w.t, err)
	var out []string
	for _, a := range list {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			out = append(out, a.IPNet.String())
		}
	}
	return strings.Join(out, " ")
}

// routes6 is where the kernel's IPv6 routes on the guest's NIC lead.
func (w *world) routes6() string {
	l, err := netlink.LinkByName(w.nic)
	check(w.t, err)
	list, err := netlink.RouteList(l, netlink.FAMILY_V6)
	check(w.t, err)
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprint(r.Dst))
	}
	return strings.Join(out, " ")
}

// becomes waits for a state of the kernel that no line of the log tells.
func (w *world) becomes(what, want string, get func() string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*wait)
	defer cancel()
	for get() != want {
		if pause(ctx, 10*time.Millisecond); ctx.Err() != nil {
			w.t.Fatalf("%s: %q, want %q", what, get(), want)
		}
	}
}

// A dual-stack guest takes both families, and nothing of the old network stays after
// a flap: by DHCPv6, and by addresses that it makes itself.
func TestBothFamilies(t *testing.T) {
	w := newWorld(t)
	h := w.six()
	h.serve(true, "", "fd00:17::9")
	w.publish(bought)
	w.start()
	w.said("IPv6 fd00:17::9/128 from fe80::")
	next(t, w.reports, "report")
	if got := w.addrs() + " " + w.addrs6(); got != "10.37.91.17/24 fd00:17::9/128" {
		t.Errorf("addresses %s", got)
	}
	if m := <-h.asked; m != dhcpv6.MessageTypeSolicit || len(h.asked) != 0 {
		t.Errorf("asked %s and %d more", m, len(h.asked))
	}
	w.give("10.37.91.66/24")
	h.serve(true, "", "fd00:29::7")
	w.flap(15 * time.Millisecond)
	w.said("IPv6 fd00:29::7/128")
	if got := w.routes6(); strings.Contains(got, "fd00:17::9") {
		t.Errorf("a route to the old address is left: %s", got)
	}
	if got := w.addrs6(); got != "fd00:29::7/128" {
		t.Errorf("IPv6 after the flap: %s", got)
	}
	w.becomes("IPv4 after the flap", "10.37.91.66/24", w.addrs)

	h.serve(false, "fd00:31::", "")
	w.flap(15 * time.Millisecond)
	l, err := netlink.LinkByName(w.nic)
	check(t, err)
	mac := l.Attrs().HardwareAddr
	own := netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x31, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	w.becomes("its own address after the flap", own.String()+"/64", w.addrs6)
}

// A network that gives no IPv4 is not waited for: the guest's document comes by IPv6.
func TestIPv6Alone(t *testing.T) {
	w := newWorld(t)
	h := w.six()
	h.serve(true, "", "fd00:17::9")
	w.mu.Lock()
	w.mute = true
	w.mu.Unlock()
	w.start()
	w.said("IPv6 fd00:17::9/128")
	w.said("no IPv4 in this network")
}
