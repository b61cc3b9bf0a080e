package netdev_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"replug/dataplane/netdev"
	"replug/directory/vnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const deadline = 10 * time.Second

// newNetns puts the running test into a network namespace of its own, which the
// kernel frees with the thread that Go ends after the test.
func newNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v (needs root)", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sysctl(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + path)
	must(t, err)
	return strings.TrimSpace(string(b))
}

func TestTapNames(t *testing.T) {
	for _, id := range []vnet.PortID{7, 16382} {
		if got, ok := netdev.TapPort(netdev.TapName(id)); !ok || got != id || len(netdev.TapName(id)) > 15 {
			t.Errorf("%d is %q is %d", id, netdev.TapName(id), got)
		}
	}
	for _, s := range []string{"", "tap7", "rp-tap", "rp-tap0", "rp-tap07", "rp-tap16383", "rp-tap+7", "rp-tap7x", "rp-tap65543"} {
		if id, ok := netdev.TapPort(s); ok {
			t.Errorf("%q is port %d", s, id)
		}
	}
}

func TestTap(t *testing.T) {
	newNetns(t)
	first, err := netdev.CreateTap("rp-tap77", 1462, 65534)
	must(t, err)
	link, err := netlink.LinkByName("rp-tap77")
	must(t, err)
	tap := link.(*netlink.Tuntap)
	if tap.NonPersist || tap.Owner != 65534 || tap.Flags != netlink.TUNTAP_VNET_HDR|netlink.TUNTAP_NO_PI {
		t.Errorf("made %+v", tap)
	}
	if first.MTU != 1462 || !first.Up || first.Ifindex != link.Attrs().Index || sysctl(t, "ipv6/conf/rp-tap77/disable_ipv6") != "1" {
		t.Errorf("made %+v", first)
	}
	if a, err := netlink.AddrList(link, netlink.FAMILY_ALL); err != nil || len(a) != 0 {
		t.Errorf("addresses %v, %v", a, err)
	}

	guest := openTap(t, "rp-tap77") // QEMU has it open when the agent comes back
	must(t, netlink.LinkSetDown(link))
	again, err := netdev.CreateTap("rp-tap77", 1333, 65534)
	must(t, err)
	want := first
	want.MTU = 1333
	if d := cmp.Diff(want, again); d != "" {
		t.Errorf("taken over (-want +got):\n%s", d)
	}
	guest.Close()

	_, err = netdev.CreateTap("rp-tap42", 1462, -1)
	must(t, err)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "rp-tap23"}, PeerName: "other"}))
	if _, err := netdev.CreateTap("rp-tap23", 1462, -1); !errors.Is(err, netdev.ErrForeign) {
		t.Errorf("a name in use: %v", err)
	}
	taps, err := netdev.Taps()
	if err != nil || len(taps) != 2 || taps[0].Name != "rp-tap77" || taps[1].Name != "rp-tap42" {
		t.Errorf("taps %+v, %v", taps, err)
	}
	for range 2 {
		must(t, netdev.Delete("rp-tap77"))
	}
	if _, err := netdev.Find("rp-tap77"); !errors.Is(err, netdev.ErrNoDevice) {
		t.Errorf("after deletion: %v", err)
	}
	if _, err := netdev.Find("rp-tap42"); err != nil {
		t.Errorf("the other: %v", err)
	}
}

func openTap(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	req, err := unix.NewIfreq(name)
	must(t, err)
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	return os.NewFile(uintptr(fd), name)
}

func TestVXLAN(t *testing.T) {
	newNetns(t)
	first, err := netdev.EnsureVXLAN(netdev.VXLANName, 1500)
	must(t, err)
	link, err := netlink.LinkByName(netdev.VXLANName)
	must(t, err)
	if v := link.(*netlink.Vxlan); !v.FlowBased || v.Port != 4789 || v.Learning || !v.UDP6ZeroCSumRx {
		t.Errorf("made %+v", v)
	}
	again, err := netdev.EnsureVXLAN(netdev.VXLANName, 1500)
	if d := cmp.Diff(first, again); d != "" || err != nil || !first.Up || first.MTU != 1500 {
		t.Errorf("%v (-first +again):\n%s", err, d)
	}
	must(t, netdev.Delete(netdev.VXLANName))
	for name, theirs := range map[string]netlink.Vxlan{"another port": {FlowBased: true, Port: 4790}, "one network": {VxlanId: 77, Port: 4789}} {
		theirs.Name = netdev.VXLANName
		must(t, netlink.LinkAdd(&theirs))
		if _, err := netdev.EnsureVXLAN(netdev.VXLANName, 1500); !errors.Is(err, netdev.ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, netdev.Delete(netdev.VXLANName))
	}
}

func TestIMDS(t *testing.T) {
	newNetns(t)
	first, err := netdev.EnsureIMDS()
	must(t, err)
	must(t, netlink.LinkSetDown(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: first.Near.Ifindex}}))
	again, err := netdev.EnsureIMDS() // the route went with the link
	if d := cmp.Diff(first, again); d != "" || err != nil {
		t.Fatalf("%v (-first +again):\n%s", err, d)
	}
	link, err := netlink.LinkByName(netdev.IMDSNear)
	must(t, err)
	if a := link.Attrs(); a.RawFlags&unix.IFF_NOARP == 0 || a.OperState != netlink.OperUp || first.Near.MAC.String() != "02:52:50:4c:49:30" {
		t.Errorf("near end: %+v", a)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	var got []string
	for _, a := range addrs {
		got = append(got, a.IPNet.String())
		if a.Scope != unix.RT_SCOPE_LINK && a.Flags&unix.IFA_F_DEPRECATED == 0 {
			t.Errorf("the host may send from %s of its own accord", a)
		}
	}
	if want := []string{"169.254.169.254/32", "168.63.129.16/32", "fd00:ec2::254/128"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("addresses %q, want %q, %v", got, want, err)
	}
	must(t, netdev.Delete(netdev.IMDSNear))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: netdev.IMDSNear}, PeerName: "other"}))
	if _, err := netdev.EnsureIMDS(); !errors.Is(err, netdev.ErrForeign) {
		t.Errorf("somebody's own: %v", err)
	}
}

// TestCallers connects to the service from addresses such as the datapath makes
// up for ports, in a namespace that stands for the datapath.
func TestCallers(t *testing.T) {
	newNetns(t)
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/default/rp_filter", []byte("1"), 0))
	pair, err := netdev.EnsureIMDS()
	must(t, err)
	if v := sysctl(t, "ipv4/conf/imds0/rp_filter"); v != "0" {
		t.Errorf("rp_filter %s", v)
	}
	calls := []struct{ caller, service string }{
		{"240.77.16.254", "169.254.169.254:80"}, {"255.254.33.9", "169.254.169.254:80"},
		{"241.78.17.250", "168.63.129.16:80"}, {"fd52:5047:0:1234:3:9a8b:7c6d:5e4f", "[fd00:ec2::254]:80"},
	}
	listeners := map[string]net.Listener{}
	var list []string
	for _, c := range calls {
		if list = append(list, c.caller); listeners[c.service] == nil {
			ln, err := net.Listen("tcp", c.service)
			must(t, err)
			defer ln.Close()
			listeners[c.service] = ln
		}
	}
	back := becomeDatapath(t, pair, list)
	defer back()
	for _, call := range calls {
		caller := call.caller
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(caller)}, Timeout: deadline}
		c, err := d.Dial("tcp", call.service)
		if err != nil {
			t.Errorf("%s: %v", caller, err)
			continue
		}
		defer c.Close()
		s, err := listeners[call.service].Accept()
		must(t, err)
		defer s.Close()
		if got := s.RemoteAddr().(*net.TCPAddr).IP.String(); got != caller {
			t.Errorf("%s came as %s", caller, got)
		}
	}
}

// becomeDatapath moves the far end, and the test, into a namespace that has the
// callers' addresses, and returns the way back.
func becomeDatapath(t *testing.T, pair netdev.IMDS, callers []string) func() {
	t.Helper()
	mine, err := netns.Get()
	must(t, err)
	other, err := netns.New() // and switches to it
	must(t, err)
	must(t, netns.Set(mine))
	far := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: pair.Far.Ifindex}}
	must(t, netlink.LinkSetNsFd(far, int(other)))
	must(t, netns.Set(other))
	// Without ARP a frame is addressed to the sender's own MAC.
	must(t, netlink.LinkSetHardwareAddr(far, pair.Near.MAC[:]))
	must(t, netlink.LinkSetARPOff(far))
	must(t, netlink.LinkSetUp(far))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/imds1/disable_ipv6", []byte("0"), 0))
	for _, caller := range callers {
		a := netip.MustParseAddr(caller)
		addr, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", a, a.BitLen()))
		must(t, err)
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, netlink.AddrAdd(far, addr))
	}
	for _, a := range netdev.MetadataAddresses {
		must(t, netlink.RouteAdd(&netlink.Route{
			LinkIndex: pair.Far.Ifindex, Scope: unix.RT_SCOPE_LINK,
			Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		}))
	}
	return func() {
		must(t, netns.Set(mine))
		mine.Close()
		other.Close()
	}
}

// A device keeps its index for as long as it has its name.
func TestIndex(t *testing.T) {
	newNetns(t)
	d, err := netdev.CreateTap("tap-a", 1400, 0)
	must(t, err)
	if got := netdev.Index("tap-a"); got != d.Ifindex {
		t.Errorf("index %d, want %d", got, d.Ifindex)
	}
	for _, name := range []string{"tap-b", "", "longer than a name can be"} {
		if got := netdev.Index(name); got != 0 {
			t.Errorf("%q has index %d", name, got)
		}
	}
	must(t, netdev.Delete("tap-a"))
	if got := netdev.Index("tap-a"); got != 0 {
		t.Errorf("deleted, it has index %d", got)
	}
	again, err := netdev.CreateTap("tap-a", 1400, 0)
	must(t, err)
	if got := netdev.Index("tap-a"); got != again.Ifindex || got == d.Ifindex {
		t.Errorf("made again: index %d, want %d, not %d", got, again.Ifindex, d.Ifindex)
	}
}
