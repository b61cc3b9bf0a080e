package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A fabric is the underlay of a bed: what its two hosts are called there, and
// how large its packets may be.
type fabric struct {
	name     string
	hosts    [2]netip.Addr
	pas      [2]netip.Prefix
	mtu      int
	overhead int
	of       func(member) member // a member with its PA in this fabric
}

func fabric4(mtu int) fabric {
	return fabric{fmt.Sprintf("IPv4 underlay of %d", mtu), [2]netip.Addr{hostA, hostB}, [2]netip.Prefix{prefixA, prefixB}, mtu, OverheadIPv4,
		func(m member) member { return m }}
}

func fabric6(mtu int) fabric {
	return fabric{fmt.Sprintf("IPv6 underlay of %d", mtu), [2]netip.Addr{hostA6, hostB6}, [2]netip.Prefix{prefixA6, prefixB6}, mtu, OverheadIPv6, member.over6}
}

// inner is what the fabric leaves a guest's packet.
func (f fabric) inner() int { return f.mtu - f.overhead }

// A wiring joins two rooms by a device up0 in each.
type wiring func(t *testing.T, f fabric, rooms [2]*room)

// uncut is a wire that carries 64 KiB frames as they are, as a NIC with tunnel
// offloads seems to: a veth.
func uncut(t *testing.T, f fabric, rooms [2]*room) {
	t.Helper()
	rooms[0].in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "up0", f.mtu
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerMTU: uint32(f.mtu), PeerNamespace: netlink.NsFd(int(rooms[1].ns))})
	})
}

// copied is a wire that carries nothing but the bytes of frames of its MTU, as
// between two NICs without offloads: no owner of a socket buffer crosses it (a
// veth keeps that of the sender's tap, which breaks the order of GRO), no
// unfinished checksum and no superpacket. What arrives goes through NAPI and GRO.
func copied(t *testing.T, f fabric, rooms [2]*room) {
	t.Helper()
	copyFrames(t, f, rooms, unix.IFF_NAPI, pump)
}

// headless is such a wire whose NICs leave no more of a frame in its buffer's head
// than the Ethernet header: all else stands in fragments until somebody pulls it.
func headless(t *testing.T, f fabric, rooms [2]*room) {
	t.Helper()
	copyFrames(t, f, rooms, unix.IFF_NAPI|unix.IFF_NAPI_FRAGS, pumpInPieces)
}

func copyFrames(t *testing.T, f fabric, rooms [2]*room, napi uint16, pump func(from, to *os.File)) {
	t.Helper()
	var ends [2]*os.File
	for i, r := range rooms {
		r.in(func() error {
			fd, err := openTapAs("up0", unix.IFF_TAP|unix.IFF_NO_PI|napi)
			if err != nil {
				return err
			}
			ends[i] = os.NewFile(uintptr(fd), "up0")
			return ip("link set up0 mtu %d txqueuelen 5000", f.mtu)
		})
	}
	go pump(ends[0], ends[1])
	go pump(ends[1], ends[0])
	t.Cleanup(func() { _, _ = ends[0].Close(), ends[1].Close() })
}

// A bed is two rooms with a wire between them. Each is a host with the datapath,
// or something else that has an address of the fabric.
type bed struct {
	t     *testing.T
	f     fabric
	rooms [2]*room
}

func newBed(t *testing.T, f fabric, lay wiring) *bed {
	t.Helper()
	isolate(t) // for the mounts
	b := &bed{t, f, [2]*room{newRoom(t), newRoom(t)}}
	lay(t, f, b.rooms)
	for i, r := range b.rooms {
		r.in(func() error {
			// All PAs of an IPv6 fabric are on its link too: the longer route leads to their host.
			return errors.Join(sysctl("net/ipv6/conf/up0/disable_ipv6=0"), sysctl("net/ipv6/conf/up0/accept_ra=0"),
				ip("link set up0 up"), ip("addr add %s/%d dev up0 %s", f.hosts[i], f.onLink(), f.noDAD()),
				ip("route add %s via %s dev up0", f.pas[1-i], f.hosts[1-i]))
		})
	}
	return b
}

func (f fabric) onLink() int {
	if f.hosts[0].Is6() {
		return 64
	}
	return 16
}

func (f fabric) noDAD() string {
	if f.hosts[0].Is6() {
		return "nodad"
	}
	return ""
}

// host brings the datapath into force in a room of the bed.
func (b *bed) host(i int) *machine {
	b.t.Helper()
	m := &machine{room: b.rooms[i], taps: map[uint16]int{}}
	var nic, im netlink.Link
	m.in(func() (err error) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "vx0", b.f.inner()
		vx := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 4789, UDP6ZeroCSumRx: true, UDP6ZeroCSumTx: true}
		if err := errors.Join(netlink.LinkAdd(vx), netlink.LinkSetUp(vx)); err != nil {
			return fmt.Errorf("vxlan device: %w", err)
		}
		if im, err = metadataDevice(); err != nil {
			return fmt.Errorf("metadata device: %w", err)
		}
		nic, err = netlink.LinkByName("up0")
		m.vxlan = vx.Attrs().Index
		return err
	})
	m.uplink = nic.Attrs().Index
	m.options = Options{
		PinDir: filepath.Join(bpffs(b.t), "replug"), Uplink: m.uplink, UplinkMAC: [6]byte(nic.Attrs().HardwareAddr), IMDS: im.Attrs().Index,
		IMDSMAC: [6]byte(im.Attrs().HardwareAddr), GatewayMAC: gatewayMAC, HostAddress: b.f.hosts[i], PAPrefix: b.f.pas[i], UnderlayMTU: b.f.mtu,
	}
	m.load()
	m.in(func() error {
		return errors.Join(m.dp.AttachUplink(m.uplink), m.dp.AttachVXLAN(m.vxlan), m.dp.AttachIMDS(im.Attrs().Index), m.dp.PutHost(b.f.pas[1-i]))
	})
	b.t.Cleanup(func() { _ = Remove(m.options.PinDir) })
	return m
}

// A guest is a VM's stand-in: a room whose NIC is a tap, with both families. Or a
// container: one whose NIC is a veth.
type guest struct {
	*room
	member
	host *machine
	taps [2]*os.File // of the host, and the guest's own; none if it is a container
}

// device is the guest's, on its host.
func (g *guest) device() string {
	if g.isContainer() {
		return fmt.Sprintf("veth%d", g.id)
	}
	return fmt.Sprintf("tap%d", g.id)
}

// guest plugs a guest into host and tells all hosts where it is. Its NIC's MTU
// is its own affair; mtu is its network's.
func (b *bed) guest(host *machine, who member, mtu, nicMTU int, hosts ...*machine) *guest {
	b.t.Helper()
	g := &guest{room: newRoom(b.t), member: b.f.of(who), host: host}
	index := g.plug(nicMTU)
	host.taps[who.id] = index
	port := g.port(index)
	port.MTU, port.Flags = mtu, Open|XDP
	host.in(func() error { return errors.Join(host.dp.SetPort(who.id, port), host.dp.AttachTap(index)) })
	for _, h := range hosts {
		if err := h.dp.PutMappings(g.mapping(0), g.mapping6(0)); err != nil {
			b.t.Fatal(err)
		}
	}
	return g
}

func (g *guest) plug(mtu int) (ifindex int) {
	g.t.Helper()
	g.host.in(func() error {
		f, l, err := makeTap(fmt.Sprintf("tap%d", g.id), nil)
		if err != nil {
			return err
		}
		g.taps[0], ifindex = f, l.Attrs().Index
		return netlink.LinkSetMTU(l, mtu)
	})
	g.in(func() error {
		f, _, err := makeTap("eth0", g.mac[:])
		if err != nil {
			return err
		}
		g.taps[1] = f
		// A sender may have less on the way than a tap's ring of 500 frames, which loses what it has no room for.
		return errors.Join(ip("link set eth0 mtu %d", mtu), g.address(), sysctl("net/ipv4/tcp_wmem=4096 65536 262144"))
	})
	go pump(g.taps[0], g.taps[1])
	go pump(g.taps[1], g.taps[0])
	g.t.Cleanup(func() { _, _ = g.taps[0].Close(), g.taps[1].Close() })
	return ifindex
}

// address gives eth0 the guest's addresses; the thread is in its room.
func (g *guest) address() error {
	gateways := g.gateways()
	return errors.Join(sysctl("net/ipv6/conf/eth0/accept_ra=0"), sysctl("net/ipv6/conf/eth0/disable_ipv6=0"),
		ip("addr add %s/24 dev eth0", g.ca), ip("addr add %s/64 dev eth0 nodad", g.ca6),
		ip("route add default via %s dev eth0", gateways[0]), ip("route add default via %s dev eth0", gateways[1]))
}

// offloads says whether the guest's driver has any: without, its kernel finishes
// and cuts what it sends, and gets nothing that isn't finished and cut.
func (g *guest) offloads(on bool) {
	g.t.Helper()
	if g.isContainer() {
		g.vethOffloads(on)
		return
	}
	flags := 0
	if on {
		flags = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	}
	if on && g.host.takesUSO() {
		flags |= uso
	}
	for _, f := range g.taps {
		raw, err := f.SyscallConn() // File.Fd would make reads block
		if err != nil {
			g.t.Fatal(err)
		}
		var set error
		err = raw.Control(func(fd uintptr) { set = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, flags) })
		if err := errors.Join(err, set); err != nil {
			g.t.Fatalf("TUNSETOFFLOAD %#x: %v", flags, err)
		}
	}
}

// at is a port of the guest's address of a family.
func (g *guest) at(family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(g.cas()[family], port)
}

// sent counts the guest's frames, received those to it.
func (g *guest) sent() uint64     { return g.counters().FromPackets }
func (g *guest) received() uint64 { return g.counters().ToPackets }

func (g *guest) counters() Counters {
	g.t.Helper()
	n, err := g.host.dp.PortCounters(g.id)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// onlyDropped fails if anything was dropped for another reason.
func (m *machine) onlyDropped(reasons ...string) {
	m.t.Helper()
	for why, n := range m.reasons() {
		if !slices.Contains(reasons, why) {
			m.t.Errorf("%d frames were dropped: %s", n, why)
		}
	}
}

// ip runs iproute2 in the namespace of the thread.
func ip(format string, args ...any) error { return tool("ip", format, args...) }

func tool(name, format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	if out, err := exec.Command(name, strings.Fields(line)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, line, err, out)
	}
	return nil
}
