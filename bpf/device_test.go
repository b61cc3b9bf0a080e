package bpf

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A machine is a host with real devices: an uplink, the VXLAN device, the
// metadata device, taps.
type machine struct {
	*room
	dp      *Datapath
	uplink  int
	vxlan   int
	options Options
	taps    map[uint16]int
}

// newMachines makes two hosts on one wire. No next hop is set: the kernel's
// tables lead from one to the other.
func newMachines(t *testing.T) (a, b *machine) {
	t.Helper()
	isolate(t) // for the mounts
	a, b = &machine{room: newRoom(t)}, &machine{room: newRoom(t)}
	wire(t, a.room, b.room, hostA, hostB)
	a.start(hostA, prefixA, prefixB)
	b.start(hostB, prefixB, prefixA)
	return a, b
}

func (m *machine) start(self netip.Addr, pas, others netip.Prefix) {
	m.t.Helper()
	m.taps = map[uint16]int{}
	var imdsIndex int
	var imdsAddr []byte
	m.in(func() error {
		up, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "vx0", 1500
		vx := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 4789, Learning: false}
		if err := errors.Join(netlink.LinkAdd(vx), netlink.LinkSetUp(vx)); err != nil {
			return fmt.Errorf("vxlan device: %w", err)
		}
		im, err := metadataDevice()
		if err != nil {
			return fmt.Errorf("metadata device: %w", err)
		}
		m.uplink, m.vxlan, imdsIndex, imdsAddr = up.Attrs().Index, vx.Attrs().Index, im.Attrs().Index, im.Attrs().HardwareAddr
		return nil
	})
	m.options = Options{
		PinDir: filepath.Join(bpffs(m.t), "replug"), Uplink: m.uplink, IMDS: imdsIndex, IMDSMAC: [6]byte(imdsAddr),
		GatewayMAC: gatewayMAC, HostAddress: self, PAPrefix: pas, UnderlayMTU: 1550,
	}
	m.load()
	m.in(func() error {
		return errors.Join(m.dp.AttachUplink(m.uplink), m.dp.AttachVXLAN(m.vxlan), m.dp.AttachIMDS(imdsIndex), m.dp.PutHost(others))
	})
	m.t.Cleanup(func() { _ = Remove(m.options.PinDir) })
}

func (m *machine) load() {
	m.t.Helper()
	dp, err := Load(m.options)
	if err != nil {
		m.t.Fatalf("%+v", err)
	}
	m.dp = dp
	m.t.Cleanup(func() { _ = dp.Close() })
}

// metadataDevice makes imds0 as the host agent does.
func metadataDevice() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "imds0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "imds1"}); err != nil {
		return nil, err
	}
	l, err := netlink.LinkByName("imds0")
	if err != nil {
		return nil, err
	}
	peer, err := netlink.LinkByName("imds1")
	if err != nil {
		return nil, err
	}
	classE := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: netlink.NewIPNet(net.IPv4(240, 0, 0, 0)), Scope: netlink.SCOPE_LINK}
	classE.Dst.Mask = []byte{240, 0, 0, 0}
	return l, errors.Join(
		netlink.LinkSetARPOff(l), netlink.LinkSetUp(l), netlink.LinkSetUp(peer),
		netlink.AddrAdd(l, &netlink.Addr{IPNet: netlink.NewIPNet(imds.AsSlice())}),
		netlink.RouteAdd(classE),
	)
}

// add gives a port a guest and tells both hosts where it is.
func (m *machine) add(who member, hosts ...*machine) (guest *room, tap *os.File) {
	m.t.Helper()
	guest = newRoom(m.t)
	ifindex, tap := guest.guest(m.room, who)
	m.taps[who.id] = ifindex
	m.in(func() error {
		return errors.Join(m.dp.SetPort(who.id, who.port(ifindex)), m.dp.AttachTap(ifindex))
	})
	for _, h := range hosts {
		if err := h.dp.PutMappings(who.mapping(0)); err != nil {
			m.t.Fatal(err)
		}
	}
	return guest, tap
}

// Eight megabytes of TCP between two guests over two hosts and a wire, in two
// networks with the same addresses at once: each gets its own bytes, aggregated
// frames go by the VXLAN device and nothing is dropped.
func TestOverRealDevices(t *testing.T) {
	a, b := newMachines(t)
	redClient, _ := a.add(redA, a, b)
	blueClient, _ := a.add(blueA, a, b)
	redServer, _ := b.add(redB, a, b)
	blueServer, _ := b.add(blueB, a, b)

	want := map[string][]byte{"red": bytes.Repeat(text(8191), 1024), "blue": bytes.Repeat(text(4093), 2048)}
	results := make(chan error)
	for network, pair := range map[string][2]*room{"red": {redClient, redServer}, "blue": {blueClient, blueServer}} {
		l := pair[1].listen(netip.AddrPortFrom(caB, 7946))
		c := pair[0].dial(netip.AddrPortFrom(caB, 7946))
		go func() { results <- serve(l, want[network]) }()
		go func() {
			got, err := fetch(c)
			if err == nil && sha256.Sum256(got) != sha256.Sum256(want[network]) {
				err = fmt.Errorf("%s: got %d bytes that aren't the %d sent", network, len(got), len(want[network]))
			}
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	var up uint64
	a.in(func() error {
		l, err := netlink.LinkByName("vx0")
		up = l.Attrs().Statistics.RxPackets
		return err
	})
	// The servers send: the aggregated frames arrive at host A.
	if up < 100 {
		t.Errorf("%d frames came up the VXLAN device, want the aggregated ones", up)
	}
	for name, m := range map[string]*machine{"a": a, "b": b} {
		if got := m.reasons(); len(got) != 0 {
			t.Errorf("host %s dropped %v", name, got)
		}
	}
}

// A guest hands down one UDP superpacket (QUIC stacks do): it crosses whole and
// comes out as the datagrams that were sent.
func TestUDPSegments(t *testing.T) {
	a, b := newMachines(t)
	client, _ := a.add(redA, a, b)
	server, _ := b.add(redB, a, b)
	var in net.PacketConn
	server.in(func() (err error) {
		in, err = net.ListenPacket("udp4", netip.AddrPortFrom(caB, 7946).String())
		return err
	})
	defer in.Close()
	data := text(9*1187 + 613)
	client.in(func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(caB, 7946).String())
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var set error
		err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1187) })
		if err := errors.Join(err, set); err != nil {
			return err
		}
		_, err = c.Write(data)
		return err
	})
	b1 := make([]byte, 65536)
	for i := 0; len(data) > 0; i++ {
		if err := in.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := in.ReadFrom(b1)
		want := data[:min(1187, len(data))]
		if err != nil || !bytes.Equal(b1[:n], want) {
			t.Fatalf("datagram %d: got %d bytes, %v, want %d; drops %v %v", i, n, err, len(want), a.reasons(), b.reasons())
		}
		data = data[len(want):]
	}
	n, err := a.dp.PortCounters(redA.id)
	if err != nil || a.takesUSO() && n.FromPackets > 2 { // the ARP request, and the superpacket
		t.Errorf("%d frames from the guest, %v: the datagrams came one by one", n.FromPackets, err)
	}
}

// The mark is no promise: what comes up the VXLAN device is compared with the
// row again, since it may have flipped in between. A socket of the host stands
// in for from_wire, because it can set a mark.
func TestUpTheVXLANDevice(t *testing.T) {
	a, _ := newMachines(t)
	guest, _ := a.add(redA, a)
	frame := eth(redA.mac, redB.mac, etherIPv4, udp4(caB, caA, 7946, 5353, text(37)))
	for _, c := range []struct {
		name, reason string
		mark         uint32
		vni          uint32
		frame        []byte
	}{
		{"as from_wire left it", "", 0x5eb70000 | uint32(redA.id), red, frame},
		{"no mark", "unmarked", 0, red, frame},
		{"another mark", "unmarked", 0x6eb70000 | uint32(redA.id), red, frame},
		{"the port went to another network", "changed", 0x5eb70000 | uint32(redA.id), blue, frame},
		{"the port is gone", "changed", 0x5eb70000 | uint32(blueA.id), red, frame},
		{"the port has another address now", "wrong_ca", 0x5eb70000 | uint32(redA.id), red,
			eth(redA.mac, redB.mac, etherIPv4, udp4(caB, caNobody, 7946, 5353, text(37)))},
	} {
		delivered := func() uint64 {
			n, err := a.dp.PortCounters(redA.id)
			if err != nil {
				t.Fatal(err)
			}
			return n.ToPackets
		}
		count := delivered
		if c.reason != "" {
			count = func() uint64 { return a.drop(c.reason) }
		}
		before := count()
		a.sendUp(c.mark, tunnel{vni: c.vni, src: hostA, dst: hostA}.with(c.frame)[42:])
		if !within(func() bool { return count() == before+1 }) {
			t.Fatalf("%s: counted %d times, want once; %v", c.name, count()-before, a.reasons())
		}
	}
	answerClimbs(t, a, guest)
}

// answerClimbs: a backend's answer that went up the VXLAN device becomes the
// service's there, and the guest's kernel takes its checksum; once its row has
// gone, it is refused.
func answerClimbs(t *testing.T, a *machine, guest *room) {
	t.Helper()
	var in net.PacketConn
	guest.in(func() (err error) {
		in, err = net.ListenPacket("udp4", netip.AddrPortFrom(caA, 40329).String())
		return err
	})
	defer in.Close()
	clock, err := a.dp.clock(false)
	if err != nil {
		t.Fatal(err)
	}
	key := datapathFlowKey{Remote: as16(caB), Local: as16(caA), PortId: redA.id, Rport: swap16(7951), Lport: swap16(40329), Proto: protoUDP}
	row := datapathFlow{Epoch: redA.epoch, Seen: clock.now, Nat: as16(vips[0]), NatPort: swap16(8453), Flags: uint8(datapathFlowFlagFLOW_BACKEND)}
	if err := a.dp.putFlow(key, row, ebpf.UpdateAny); err != nil {
		t.Fatal(err)
	}
	answer := tunnel{vni: red, src: hostA, dst: hostA}.with(eth(redA.mac, redB.mac, etherIPv4, udp4(caB, caA, 7951, 40329, text(53))))[42:]
	const mark = 0x5eb70000 | 0x8000
	a.sendUp(mark|uint32(redA.id), answer)
	b := make([]byte, 2048)
	if err := in.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, from, err := in.ReadFrom(b)
	if err != nil || from.String() != netip.AddrPortFrom(vips[0], 8453).String() || !bytes.Equal(b[:n], text(53)) {
		t.Errorf("got %d bytes from %v, %v, want 53 from the service; drops %v", n, from, err, a.reasons())
	}
	if err := a.dp.deleteFlow(key); err != nil {
		t.Fatal(err)
	}
	before := a.drop("changed")
	a.sendUp(mark|uint32(redA.id), answer)
	if !within(func() bool { return a.drop("changed") == before+1 }) {
		t.Fatalf("an answer whose row has gone wasn't refused; %v", a.reasons())
	}
}

// Two guests with the same address ask the metadata service: it tells them apart
// by the caller's address, and a connection of an old epoch is dead after a flip.
func TestMetadataKnowsTheCaller(t *testing.T) {
	a, _ := newMachines(t)
	var l net.Listener
	a.in(func() (err error) { l, err = net.Listen("tcp4", "169.254.169.254:80"); return err })
	t.Cleanup(func() { _ = l.Close() })
	callers := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			callers <- c
		}
	}()
	for _, m := range []member{redA, blueA} {
		guest, _ := a.add(m, a)
		c := guest.dial(netip.AddrPortFrom(imds, 80))
		server := <-callers
		got := server.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		want := callerOf(m.id, m.epoch)
		if got != want {
			t.Errorf("port %d calls as %s, want %s", m.id, got, want)
		}
		exchange(t, c, server, text(4001))

		next := m.port(a.taps[m.id])
		next.Epoch++
		if err := a.dp.SetPort(m.id, next); err != nil {
			t.Fatal(err)
		}
		before := a.drop("stale_epoch")
		if _, err := server.Write(text(97)); err != nil {
			t.Fatal(err)
		}
		if !within(func() bool { return a.drop("stale_epoch") != before }) {
			t.Fatal("a reply of the old epoch wasn't refused")
		}
		_, _ = c.Close(), server.Close()
	}
}

// Invariant 7: a new agent takes over while a connection is running. No byte is
// lost, and no frame but retransmitted ones would show if one had been.
func TestUpgradeUnderTraffic(t *testing.T) {
	a, b := newMachines(t)
	client, _ := a.add(redA, a, b)
	server, _ := b.add(redB, a, b)
	data := bytes.Repeat(text(8191), 4096)
	l := server.listen(netip.AddrPortFrom(caB, 7946))
	go func() { _ = serve(l, data) }()
	c := client.dial(netip.AddrPortFrom(caB, 7946))
	first := make([]byte, 1<<20)
	if _, err := io.ReadFull(c, first); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		old := b.dp
		b.load()
		b.in(func() error {
			return errors.Join(b.dp.AttachUplink(b.uplink), b.dp.AttachVXLAN(b.vxlan), b.dp.AttachTap(b.taps[redB.id]))
		})
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
	}
	rest, err := fetch(c)
	if err != nil || !bytes.Equal(append(first, rest...), data) {
		t.Errorf("got %d bytes, %v, want %d", len(first)+len(rest), err, len(data))
	}
	for name, m := range map[string]*machine{"a": a, "b": b} {
		if got := m.reasons(); len(got) != 0 {
			t.Errorf("host %s dropped %v", name, got)
		}
	}
}

// within waits until something holds that nobody tells of; false: it doesn't come.
// What it asks for are counters in BPF maps: the kernel has no event for a write
// to a map, so that it must be asked again and again.
func within(holds func() bool) bool {
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// sendUp puts a VXLAN packet on the host's loopback, with a mark.
func (m *machine) sendUp(mark uint32, packet []byte) {
	m.t.Helper()
	m.in(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return err
		}
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Port: 4789, Addr: m.options.HostAddress.As4()})
	})
}

// reasons returns what has been dropped, by reason.
func (m *machine) reasons() map[string]uint64 {
	m.t.Helper()
	all, err := m.dp.Drops()
	if err != nil {
		m.t.Fatal(err)
	}
	out := map[string]uint64{}
	for r, n := range all {
		if n > 0 {
			out[r.String()] = n
		}
	}
	return out
}

func (m *machine) drop(reason string) uint64 { return m.reasons()[reason] }
