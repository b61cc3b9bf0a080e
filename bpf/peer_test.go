package bpf

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// container plugs a guest into host by a veth, whose other end is in the guest's
// namespace, and tells all hosts where it is.
func (b *bed) container(host *machine, who member, hosts ...*machine) *guest {
	b.t.Helper()
	const mtu = 1500
	g := &guest{room: newRoom(b.t), member: b.f.of(who), host: host}
	var index int
	host.in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = g.device(), mtu
		l := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: mtu, PeerHardwareAddr: who.mac[:], PeerNamespace: netlink.NsFd(int(g.ns))}
		err := errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
		index = l.Attrs().Index
		return errors.Join(err, onOneCPU(g.device()))
	})
	g.in(func() error {
		// Less than a veth's ring of 256 frames, which loses what it has no room for.
		return errors.Join(ip("link set eth0 up"), g.address(), sysctl("net/ipv4/tcp_wmem=4096 65536 262144"))
	})
	port := g.member.port(index)
	port.MTU, port.Flags = mtu, Open|Peer
	host.in(func() error { return errors.Join(host.dp.SetPort(who.id, port), host.dp.AttachTap(index)) })
	for _, h := range hosts {
		if err := h.dp.PutMappings(g.mapping(0), g.mapping6(0)); err != nil {
			b.t.Fatal(err)
		}
	}
	return g
}

// onOneCPU has a veth's frames received by one CPU. The kernel takes them up on that
// of their sender, so that those of a thread which the scheduler moves overtake each
// other before the datapath has seen them.
func onOneCPU(veth string) error { return setDevice(veth, "queues/rx-0/rps_cpus", "1") }

// isContainer reports whether the guest's NIC is a veth.
func (g *guest) isContainer() bool { return g.taps[0] == nil }

// vethOffloads says whether both ends of a container's veth take superpackets and
// unfinished checksums: without, the kernel cuts and finishes what goes through
// either's queue.
func (g *guest) vethOffloads(on bool) {
	g.t.Helper()
	tx := map[bool]string{true: "on", false: "off"}[on]
	g.in(func() error { return tool("ethtool", "-K eth0 tx %s", tx) })
	g.host.in(func() error { return tool("ethtool", "-K %s tx %s", g.device(), tx) })
}

// queued counts the frames that went to the guest through its device's queue.
func (g *guest) queued() (n uint64) {
	g.t.Helper()
	g.host.in(func() error {
		l, err := netlink.LinkByName(g.device())
		if err == nil {
			n = l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return n
}

// skipsQueue reports whether frames to the guest skip its queue: those to a
// container from the same host, and from another whose underlay is of their
// family. Those of the other family would be read as what they are not.
func (g *guest) skipsQueue(from *guest, family int) bool {
	return g.isContainer() && (from.host == g.host || g.pa.Is6() == (family == 1))
}

// The matrix of [TestOffloads] for containers, whose superpackets and unfinished
// checksums are socket buffers of the host itself, which change rooms as they are.
func TestContainers(t *testing.T) { overFabrics(t, (*bed).container) }
