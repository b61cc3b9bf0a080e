package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The verdicts of linux/pkt_cls.h.
const (
	actNext     = ^uint32(0)
	actShot     = uint32(2)
	actRedirect = uint32(7)
)

// Two networks with the same addresses, two hosts, two VMs of each network on
// host A and one on host B. All values are lopsided: every byte differs.
var (
	red, blue = uint32(0xABCDEF), uint32(0x5A6B7C)

	gatewayMAC = [6]byte{0x02, 0x52, 0x50, 0x4c, 0x47, 0x57}
	imdsMAC    = [6]byte{0x0e, 0x91, 0x82, 0x73, 0x64, 0x55}
	routerMAC  = [6]byte{0x06, 0x1c, 0x2d, 0x3e, 0x4f, 0x5a}

	hostA    = netip.MustParseAddr("172.31.9.37")
	hostB    = netip.MustParseAddr("172.31.11.53")
	prefixA  = netip.MustParsePrefix("100.64.18.0/24")
	prefixB  = netip.MustParsePrefix("100.64.27.0/24")
	gateway  = netip.MustParseAddr("10.17.34.3")
	caA      = netip.MustParseAddr("10.17.34.51")
	caA2     = netip.MustParseAddr("10.17.34.68")
	caB      = netip.MustParseAddr("10.17.34.86")
	caNobody = netip.MustParseAddr("10.17.34.119")

	caA6      = netip.MustParseAddr("fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b751")
	caA26     = netip.MustParseAddr("fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b768")
	caB6      = netip.MustParseAddr("fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b786")
	caNobody6 = netip.MustParseAddr("fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b7a9")

	hostA6   = netip.MustParseAddr("2001:db8:2b1d:93a7:48c6:5e7f:8291:a437")
	hostB6   = netip.MustParseAddr("2001:db8:2b1d:93a7:48c6:5e7f:8291:b553")
	prefixA6 = netip.MustParsePrefix("2001:db8:2b1d:93a7:48c6:5e7f:6218:0/112")
	prefixB6 = netip.MustParsePrefix("2001:db8:2b1d:93a7:48c6:5e7f:6427:0/112")

	redA  = member{id: 23, vni: red, mac: [6]byte{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}, pa: netip.MustParseAddr("100.64.18.73"), ca: caA, ca6: caA6, epoch: 0x0002_0000_0000_9c41}
	redA2 = member{id: 29, vni: red, mac: [6]byte{0x02, 0x52, 0x1b, 0x2c, 0x3d, 0x4e}, pa: netip.MustParseAddr("100.64.18.94"), ca: caA2, ca6: caA26, epoch: 0x0002_0000_0000_9c52}
	blueA = member{id: 31, vni: blue, mac: [6]byte{0x02, 0x52, 0x1c, 0x2d, 0x3e, 0x4f}, pa: netip.MustParseAddr("100.64.18.115"), ca: caA, ca6: caA6, epoch: 0x0002_0000_0000_9c63}
	redB  = member{id: 37, vni: red, mac: [6]byte{0x02, 0x52, 0x5e, 0x6f, 0x71, 0x82}, pa: netip.MustParseAddr("100.64.27.136"), ca: caB, ca6: caB6, epoch: 0x0002_0000_0000_9c74}
	blueB = member{id: 41, vni: blue, mac: [6]byte{0x02, 0x52, 0x5f, 0x72, 0x83, 0x94}, pa: netip.MustParseAddr("100.64.27.157"), ca: caB, ca6: caB6, epoch: 0x0002_0000_0000_9c85}
)

// A member is a port as the tests speak of it.
type member struct {
	id    uint16
	vni   uint32
	mac   [6]byte
	pa    netip.Addr
	ca    netip.Addr
	ca6   netip.Addr // invalid: none
	epoch uint64
}

func (m member) port(ifindex int) Port {
	p := Port{
		Ifindex: ifindex, VNI: m.vni, Epoch: m.epoch, MAC: m.mac, PA: m.pa,
		CAs: []netip.Prefix{netip.PrefixFrom(m.ca, 24)}, Gateway: gateway, MTU: 1500, Flags: Open,
	}
	if m.ca6.IsValid() {
		p.CAs = append(p.CAs, netip.PrefixFrom(m.ca6, 64))
	}
	return p
}

func (m member) mapping(nextHop uint32) Mapping {
	return Mapping{MappingKey{m.vni, m.ca}, m.pa, m.mac, nextHop}
}

func (m member) mapping6(nextHop uint32) Mapping {
	return Mapping{MappingKey{m.vni, m.ca6}, m.pa, m.mac, nextHop}
}

// cas are the member's addresses, by family: 0 is IPv4.
func (m member) cas() [2]netip.Addr { return [2]netip.Addr{m.ca, m.ca6} }

// gateways are those of the member's network, by family.
func (m member) gateways() [2]netip.Addr { return [2]netip.Addr{gateway, gateway6(m.vni).ip()} }

// linkLocal is an address that a guest makes itself.
func (m member) linkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m.mac[0] ^ 2, 9: m.mac[1], 10: m.mac[2], 11: 0xff, 12: 0xfe, 13: m.mac[3], 14: m.mac[4], 15: m.mac[5]})
}

// over6 is the member with a PA of the same number in an IPv6 underlay.
func (m member) over6() member {
	pas := map[netip.Prefix]netip.Prefix{prefixA: prefixA6, prefixB: prefixB6}
	b := pas[netip.PrefixFrom(m.pa, 24).Masked()].Addr().As16()
	b[14], b[15] = 0x5c, m.pa.As4()[3]
	m.pa = netip.AddrFrom16(b)
	return m
}

// A host is one load of the datapath with devices for its ports.
type host struct {
	t       *testing.T
	name    string
	dp      *Datapath
	options Options
	uplink  netlink.Link
	taps    map[uint16]int // port id -> ifindex
}

// newWorld gives the test a network namespace of its own with the two hosts,
// which know each other's mappings by next hop 7.
func newWorld(t *testing.T) (a, b *host) {
	t.Helper()
	isolate(t)
	return worldsA(t), worldsB(t)
}

// newA and newB are one host of the world alone, for a test that asks nothing of
// the other: to load a datapath takes most of a second.
func newA(t *testing.T) *host {
	t.Helper()
	isolate(t)
	return worldsA(t)
}

func newB(t *testing.T) *host {
	t.Helper()
	isolate(t)
	return worldsB(t)
}

func worldsA(t *testing.T) *host {
	t.Helper()
	a := newHost(t, "a", hostA, prefixA, nil)
	a.must(a.dp.PutHost(prefixB))
	a.settle(over4, redA, redA2, blueA)
	return a
}

func worldsB(t *testing.T) *host {
	t.Helper()
	b := newHost(t, "b", hostB, prefixB, unhurried)
	b.must(b.dp.PutHost(prefixA))
	b.settle(over4, redB, blueB)
	return b
}

// unhurried is a host that keeps aggregated flows aggregated while a busy machine
// holds a test up.
func unhurried(o *Options) { o.FlowIdle = 5 * time.Second }

func over4(m member) member { return m }

// newWorld6 is newWorld over an IPv6 underlay; its members are over6.
func newWorld6(t *testing.T) (a, b *host) {
	t.Helper()
	isolate(t)
	return worldsA6(t), worldsB6(t)
}

// newB6 is newB over an IPv6 underlay.
func newB6(t *testing.T) *host {
	t.Helper()
	isolate(t)
	return worldsB6(t)
}

func worldsA6(t *testing.T) *host {
	t.Helper()
	a := newHost(t, "a", hostA6, prefixA6, wide)
	a.must(a.dp.PutHost(prefixB6))
	a.settle(member.over6, redA, redA2, blueA)
	return a
}

func worldsB6(t *testing.T) *host {
	t.Helper()
	b := newHost(t, "b", hostB6, prefixB6, func(o *Options) { wide(o); unhurried(o) })
	b.must(b.dp.PutHost(prefixA6))
	b.settle(member.over6, redB, blueB)
	return b
}

// wide gives a guest's 1500 bytes the room that they need over IPv6.
func wide(o *Options) { o.UnderlayMTU = 1570 }

// settle gives the host its own members, and the mappings of all.
func (h *host) settle(of func(member) member, own ...member) {
	h.t.Helper()
	for _, m := range own {
		h.addPorts(of(m))
	}
	for _, m := range []member{redA, redA2, blueA, redB, blueB} {
		h.must(h.dp.PutMappings(of(m).mapping(7), of(m).mapping6(7)))
	}
	h.must(h.dp.SetNextHop(7, NextHop{Ifindex: h.uplink.Attrs().Index, Dst: routerMAC, Src: [6]byte(h.uplink.Attrs().HardwareAddr)}))
}

// isolate puts the test into network and mount namespaces of its own. The thread
// is never unlocked, so Go ends it with the test and the kernel frees both.
func isolate(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Fatalf("unshare: %v (needs root)", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make mounts private: %v", err)
	}
}

// bpffs mounts one for the test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func newHost(t *testing.T, name string, addr netip.Addr, pas netip.Prefix, change func(*Options)) *host {
	t.Helper()
	return newHostBy(t, Load, name, addr, pas, change)
}

func newHostBy(t *testing.T, load func(Options) (*Datapath, error), name string, addr netip.Addr, pas netip.Prefix, change func(*Options)) *host {
	t.Helper()
	h := &host{t: t, name: name, taps: map[uint16]int{}}
	h.uplink = h.veth("up-"+name, net.HardwareAddr{0x06, 0x1d, 0x2e, 0x3f, 0x4a, addr.As16()[15]})
	h.options = Options{
		PinDir: filepath.Join(bpffs(t), "replug"), Uplink: h.uplink.Attrs().Index, IMDS: 1, IMDSMAC: imdsMAC,
		UplinkMAC: [6]byte(h.uplink.Attrs().HardwareAddr), GatewayMAC: gatewayMAC, HostAddress: addr, PAPrefix: pas, UnderlayMTU: 1550,
	}
	if change != nil {
		change(&h.options)
	}
	dp, err := load(h.options)
	if err != nil {
		t.Fatalf("Load: %+v", err)
	}
	h.dp = dp
	t.Cleanup(func() { h.must(errors.Join(dp.Close(), Remove(h.options.PinDir))) })
	return h
}

func (h *host) veth(name string, mac net.HardwareAddr) netlink.Link {
	h.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-p"}))
	l, err := netlink.LinkByName(name)
	h.must(err)
	return l
}

func (h *host) addPorts(members ...member) {
	h.t.Helper()
	for _, m := range members {
		l := h.veth(fmt.Sprintf("tap%d-%s", m.id, h.name), nil)
		h.taps[m.id] = l.Attrs().Index
		h.must(h.dp.SetPort(m.id, m.port(l.Attrs().Index)))
	}
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// An skb is struct __sk_buff (linux/bpf.h), of which a test run reads and writes
// only the fields with a name.
type skb struct {
	_       [2]uint32
	Mark    uint32
	_       [7]uint32
	Ifindex uint32
	_       [30]uint32
	GSOSegs uint32
	_       [2]uint32
	GSOSize uint32
	_       [3]uint32
}

// run puts one frame through a program.
func (h *host) run(p *ebpf.Program, in skb, frame []byte) (verdict uint32, out []byte, after skb) {
	h.t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: in, ContextOut: &after}
	verdict, err := p.Run(&opts)
	if err != nil {
		h.t.Fatalf("run %s over %d bytes: %v", p, len(frame), err)
	}
	return verdict, opts.DataOut, after
}

// send is a frame from the VM of m.
func (h *host) send(m member, frame []byte) (uint32, []byte) {
	h.t.Helper()
	v, out, _ := h.run(h.dp.objs.FromVm, skb{Ifindex: uint32(h.taps[m.id])}, frame)
	return v, out
}

// receive is a frame from the underlay, addressed to the uplink's MAC.
func (h *host) receive(frame []byte) (uint32, []byte) {
	h.t.Helper()
	v, out, _ := h.run(h.dp.objs.FromWire, skb{Ifindex: uint32(h.uplink.Attrs().Index)}, h.arriving(frame))
	return v, out
}

// arriving is frame with the outer destination MAC that the last router writes.
func (h *host) arriving(frame []byte) []byte {
	frame = append([]byte(nil), frame...)
	copy(frame, h.uplink.Attrs().HardwareAddr)
	return frame
}

// drops returns the reasons that have counted, and how often. "none" counts the
// frames that weren't dropped.
func (h *host) drops() map[string]uint64 {
	h.t.Helper()
	all, err := h.dp.Drops()
	h.must(err)
	forwarded, err := h.dp.Forwarded()
	h.must(err)
	out := map[string]uint64{"none": forwarded}
	for r, n := range all {
		out[r.String()] = n
	}
	maps.DeleteFunc(out, func(_ string, n uint64) bool { return n == 0 })
	return out
}

// counted fails unless exactly one frame was counted since before, under want.
func (h *host) counted(name string, before map[string]uint64, want string) {
	h.t.Helper()
	after := h.drops()
	for r, n := range before {
		after[r] -= n
	}
	maps.DeleteFunc(after, func(_ string, n uint64) bool { return n == 0 })
	if len(after) != 1 || after[want] != 1 {
		h.t.Errorf("%s: counted %v, want %s once", name, after, want)
	}
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("the datapath's tests need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func subnet(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// callerOf is the address by which the metadata service knows a port over IPv4:
// class E, 14 bits of port id, 14 of epoch.
func callerOf(id uint16, epoch uint64) netip.Addr {
	v := 0xf0000000 | uint32(id)<<14 | uint32(epoch)&0x3fff
	return addr4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// callerOf6 is that address over IPv6: the port id in bytes 6 and 7, the epoch in the last 8.
func callerOf6(id uint16, epoch uint64) netip.Addr {
	b := netip.MustParseAddr("fd52:5047::").As16()
	binary.BigEndian.PutUint16(b[6:], id)
	binary.BigEndian.PutUint64(b[8:], epoch)
	return netip.AddrFrom16(b)
}
