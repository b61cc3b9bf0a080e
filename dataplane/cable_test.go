package dataplane

import (
	"context"
	"encoding/binary"
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
// whose kernel and clients use eth0. The host's end, wire0, leads to a pen-and-paper
// datapath that traps what the real one traps and answers for the neighbours.
type cable struct {
	*world
	handle  *netlink.Handle // of the namespace, whoever asks
	ifindex int             // of wire0
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
	c.sender, err = trap.NewSender(func(id vnet.PortID) (vnet.Epoch, bool) { return c.agent.epoch(id) })
	must(t, err)
	t.Cleanup(func() { c.end(); c.sender.Close(); handle.Close() })
	c.furnish = func(r *rooms) {
		r.taps, r.links = cableTaps{c}, cableLinks{c}
		r.prober, r.router = prober{c.sender}, routers{c.sender}
	}
	ps := c.begin()
	c.guests = &guests{ports: ps, sender: c.sender, metrics: NewMetrics(prometheus.NewRegistry()), mtu: 1500, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	c.listen()
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
func (c cableTaps) Find(string) (int, bool, error)       { return c.ifindex, false, nil }
func (c cableTaps) Delete(vnet.PortID) error             { return nil }

// cableLinks pull and plug the cable: the guest's carrier follows wire0.
type cableLinks struct{ *cable }

func (c cableLinks) Open(context.Context, vnet.Intent) (Link, error) { return c, nil }
func (cableLinks) Close() error                                      { return nil }
func (c cableLinks) Plug(ctx context.Context, in bool) error         { return c.Set(ctx, in) }

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

// listen hands what the guest sends to the agent, until the test ends.
func (c *cable) listen() {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(c.t, err)
	must(c.t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: c.ifindex})) // ETH_P_ALL
	socket := os.NewFile(uintptr(fd), "wire0")
	done := make(chan struct{})
	c.t.Cleanup(func() { socket.Close(); <-done })
	go func() {
		defer close(done)
		for b := make([]byte, 4096); ; {
			n, err := socket.Read(b)
			switch {
			case err == nil:
				c.take(slices.Clone(b[:n]))
			case !strings.Contains(err.Error(), "network is down"): // the cable is pulled
				return
			}
		}
	}()
}

// take does with a frame what the datapath does.
func (c *cable) take(f []byte) {
	p := c.agent.get(intent().ID)
	if p == nil || len(f) < 54 && f[13] != 0x06 || vnet.MAC(f[6:12]) != intent().MAC {
		return
	}
	place, _, _, ok := p.inForce()
	if !ok {
		return
	}
	hand := func(s said, what string) {
		c.mu.Lock()
		c.said = append(c.said, what)
		c.mu.Unlock()
		c.guests.take(trapped{p.id, place.Epoch, s, f})
	}
	switch {
	case f[13] == 0x06 && f[21] == 2 && place.Has(vnet.CA{Addr: netip.AddrFrom4([4]byte(f[28:]))}):
		hand(saidARP, "arp")
	case f[13] == 0x06 && f[21] == 1:
		c.answerARP(place, f)
	case f[12] == 0x08 && f[23] == 17 && binary.BigEndian.Uint16(f[36:]) == 67:
		hand(saidDHCP, "dhcp")
	case f[12] != 0x86:
	case f[20] == 17 && binary.BigEndian.Uint16(f[56:]) == 547:
		hand(saidDHCP, fmt.Sprintf("dhcpv6-%d", f[62]))
	case f[20] == 58 && f[54] == 133:
		hand(saidSolicit, "rs")
	case f[20] == 58 && f[54] == 136:
		hand(saidNeighbour, "na")
	case f[20] == 58 && f[54] == 135:
		c.answerNS(place, f)
	}
}

func (c *cable) answerARP(place *vnet.Place, f []byte) {
	sender, target := vnet.CA{Addr: netip.AddrFrom4([4]byte(f[28:]))}, vnet.CA{Addr: netip.AddrFrom4([4]byte(f[38:]))}
	if !place.Has(sender) || place.Has(target) {
		return
	}
	r := append(append(append([]byte{}, f[6:12]...), vnet.GatewayMAC[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	r = append(append(r, vnet.GatewayMAC[:]...), f[38:42]...)
	_ = c.sender.Send(c.ifindex, append(r, f[22:32]...))
}

// answerNS answers for the gateway and for the rest of the subnets, never for the
// port's own, and never one who has no address yet (duplicate address detection).
func (c *cable) answerNS(place *vnet.Place, f []byte) {
	src, target := netip.AddrFrom16([16]byte(f[22:])), netip.AddrFrom16([16]byte(f[62:]))
	onSubnet := slices.ContainsFunc(place.Addrs, func(a vnet.Addr) bool { return a.Prefix().Contains(target) })
	if src.IsUnspecified() || place.Has(vnet.CA{Addr: target}) || target != place.VNI.Gateway6() && !onSubnet {
		return
	}
	icmp := append(append([]byte{136, 0, 0, 0, 0xe0, 0, 0, 0}, target.AsSlice()...), 2, 1)
	icmp = append(icmp, vnet.GatewayMAC[:]...)
	r := append(append([]byte{}, f[6:12]...), vnet.GatewayMAC[:]...)
	r = append(r, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	r = append(append(append(r, target.AsSlice()...), src.AsSlice()...), icmp...)
	sum := uint32(58) + uint32(len(icmp))
	for i, b := range r[22:] {
		sum += uint32(b) << (8 * (1 - i%2))
	}
	binary.BigEndian.PutUint16(r[56:], ^uint16(sum%0xffff))
	_ = c.sender.Send(c.ifindex, r)
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
