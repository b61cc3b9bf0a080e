package netdev_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"replug/dataplane/netdev"
	"replug/directory/vnet"
)

// A fabric is an uplink with a router at its other end, in another namespace.
type fabric struct {
	uplink, router netlink.Link
	far            *netlink.Handle // of the router's namespace
}

var (
	hostMAC   = vnet.MAC{0x02, 0x52, 0x31, 0x42, 0x53, 0x64}
	routerMAC = vnet.MAC{0x02, 0x52, 0x75, 0x86, 0x97, 0xa8}
	routerIP  = netip.MustParseAddr("172.31.77.1")
)

func newFabric(t *testing.T) *fabric {
	t.Helper()
	newNetns(t)
	mine, err := netns.Get()
	must(t, err)
	defer mine.Close()
	other, err := netns.New() // and switches to it
	must(t, err)
	must(t, netns.Set(mine))
	defer other.Close()
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr, a.MTU = "up0", hostMAC[:], 1550
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: a, PeerName: "router0", PeerHardwareAddr: routerMAC[:], PeerNamespace: netlink.NsFd(int(other)),
	}))
	f := &fabric{}
	f.far, err = netlink.NewHandleAt(other)
	must(t, err)
	t.Cleanup(f.far.Close)
	f.uplink, err = netlink.LinkByName("up0")
	must(t, err)
	f.router, err = f.far.LinkByName("router0")
	must(t, err)
	addr := func(s string) *netlink.Addr {
		a, err := netlink.ParseAddr(s)
		must(t, err)
		return a
	}
	must(t, f.far.AddrAdd(f.router, addr("172.31.77.1/24")))
	must(t, f.far.LinkSetUp(f.router))
	must(t, netlink.AddrAdd(f.uplink, addr("172.31.77.2/24")))
	must(t, netlink.LinkSetUp(f.uplink))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: f.uplink.Attrs().Index, Gw: routerIP.AsSlice(), Priority: 700}))
	return f
}

func TestUplink(t *testing.T) {
	newNetns(t)
	if _, err := netdev.FindUplink("", netdev.IPv4); !errors.Is(err, netdev.ErrNoUplink) {
		t.Errorf("no route at all: %v", err)
	}
	f := newFabric(t)
	// A worse default route through a device without an address.
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "spare"}, PeerName: "spare1"}))
	spare, err := netlink.LinkByName("spare")
	must(t, err)
	must(t, netlink.LinkSetUp(spare))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: spare.Attrs().Index, Scope: unix.RT_SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: make(net.IPMask, 4)}, Priority: 900}))
	for _, name := range []string{"", "up0"} {
		u, err := netdev.FindUplink(name, netdev.IPv4)
		want := netdev.Uplink{
			Device: netdev.Device{Name: "up0", Ifindex: f.uplink.Attrs().Index, MTU: 1550, MAC: hostMAC, Kind: "veth", Peer: true, Up: true},
			Addr:   netip.MustParseAddr("172.31.77.2"), Prefix: netip.MustParsePrefix("172.31.77.2/24"),
		}
		if d := cmp.Diff(want, u, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", name, err, d)
		}
	}
	if _, err := netdev.FindUplink("spare", netdev.IPv4); !errors.Is(err, netdev.ErrNoUplink) {
		t.Errorf("no address: %v", err)
	}
	if _, err := netdev.FindUplink("absent", netdev.IPv4); !errors.Is(err, netdev.ErrNoDevice) {
		t.Errorf("no device: %v", err)
	}
}

// TestUplink6 takes the address that is neither temporary nor about to end.
func TestUplink6(t *testing.T) {
	f := newFabric(t)
	for _, name := range []string{"", "up0"} {
		if _, err := netdev.FindUplink(name, netdev.IPv6); !errors.Is(err, netdev.ErrNoUplink) {
			t.Errorf("%q without IPv6: %v", name, err)
		}
	}
	for _, a := range []struct {
		addr  string
		flags int
		valid int
	}{{"fd31:77::a/64", 0, 1 << 20}, {"fd31:77::2/64", 0, 0}, {"fd31:77::b/64", 0, 1 << 20}} {
		addr, err := netlink.ParseAddr(a.addr)
		must(t, err)
		addr.Flags, addr.ValidLft = unix.IFA_F_NODAD, a.valid // valid, but not preferred: deprecated
		must(t, netlink.AddrAdd(f.uplink, addr))
	}
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: f.uplink.Attrs().Index, Gw: net.ParseIP("fd31:77::1"), Priority: 700}))
	for _, name := range []string{"", "up0"} {
		u, err := netdev.FindUplink(name, netdev.IPv6)
		if err != nil || u.Name != "up0" || u.Prefix.String() != "fd31:77::2/64" || u.Addr != u.Prefix.Addr() {
			t.Errorf("%q: %+v, %v", name, u, err)
		}
	}
	resolved := func(want error) {
		t.Helper()
		hop, err := netdev.Resolve(netip.MustParseAddr("fd31:78::9"))
		if !errors.Is(err, want) || want == nil && (hop.Gateway.String() != "fd31:77::1" || hop.Resolved) {
			t.Errorf("next hop %+v, %v", hop, err)
		}
	}
	resolved(nil)
	prefix := netip.MustParsePrefix("fd31:78::/64")
	for range 2 {
		must(t, netdev.EnsureBlackhole(prefix))
	}
	resolved(netdev.ErrNoRoute)
	for range 2 {
		must(t, netdev.RemoveBlackhole(prefix))
	}
	resolved(nil)
}

// TestNextHop finds a router, sees it replaced by one with another MAC, and
// learns of both from Watch.
func TestNextHop(t *testing.T) {
	f := newFabric(t)
	changed := watch(t)
	remote := netip.MustParseAddr("100.64.78.9")
	want := netdev.NextHop{Ifindex: f.uplink.Attrs().Index, Gateway: routerIP, SrcMAC: hostMAC}
	hop, err := netdev.Resolve(remote)
	if err != nil || hop != want {
		t.Fatalf("at first: got %+v, %v; want %+v", hop, err, want)
	}
	want.DstMAC, want.Resolved = routerMAC, true
	await(t, changed, func() string {
		hop, err = netdev.Resolve(remote)
		return explain(err == nil && hop == want, "the router: got %+v, %v; want %+v", hop, err, want)
	})

	// Nobody announces the new router; the entry here has only grown old.
	want.DstMAC = vnet.MAC{0x02, 0x52, 0xb9, 0xca, 0xdb, 0xec}
	must(t, f.far.LinkSetHardwareAddr(f.router, want.DstMAC[:]))
	must(t, os.WriteFile("/proc/sys/net/ipv4/neigh/up0/delay_first_probe_time", []byte("0"), 0))
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: hop.Ifindex, IP: routerIP.AsSlice(), HardwareAddr: routerMAC[:], State: netlink.NUD_STALE}))
	await(t, changed, func() string {
		hop, err = netdev.Resolve(remote)
		return explain(err == nil && hop == want, "the new router: got %+v, %v; want %+v", hop, err, want)
	})

	onLink, err := netdev.Resolve(netip.MustParseAddr("172.31.77.9"))
	if err != nil || onLink.Gateway.String() != "172.31.77.9" || onLink.Resolved {
		t.Errorf("a neighbour that isn't there: %+v, %v", onLink, err)
	}
	if _, err := netdev.Resolve(netip.MustParseAddr("172.31.77.2")); !errors.Is(err, netdev.ErrLocal) {
		t.Errorf("the host's own: %v", err)
	}
	prefix := netip.MustParsePrefix("100.64.77.0/24")
	for range 2 {
		must(t, netdev.EnsureBlackhole(prefix))
	}
	if _, err := netdev.Resolve(netip.MustParseAddr("100.64.77.9")); !errors.Is(err, netdev.ErrNoRoute) {
		t.Errorf("a blackhole: %v", err)
	}
	for range 2 {
		must(t, netdev.RemoveBlackhole(prefix))
	}
	if _, err := netdev.Resolve(netip.MustParseAddr("100.64.77.9")); err != nil {
		t.Errorf("no blackhole any more: %v", err)
	}
	must(t, netlink.LinkSetDown(f.uplink))
	await(t, changed, func() string {
		_, err := netdev.Resolve(remote)
		return explain(errors.Is(err, netdev.ErrNoRoute), "without uplink: %v", err)
	})
}

// watch runs Watch until the test ends. Its goroutine gets a socket that was made
// in the test's namespace, for Watch subscribes before anything else.
func watch(t *testing.T) <-chan struct{} {
	t.Helper()
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ns, err := netns.Get()
	must(t, err)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			ended <- err
			return
		}
		ended <- netdev.Watch(ctx, slog.New(slog.DiscardHandler), func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Watch: %v", err)
		}
		ns.Close()
	})
	return changed
}

// await asks again after each change until there is nothing to complain about.
func await(t *testing.T, changed <-chan struct{}, complaint func() string) {
	t.Helper()
	late := time.After(deadline)
	for {
		why := complaint()
		if why == "" {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatal(why)
		}
	}
}

func explain(ok bool, format string, args ...any) string {
	if ok {
		return ""
	}
	return fmt.Sprintf(format, args...)
}
