package dataplane

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/dataplane/trap"
	"replug/directory/vnet"
)

// A cable connects the agent with a real guest: the test's own network namespace,
// whose kernel and clients use eth0. The host's end, wire0, is a port of the real
// datapath.
type cable struct {
	*world
	handle  *netlink.Handle // of the namespace, whoever asks
	ifindex int             // of wire0
	maps    *maps
	guests  *guests
	sender  *trap.Sender

	mu   sync.Mutex
	said []string // what the guest sent that the agent answers
}

// newCable makes the cable, and an agent in a world that is real at this end.
func newCable(t *testing.T) *cable {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the namespace goes with the thread
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	handle, err := netlink.NewHandle()
	must(t, err)
	c := &cable{world: newWorld(t), handle: handle}
	mac := intent().MAC
	must(t, handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire0"}, PeerName: "eth0", PeerHardwareAddr: mac[:]}))
	for file, value := range map[string]string{"wire0/disable_ipv6": "1", "eth0/accept_ra": "1", "eth0/forwarding": "0"} {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+file, []byte(value), 0))
	}
	for _, name := range []string{"lo", "wire0", "eth0"} {
		link, err := handle.LinkByName(name)
		must(t, err)
		must(t, handle.LinkSetUp(link))
		if name == "wire0" {
			c.ifindex = link.Attrs().Index
		}
	}
	c.sender, err = trap.NewSender(func(id vnet.PortID) (vnet.Epoch, bool) {
		c.world.mu.Lock()
		agent := c.agent
		c.world.mu.Unlock()
		if agent == nil {
			return 0, false
		}
		return agent.epoch(id)
	})
	must(t, err)
	t.Cleanup(func() { c.end(); c.sender.Close(); handle.Close() })
	m := c.load()
	c.maps = m
	c.furnish = func(r *rooms) {
		r.datapath, r.taps, r.links = wired{m, c.world}, cableTaps{c}, cableLinks{c}
		r.prober, r.router, r.resetter = prober{c.sender}, routers{c.sender}, resets{c.sender}
		r.parting = time.Minute // a guest that is too late for its reset never hears of it
	}
	ps := c.begin()
	c.guests = &guests{ports: ps, sender: c.sender, metrics: NewMetrics(prometheus.NewRegistry()), mtu: 1500, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	c.listen(m)
	return c
}

// kernelRouter lets the kernel heed advertisements itself, or leave them to a client.
func (c *cable) kernelRouter(on bool) {
	value := map[bool]string{true: "1", false: "0"}[on]
	must(c.t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra", []byte(value), 0))
}

// linkLocal waits until the guest's link-local address is its own: dhclient gives up
// without one.
func (c *cable) linkLocal() {
	c.t.Helper()
	link, err := c.handle.LinkByName("eth0")
	must(c.t, err)
	tick := time.NewTicker(5 * time.Millisecond)
	for begun := time.Now(); time.Since(begun) < 10*time.Second; <-tick.C {
		addrs, err := c.handle.AddrList(link, netlink.FAMILY_V6)
		must(c.t, err)
		if len(addrs) > 0 && addrs[0].Flags&unix.IFA_F_TENTATIVE == 0 {
			return
		}
	}
	c.t.Fatal("eth0 has no link-local address")
}

// reboot takes everything from the guest's device.
func (c *cable) reboot() {
	c.t.Helper()
	link, err := c.handle.LinkByName("eth0")
	must(c.t, err)
	must(c.t, c.handle.LinkSetDown(link))
	must(c.t, c.handle.LinkSetUp(link))
	c.linkLocal()
}

// cableTaps knows wire0 only.
type cableTaps struct{ *cable }

func (c cableTaps) Ensure(vnet.PortID, int) (int, error) { return c.ifindex, nil }
func (c cableTaps) Find(string, Device) (Device, error) {
	return Device{Ifindex: c.ifindex}, nil
}
func (c cableTaps) Delete(vnet.PortID) error { return nil }

// cableLinks pull and plug the cable: the guest's carrier follows wire0.
type cableLinks struct{ *cable }

func (c cableLinks) Open(context.Context, vnet.Intent, func()) (Link, error) { return c, nil }
func (cableLinks) Boots(context.Context) (bool, error)                       { return false, nil }
func (cableLinks) Close() error                                              { return nil }
func (c cableLinks) Plug(ctx context.Context, in bool) error                 { return c.Set(ctx, in) }

func (c cableLinks) Set(_ context.Context, up bool) error {
	link, err := c.handle.LinkByName("wire0")
	if err != nil {
		return err
	}
	if up {
		return c.handle.LinkSetUp(link)
	}
	return c.handle.LinkSetDown(link)
}

// wired is the real datapath, attached to wire0 by the test's own thread: any other
// is in another namespace, where its ifindex is another device's.
type wired struct {
	*maps
	world *world
}

func (w wired) SetPort(r Row) error {
	if err := w.maps.SetPort(r); err != nil {
		return err
	}
	return w.world.SetPort(r) // which checks who may see what
}

func (wired) Attach(vnet.PortID, int) error { return nil }
func (wired) Detach(vnet.PortID, int) error { return nil }

// load puts the datapath in force, with an uplink that leads nowhere.
func (c *cable) load() *maps {
	c.t.Helper()
	must(c.t, c.handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink0", MTU: 1600}, PeerName: "far0"}))
	up, err := c.handle.LinkByName("uplink0")
	must(c.t, err)
	addr, err := netlink.ParseAddr("192.0.2.37/24")
	must(c.t, err)
	must(c.t, c.handle.AddrAdd(up, addr))
	must(c.t, c.handle.LinkSetUp(up))
	u, err := plug("uplink0", netip.MustParsePrefix("100.64.9.0/24"))
	must(c.t, err)
	config := &Config{BPFFS: c.t.TempDir()}
	must(c.t, unix.Mount("bpf", config.BPFFS, "bpf", 0, ""))
	c.t.Cleanup(func() { _ = unix.Unmount(config.BPFFS, unix.MNT_DETACH) })
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	m, err := loadMaps(u, config, log)
	must(c.t, err)
	c.t.Cleanup(func() {
		c.end() // the agent, which uses it
		_ = m.close()
	})
	must(c.t, m.Attach(intent().ID, c.ifindex))
	return m
}

// listen hands what the datapath traps to the agent, until the test ends.
func (c *cable) listen(m *maps) {
	read, stop, err := m.traps(c.take, func(err error) { c.t.Errorf("lost a trap: %v", err) })
	must(c.t, err)
	done := make(chan error)
	go func() { done <- read() }()
	c.t.Cleanup(func() {
		stop()
		must(c.t, <-done)
	})
}

func (c *cable) take(t trapped) {
	word := map[said]string{saidDHCP: "dhcp", saidARP: "arp", saidSolicit: "rs", saidNeighbour: "na"}[t.said]
	if t.said == saidDHCP && t.frame[12] == 0x86 {
		word = fmt.Sprintf("dhcpv6-%d", t.frame[62])
	}
	c.mu.Lock()
	c.said = append(c.said, word)
	c.mu.Unlock()
	c.guests.take(t)
}

// heardFromGuest returns what the guest has sent since the last call.
func (c *cable) heardFromGuest() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.Join(slices.Compact(c.said), " ")
	c.said = nil
	return s
}

// reach waits until the agent reports the phase of an epoch, and returns the
// status and how long the wait took.
func (c *cable) reach(e vnet.Epoch, phase vnet.StatusPhase, d time.Duration) (vnet.Status, time.Duration) {
	c.t.Helper()
	begun := time.Now()
	for tick := time.NewTicker(5 * time.Millisecond); time.Since(begun) < d; <-tick.C {
		if s := c.last(e); s.Phase >= phase && s.Phase != vnet.StatusFailed {
			return s, time.Since(begun)
		}
	}
	c.t.Fatalf("after %s: last status %+v; the guest said %s; it has %s", d, c.last(e), c.heardFromGuest(), c.state())
	return vnet.Status{}, 0
}

// state is what the kernel has on eth0: addresses that live, the dead marked with
// a minus, then routes.
func (c *cable) state() string {
	c.t.Helper()
	link, err := c.handle.LinkByName("eth0")
	must(c.t, err)
	addrs, err := c.handle.AddrList(link, netlink.FAMILY_ALL)
	must(c.t, err)
	var list []string
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		mark := ""
		if a.Flags&unix.IFA_F_DEPRECATED != 0 {
			mark = "-"
		}
		list = append(list, mark+a.IPNet.String())
	}
	routes, err := c.handle.RouteList(link, netlink.FAMILY_ALL)
	must(c.t, err)
	var ways []string
	for _, r := range routes {
		if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue
		}
		dst := "default"
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				dst = r.Dst.String()
			}
		}
		if r.Gw != nil {
			dst += " via " + r.Gw.String()
		}
		ways = append(ways, dst)
	}
	slices.Sort(list)
	slices.Sort(ways)
	return strings.Join(slices.Compact(list), ", ") + " | " + strings.Join(slices.Compact(ways), ", ")
}

// becomes waits for the kernel's state.
func (c *cable) becomes(want string, d time.Duration) {
	c.t.Helper()
	begun := time.Now()
	got := ""
	for tick := time.NewTicker(5 * time.Millisecond); time.Since(begun) < d; <-tick.C {
		if got = c.state(); got == want {
			return
		}
	}
	c.t.Errorf("after %s the guest has\n%s\nwant\n%s", d, got, want)
}
