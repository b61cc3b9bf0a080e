package dataplane

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"replug/directory/vnet"
)

// A guestClient is a guest's own, running in a mount namespace where it finds none of
// the machine's files and leaves none.
type guestClient struct {
	cmd *exec.Cmd
	log string
}

// startClient runs a script that ends with a client in the foreground. dir is what
// the client keeps.
func startClient(t *testing.T, dir, script string) *guestClient {
	t.Helper()
	c := &guestClient{log: filepath.Join(t.TempDir(), "client.log")}
	out, err := os.Create(c.log)
	must(t, err)
	c.cmd = exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", `
		mount --bind `+dir+` /var/lib
		mount -t tmpfs none /run
		cp -a /etc /run/etc
		mount --bind /run/etc /etc
		mkdir -p /var/lib/dhcpcd /var/lib/dhcp
		`+script)
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, c.cmd.Start())
	t.Cleanup(func() {
		c.stop()
		if b, _ := os.ReadFile(c.log); t.Failed() {
			t.Logf("the client said:\n%s", b)
		}
	})
	return c
}

// stop kills the client: one that says good-bye would release its lease.
func (c *guestClient) stop() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	_ = c.cmd.Wait()
}

// read returns a file as the client sees it.
func (c *guestClient) read(name string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", c.cmd.Process.Pid, name))
	return string(b)
}

// dualPlaces are two places of both families.
func dualPlaces() (vnet.Intent, *vnet.Place) {
	in := intent()
	in.Current.MTU = 1400
	in.Current.DHCP = vnet.DHCP{DNS: []netip.Addr{netip.MustParseAddr("203.0.113.53"), netip.MustParseAddr("fd53:6a7b::1e2f")}, Domain: "red.example"}
	dual(&in.Current, "fd17:2839:4a5b:6c7d::51")
	next := place("blue", blue, "10.17.34.62", 8)
	next.MTU = 1333
	next.DHCP = vnet.DHCP{DNS: []netip.Addr{netip.MustParseAddr("203.0.113.54"), netip.MustParseAddr("fd53:6a7b::8c9d")}, Domain: "blue.example"}
	dual(&next, "fd28:394a:5b6c:7d8e::62")
	next.Swap, next.Confirm, next.Trigger = "s-5", vnet.ConfirmLease, vnet.TriggerBounce
	return in, &next
}

// How long a guest may take for what takes it a moment on an idle machine, and a swap
// that may reach the last rung.
const (
	settled  = 30 * time.Second
	lastRung = time.Minute
)

// short is the rung of 20 ms, or that of 200 ms where the machine is busy.
const short = "bounce 20"

// Routes of the first place, as clients set them: as they are told, networkd also
// to the router and the name server, and NetworkManager to its own address.
const (
	routes6      = "default via " + redRouter + ", fd17:2839:4a5b:6c7d::/64"
	routesAsTold = "10.17.34.0/24, default via 10.17.34.1, " + routes6
	routesOfNetd = "10.17.34.0/24, 10.17.34.1/32, 203.0.113.53/32 via 10.17.34.1, default via 10.17.34.1, " + routes6
	routesOfNM   = routesAsTold + ", fd17:2839:4a5b:6c7d::51/128"
)

// follows has a client of both families take its first place, with these routes,
// and follow to the next, and wants nothing of the first to be left, in the kernel or
// in the file where the client writes what name servers it was told. The agent knows of
// an address as soon as the guest answers for it; its routes come later.
func follows(t *testing.T, script, routes, file, rung string) {
	t.Helper()
	t.Parallel() // most of it is waiting
	c := newCable(t)
	c.kernelRouter(false)
	in, next := dualPlaces()
	c.agent.set(in)
	client := startClient(t, t.TempDir(), script)
	c.reach(in.Current.Epoch, vnet.StatusLeased, settled)
	first := "10.17.34.51/24, fd17:2839:4a5b:6c7d::51/128 | " + routes
	c.becomes(first, settled)
	s, took := c.swap(in, next, lastRung)
	t.Logf("followed on rung %q in %s; it said %s", s.Rung, took.Round(time.Millisecond), c.heardFromGuest())
	if !strings.HasPrefix(s.Rung, rung) {
		t.Errorf("followed on rung %q, want %q", s.Rung, rung)
	}
	c.becomes(strings.NewReplacer("10.17.34.51", "10.17.34.62", "fd17:2839:4a5b:6c7d::51", "fd28:394a:5b6c:7d8e::62",
		"fd17:2839:4a5b:6c7d::", "fd28:394a:5b6c:7d8e::", redRouter, blueRouter, "203.0.113.53", "203.0.113.54").Replace(first), settled)
	client.settles(t, file, settled)
}

// settles waits until a client's file has what it was told at the next place, and
// nothing of the first: it writes that after it has changed the addresses.
func (c *guestClient) settles(t *testing.T, file string, d time.Duration) {
	t.Helper()
	begun, settings, wrong := time.Now(), "", ""
	for tick := time.NewTicker(5 * time.Millisecond); time.Since(begun) < d; <-tick.C {
		settings, wrong = c.read(file), ""
		for _, want := range []string{"203.0.113.54", "fd53:6a7b::8c9d", "blue.example"} {
			if !strings.Contains(settings, want) {
				wrong = "there is no " + want
			}
		}
		for _, gone := range []string{"203.0.113.53", "fd53:6a7b::1e2f", "red.example"} {
			if strings.Contains(settings, gone) {
				wrong = gone + " is left"
			}
		}
		if wrong == "" {
			return
		}
	}
	t.Errorf("after %s %s in %s:\n%s", d, wrong, file, settings)
}

// dhcpcd looks for others with its IPv4 address for some five seconds.
func TestDhcpcd(t *testing.T) {
	follows(t, "exec dhcpcd -B -d eth0", routesAsTold, "/etc/resolv.conf", short)
}

// networkd runs without udev (for it, /sys is read-only) and without a bus.
const networkd = `mount -t sysfs -o ro none /sys
	mkdir -p /run/systemd/network /run/systemd/netif
	chown systemd-network: /run/systemd/netif
	printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n[DHCPv4]\nUseMTU=%s\nUseDomains=yes\n[DHCPv6]\nUseDomains=yes\n' "$mtu" >/run/systemd/network/10-eth0.network
	SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console exec /lib/systemd/systemd-networkd`

func TestNetworkd(t *testing.T) {
	follows(t, "mtu=no\n"+networkd, routesOfNetd, "/run/systemd/netif/links/2", short)
}

// With UseMTU, as netplan writes it, it keeps its leases for 5 s without a carrier.
func TestNetworkdThatTakesTheMTU(t *testing.T) {
	follows(t, "mtu=yes\n"+networkd, routesOfNetd, "/run/systemd/netif/links/2", "bounce 6.5s")
}

// TestNetworkdLosesAFamily: what a network doesn't have, its guest doesn't keep.
func TestNetworkdLosesAFamily(t *testing.T) {
	for name, want := range map[string]string{
		"IPv4": "fd28:394a:5b6c:7d8e::62/128 | default via " + blueRouter + ", fd28:394a:5b6c:7d8e::/64",
		"IPv6": "10.17.34.62/24 | 10.17.34.0/24, 10.17.34.1/32, 203.0.113.54/32 via 10.17.34.1, default via 10.17.34.1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCable(t)
			c.kernelRouter(false)
			in, next := dualPlaces()
			next.Addrs = map[string][]vnet.Addr{"IPv4": next.Addrs[1:], "IPv6": next.Addrs[:1]}[name]
			c.agent.set(in)
			startClient(t, t.TempDir(), "mtu=no\n"+networkd)
			c.reach(in.Current.Epoch, vnet.StatusLeased, settled)
			s, took := c.swap(in, next, lastRung)
			t.Logf("followed on rung %q in %s; it said %s", s.Rung, took.Round(time.Millisecond), c.heardFromGuest())
			c.becomes(want, settled)
		})
	}
}

// dhclient is deaf to its link. It leaves routers to the kernel.
const dhclient = "exec dhclient -6 -d -v -lf /var/lib/leases eth0"

// TestDhclientRenews: when it renews, its old address dies in the answer that
// brings the new one.
func TestDhclientRenews(t *testing.T) {
	t.Parallel()
	c := newCable(t)
	in, next := intent(), blueAt("fd28:394a:5b6c:7d8e::62")
	in.Current = redAt("fd17:2839:4a5b:6c7d::51")
	in.Current.DHCP.Lease, next.DHCP.Lease = 8*time.Second, time.Hour
	next.Trigger = vnet.TriggerNone
	c.agent.set(in)
	c.linkLocal()
	startClient(t, t.TempDir(), dhclient)
	c.reach(in.Current.Epoch, vnet.StatusLeased, settled)
	s, took := c.swap(in, next, lastRung)
	t.Logf("followed on rung %q in %s; it said %s", s.Rung, took.Round(time.Millisecond), c.heardFromGuest())
	c.becomes("fd28:394a:5b6c:7d8e::62/128 | default via "+blueRouter+", fd28:394a:5b6c:7d8e::/64, fd28:394a:5b6c:7d8e::62/128", settled)
}

// TestDhclientConfirms: when it starts again, as after a reboot, with a lease of
// another place, it is told that it is off the link, and asks anew.
func TestDhclientConfirms(t *testing.T) {
	t.Parallel()
	c := newCable(t)
	in, next := intent(), blueAt("fd28:394a:5b6c:7d8e::62")
	in.Current = redAt("fd17:2839:4a5b:6c7d::51")
	next.Trigger = vnet.TriggerNone
	c.agent.set(in)
	dir := t.TempDir()
	c.linkLocal()
	first := startClient(t, dir, dhclient)
	c.reach(in.Current.Epoch, vnet.StatusLeased, settled)
	first.stop()
	in.Next = next
	c.agent.set(in)
	c.reach(next.Epoch, vnet.StatusPrepared, settled)
	c.agent.set(switched(in))
	c.reach(next.Epoch, vnet.StatusFlipped, settled)
	c.reboot()
	c.heardFromGuest()
	startClient(t, dir, dhclient)
	c.reach(next.Epoch, vnet.StatusLeased, settled)
	if said := c.heardFromGuest(); !strings.Contains(said, "dhcpv6-4 dhcpv6-1") {
		t.Errorf("it said %s; want a Confirm and a Solicit", said)
	}
	c.becomes("fd28:394a:5b6c:7d8e::62/128 | default via "+blueRouter+", fd28:394a:5b6c:7d8e::/64, fd28:394a:5b6c:7d8e::62/128", settled)
}

// networkManager runs without udev (for it, /sys is read-only), with a bus of its own.
const networkManager = `mount -t sysfs -o ro none /sys
	mkdir -p /run/dbus /run/NetworkManager /etc/NetworkManager/system-connections
	printf '[main]\nplugins=keyfile\ndns=default\n[keyfile]\nunmanaged-devices=except:interface-name:eth0\n' >/etc/NetworkManager/NetworkManager.conf
	profile=/etc/NetworkManager/system-connections/eth0.nmconnection
	printf '[connection]\nid=eth0\nuuid=2b1fba40-7b3c-4d5e-9f60-718293a4b5c6\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=auto\naddr-gen-mode=eui64\n' >$profile
	chmod 600 $profile
	dbus-daemon --system --fork --nopidfile
	exec NetworkManager --debug --log-level=DEBUG`

// Its package would take over the devices of who runs the tests, so it isn't asked for.
func TestNetworkManager(t *testing.T) {
	if _, err := exec.LookPath("NetworkManager"); err != nil {
		t.Skipf("%v (install network-manager where it may run)", err)
	}
	follows(t, networkManager, routesOfNM, "/etc/resolv.conf", "bounce 6.5s")
}
