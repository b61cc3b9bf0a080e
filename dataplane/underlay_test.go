package dataplane

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/dataplane/netdev"
	"replug/directory/vnet"
)

// The family of the PAs says which of the uplink's addresses is the host's, and
// what VXLAN leaves to guests; the datapath loads for either.
func TestUnderlayOfEitherFamily(t *testing.T) {
	for _, c := range []struct {
		name, prefix, addr string
		addrs              []string
		mtu                uint16
	}{
		{"IPv4 PAs", "100.64.9.0/24", "192.0.2.37", []string{"192.0.2.37/24", "fd31:7::37/64"}, 1550},
		{"IPv6 PAs", "fd64:9::/112", "fd31:7::37", []string{"192.0.2.37/24", "fd31:7::37/64"}, 1530},
		{"own address, both", "", "192.0.2.37", []string{"192.0.2.37/24", "fd31:7::37/64"}, 1550},
		{"own address, IPv6 alone", "", "fd31:7::37", []string{"fd31:7::37/64"}, 1530},
	} {
		t.Run(c.name, func(t *testing.T) {
			runtime.LockOSThread() // and never unlocked: the namespace goes with the thread
			must(t, unix.Unshare(unix.CLONE_NEWNET|unix.CLONE_NEWNS))
			must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink0", MTU: 1600}, PeerName: "far0"}))
			up, err := netlink.LinkByName("uplink0")
			must(t, err)
			for _, s := range c.addrs {
				addr, err := netlink.ParseAddr(s)
				must(t, err)
				if addr.IP.To4() == nil {
					addr.Flags = unix.IFA_F_NODAD
				}
				must(t, netlink.AddrAdd(up, addr))
			}
			must(t, netlink.LinkSetUp(up))
			var prefix netip.Prefix
			if c.prefix != "" {
				prefix = netip.MustParsePrefix(c.prefix)
			}
			u, err := plug("uplink0", prefix)
			must(t, err)
			if u.uplink.Addr.String() != c.addr || u.mtu != c.mtu || !u.prefix.IsValid() || u.prefix.Addr().Is4() != u.uplink.Addr.Is4() {
				t.Errorf("address %s, MTU %d, PAs %s", u.uplink.Addr, u.mtu, u.prefix)
			}
			config := &Config{BPFFS: t.TempDir()}
			must(t, unix.Mount("bpf", config.BPFFS, "bpf", 0, ""))
			t.Cleanup(func() { _ = unix.Unmount(config.BPFFS, unix.MNT_DETACH) })
			m, err := loadMaps(u, config, slog.New(slog.NewTextHandler(io.Discard, nil)))
			must(t, err)
			must(t, m.close())
			must(t, unloadMaps(config.pins()))
		})
	}
}

// What the host itself needs, or what no guest can be behind, is never a port's:
// with a port's programs on it the host would lose its network. It stays as it is.
func TestNotForPorts(t *testing.T) {
	aHost(t)
	u, err := plug("up0", netip.MustParsePrefix("100.64.9.0/24"))
	must(t, err)
	_, err = netdev.CreateTap("rp-tap7", 1400, 0)
	must(t, err)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "guest0"}, PeerName: "guest0-p"}))
	ipv6 := func(device string) string {
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + device + "/disable_ipv6")
		must(t, err)
		return strings.TrimSpace(string(off))
	}
	attach := func(device string) (map[int]vnet.PortID, error) {
		w := newWorld(t)
		in := intent()
		in.Tap = device
		p := newPort(rooms{taps: taps{u}, datapath: w}, in, slog.New(slog.NewTextHandler(io.Discard, nil)))
		return w.attached, p.device(&in)
	}
	for device, why := range map[string]string{
		"up0": "it is the host's uplink", "rp-vx0": "the host agent made it for itself", "imds0": "the host agent made it for itself",
		"imds1": "the host agent made it for itself", "rp-tap7": "the host agent made it for itself",
		"br0": "neither a tap nor a veth (its kind: bridge)", "tun0": "neither a tap nor a veth", "lo": "neither a tap nor a veth",
	} {
		before := ipv6(device)
		on, err := attach(device)
		if err == nil || !strings.Contains(err.Error(), device) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "detach the port") {
			t.Errorf("%s: %v, want that %s", device, err, why)
		}
		if after := ipv6(device); len(on) != 0 || after != before {
			t.Errorf("%s: refused, but attached %v, disable_ipv6 was %s and is %s", device, on, before, after)
		}
	}
	if on, err := attach("guest0"); err != nil || len(on) != 1 || ipv6("guest0") != "1" {
		t.Errorf("a guest's: %v, attached %v, disable_ipv6 %s", err, on, ipv6("guest0"))
	}
	if _, err := attach("absent0"); err == nil || !strings.Contains(err.Error(), "create it there") {
		t.Errorf("absent: %v", err)
	}
}

// An attached port's tap that was made again is found as what it is now.
func TestFindAgain(t *testing.T) {
	aHost(t)
	taps := taps{&underlay{}}
	up, err := taps.Find("up0", Device{})
	if err != nil || up.Tap || up.Ifindex == 0 {
		t.Fatalf("a veth: %+v, %v", up, err)
	}
	if off, err := os.ReadFile("/proc/sys/net/ipv6/conf/up0/disable_ipv6"); err != nil || string(off) != "1\n" {
		t.Errorf("the host speaks IPv6 to the guest: disable_ipv6 is %q, %v", off, err)
	}
	if again, err := taps.Find("up0", up); err != nil || again != up {
		t.Errorf("the same: %+v, %v, want %+v", again, err, up)
	}
	link, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if gone, err := taps.Find("up0", up); err == nil {
		t.Errorf("deleted: %+v", gone)
	}
	tap, err := netdev.CreateTap("up0", 1400, 0)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := taps.Find("up0", up); err != nil || !now.Tap || now.Ifindex != tap.Ifindex {
		t.Errorf("a tap of the same name: %+v, %v, want %+v", now, err, tap)
	}
}
