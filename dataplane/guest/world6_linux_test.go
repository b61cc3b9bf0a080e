package guest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
	dns    atomic.Pointer[netip.Addr] // also by DHCPv6
	asked  chan *dhcpv6.Message
	said   atomic.Int32 // advertisements
	router net.PacketConn
}

func (w *world) six() *sixHost {
	w.t.Helper()
	h := &sixHost{asked: make(chan *dhcpv6.Message, 99)}
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
	h.router = icmp
	wg.Go(h.route)
	wg.Go(func() { h.lease(udp) })
	w.t.Cleanup(func() { icmp.Close(); udp.Close(); wg.Wait() })
	return h
}

func (h *sixHost) route() {
	b := make([]byte, 1500)
	for {
		if _, _, err := h.router.ReadFrom(b); err != nil {
			return
		}
		h.advertise()
	}
}

// advertise is the router's word to all, asked or not.
func (h *sixHost) advertise() {
	if a := h.advert.Load(); a != nil {
		h.said.Add(1)
		if _, err := h.router.WriteTo(*a, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "host0"}); err != nil {
			h.said.Add(-1) // the link has no address yet
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
		h.asked <- m
		a := h.addr.Load()
		if a == nil {
			continue
		}
		r := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
		ia := &dhcpv6.OptIANA{T1: time.Hour}
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), ValidLifetime: 33 * time.Hour, PreferredLifetime: 22 * time.Hour})
		r.AddOption(ia)
		if s := h.dns.Load(); s != nil {
			r.AddOption(dhcpv6.OptDNS(s.AsSlice()))
		}
		c.WriteToUDP(r.ToBytes(), peer)
	}
}

// servers is an option for name servers (RFC 8106, section 5.1).
func servers(lifetime byte, addrs ...string) []byte {
	b := []byte{25, byte(1 + 2*len(addrs)), 0, 0, 0, 0, 0, lifetime}
	for _, a := range addrs {
		s := netip.MustParseAddr(a).As16()
		b = append(b, s[:]...)
	}
	return b
}

// names adds a name server to what DHCPv6 gives, and others to what the router says.
func (h *sixHost) names(dhcp string, router ...string) {
	a := netip.MustParseAddr(dhcp)
	h.dns.Store(&a)
	ra := append(slices.Clone(*h.advert.Load()), servers(99, router...)...)
	h.advert.Store(&ra)
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
// a flap: by DHCPv6, and by addresses that it makes itself. IPv6 is followed while IPv4
// is renewed, however often.
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
	exchanges := map[dhcpv6.TransactionID]bool{}
	for _, m := range drain(h.asked) {
		if exchanges[m.TransactionID] = true; m.MessageType != dhcpv6.MessageTypeSolicit {
			t.Errorf("asked %s where the first answer would do", m.MessageType)
		}
	}
	// The kernel asks the router as well.
	if n, said := len(exchanges), int(h.said.Load()); n == 0 || n > said {
		t.Errorf("asked for an address %d times, by %d advertisements", n, said)
	}
	w.give("10.37.91.66/24")
	w.mu.Lock()
	w.lease.valid = time.Second // T1 is half of it
	w.mu.Unlock()
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
	drain(w.dhcp)
	for next(t, w.dhcp, "renewal of IPv4").ClientIPAddr.IsUnspecified() {
	}
	h.serve(true, "", "fd00:37::5")
	h.advertise()
	w.becomes("IPv6 after a renewal of IPv4", "fd00:37::5/128", w.addrs6)

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

// A host that was too busy to answer in time is asked on: the lease that comes in the end
// is taken whole, and renewed, though nothing else gives a reason to ask again.
func TestIPv4ComesLate(t *testing.T) {
	w := newWorld(t)
	w.six().serve(true, "", "fd00:17::9")
	w.mu.Lock()
	w.mute, w.lease.valid = true, 4*time.Second // T1 is half of it
	w.mu.Unlock()
	// Who refuses connections is there: nothing is renewed for that.
	w.start(func(c *Config) { c.IMDS = "http://[::1]:9" })
	w.said("no IPv4 in this network")
	w.mu.Lock()
	w.mute = false
	w.mu.Unlock()
	w.said("lease 10.37.91.17/24 via " + gateway)
	w.becomes("name servers", "# by replug-guest\nsearch red.example\nnameserver 10.37.91.53\n", func() string { return w.read("etc/resolv.conf") })
	if got := w.addrs() + " " + w.addrs6() + " " + w.routes(); got != "10.37.91.17/24 fd00:17::9/128 0.0.0.0/0>"+gateway {
		t.Errorf("it has %s", got)
	}
	for next(t, w.begun, "renewal").ClientIPAddr.IsUnspecified() {
	}
	w.give("10.37.91.66/24")
	w.flap(15 * time.Millisecond)
	w.said("lease 10.37.91.66/24 via " + gateway)
	w.becomes("IPv4 after a flap", "10.37.91.66/24", w.addrs)
}

// The name servers are those of the network that the NIC is in: of both families, of one
// alone, or none, after any other.
func TestNameServersFollow(t *testing.T) {
	w := newWorld(t)
	h := w.six()
	check(t, os.MkdirAll(filepath.Join(w.root, "etc"), 0o755))
	const others = "nameserver 192.0.2.1\n"
	check(t, os.WriteFile(filepath.Join(w.root, "etc/resolv.conf"), []byte(others), 0o644))
	network := func(v4 string, mute bool) {
		w.give(v4)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.mute = mute
		w.lease.dns = nil
	}
	names := func() string { return w.read("etc/resolv.conf") }
	network("10.37.91.17/24", false)
	w.start()
	next(t, w.polls, "poll, which comes when the lease is on")
	if got := names(); got != others {
		t.Errorf("a network without any has taken those of the image: %q", got)
	}
	w.give("10.37.91.18/24")
	w.flap(15 * time.Millisecond)
	w.becomes("IPv4", "# by replug-guest\nsearch red.example\nnameserver 10.37.91.53\n", names)
	h.serve(true, "", "fd00:17::9")
	h.names("fd00:17::53", "fd00:17::54", "fe80::7", "fd00:17::53")
	w.flap(15 * time.Millisecond)
	w.becomes("both", "# by replug-guest\nsearch red.example\nnameserver 10.37.91.53\nnameserver fd00:17::53\nnameserver fd00:17::54\n", names)
	network("10.37.91.19/24", true)
	h.serve(false, "fd00:31::", "")
	h.names("fd00:31::7", "fd00:31::53")
	w.flap(15 * time.Millisecond)
	w.becomes("IPv6 alone, without DHCPv6", "# by replug-guest\nnameserver fd00:31::53\n", names)
	h.advert.Store(nil)
	network("10.37.91.20/24", false)
	w.flap(15 * time.Millisecond)
	w.becomes("none", "# by replug-guest\nsearch red.example\n", names)
}
