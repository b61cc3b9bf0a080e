package dataplane

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/dataplane/nd"
	"replug/dataplane/trap"
	"replug/directory/vnet"
)

// newTap makes a tap in a network namespace of the test's own, and returns its
// ifindex and the guest's end.
func newTap(t *testing.T) (int, *os.File) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the namespace goes with the thread
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	req, err := unix.NewIfreq("guest7")
	must(t, err)
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	guest := os.NewFile(uintptr(fd), "tap")
	t.Cleanup(func() { guest.Close() })
	link, err := netlink.LinkByName("guest7")
	must(t, err)
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/guest7/disable_ipv6", []byte("1"), 0))
	must(t, netlink.LinkSetUp(link))
	return link.Attrs().Index, guest
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// guestFrame is an IPv6 packet from the guest's link-local address.
func guestFrame(dst string, next, hops byte, payload []byte) []byte {
	mac := vnet.PortMAC(0x1a2b3c4d)
	src, to := netip.MustParseAddr("fe80::7c2b:91e4:5d3a:86f7"), netip.MustParseAddr(dst)
	f := append([]byte{0x33, 0x33, 0, 0, 0, 2}, mac[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(payload)))
	f = append(f, next, hops)
	f = append(append(append(f, src.AsSlice()...), to.AsSlice()...), payload...)
	sum := uint32(next) + uint32(len(payload))
	for i, b := range f[22:] {
		sum += uint32(b) << (8 * (1 - i%2))
	}
	if next == 58 {
		binary.BigEndian.PutUint16(f[56:], ^uint16(sum%0xffff))
	}
	return f
}

func solicitation() []byte { return guestFrame("ff02::2", 58, 255, []byte{133, 0, 0, 0, 0, 0, 0, 0}) }

func advertisement(target netip.Addr) []byte {
	icmp := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice()...)
	return guestFrame(redRouter, 58, 255, icmp)
}

func dhcpv6Solicit(t *testing.T) []byte {
	t.Helper()
	m, err := dhcpv6.NewSolicit([]byte{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d})
	must(t, err)
	m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	msg := m.ToBytes()
	udp := binary.BigEndian.AppendUint16([]byte{0x02, 0x22, 0x02, 0x23}, uint16(8+len(msg)))
	return guestFrame("ff02::1:2", 17, 1, append(append(udp, 0, 0), msg...))
}

// What a guest says over IPv6 is answered through its tap, and counts as a proof
// only if it is one.
func TestGuestsOverIPv6(t *testing.T) {
	ifindex, guest := newTap(t)
	in := intent()
	dual(&in.Current, "fd17:2839::51")
	registry := prometheus.NewRegistry()
	metrics := NewMetrics(registry)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	p := newPort(rooms{metrics: metrics}, in, log)
	p.setPlace(&in.Current, ifindex)
	p.setFormer([]former{{nd.Router{VNI: blue}, time.Now().Add(time.Minute)}})
	ps := &ports{byID: map[vnet.PortID]*port{in.ID: p}}
	sender, err := trap.NewSender(ps.epoch)
	must(t, err)
	defer sender.Close()
	g := &guests{ports: ps, sender: sender, metrics: metrics, mtu: 1462, log: log}
	take := func(s said, frame []byte) { g.take(trapped{in.ID, in.Current.Epoch, s, frame}) }

	take(saidSolicit, solicitation()[:60])
	g.take(trapped{in.ID, in.Current.Epoch - 1, saidSolicit, solicitation()})
	if !p.events.routed.at.IsZero() {
		t.Error("who was told nothing counts as told of the router")
	}
	take(saidSolicit, solicitation())
	if m := p.events.routed; m.at.IsZero() || m.epoch != in.Current.Epoch {
		t.Errorf("the answer to a solicitation is noted as %+v", m)
	}
	take(saidDHCP, dhcpv6Solicit(t))
	if !p.events.answers[ipv6].at.IsZero() {
		t.Error("nobody advertised anything")
	}
	take(saidNeighbour, advertisement(netip.MustParseAddr("fe80::7c2b:91e4:5d3a:86f7")))
	take(saidNeighbour, advertisement(netip.MustParseAddr("fd28:394a::62")))
	take(saidNeighbour, advertisement(in.Current.Addrs[1].CA.Addr)[:70])
	if !p.events.answers[ipv6].at.IsZero() {
		t.Error("an advertisement of another address is taken as a proof")
	}
	take(saidNeighbour, advertisement(in.Current.Addrs[1].CA.Addr))
	if m := p.events.answers[ipv6]; m.at.IsZero() || m.epoch != in.Current.Epoch {
		t.Errorf("an advertisement of the place's address is no proof: %+v", m)
	}
	if p.events.acks[ipv6].epoch != in.Current.Epoch || !p.events.acks[ipv4].at.IsZero() {
		t.Errorf("a DHCPv6 lease counts as %+v", p.events.acks)
	}

	// Former router, router, lease, and nothing for what was malformed or stale.
	must(t, prober{sender}.Probe(ifindex, in.MAC, &in.Current))
	must(t, guest.SetReadDeadline(time.Now().Add(10*time.Second)))
	var got []string
	for range 5 {
		b := make([]byte, 2048)
		n, err := guest.Read(b)
		must(t, err)
		got = append(got, describe(b[:n]))
	}
	want := "-" + blueRouter + ", " + redRouter + ", lease, arp, fd17:2839::51"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("the guest got %s; want %s", s, want)
	}
	counts := map[string]float64{"malformed": 2, "stale": 1, "solicited": 2, "grant": 1}
	if d := cmp.Diff(counts, counted(t, registry)); d != "" {
		t.Errorf("counted by label (-want +got):\n%s", d)
	}
}

// counted returns all labelled counters that are not zero, by their label's value.
func counted(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	must(t, err)
	counts := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if labels := m.GetLabel(); len(labels) == 1 && m.GetCounter().GetValue() != 0 {
				counts[labels[0].GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	return counts
}

// describe says in a word what a guest got.
func describe(f []byte) string {
	switch {
	case f[13] == 0x06:
		return "arp"
	case f[20] == 17:
		return "lease"
	case f[54] == 135:
		return netip.AddrFrom16([16]byte(f[62:])).String()
	case binary.BigEndian.Uint16(f[60:]) == 0:
		return "-" + netip.AddrFrom16([16]byte(f[22:])).String()
	}
	return netip.AddrFrom16([16]byte(f[22:])).String()
}
