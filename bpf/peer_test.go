package bpf

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

// container plugs a guest into host by a veth, whose other end is in the guest's
// namespace, and tells all hosts where it is.
func (b *bed) container(host *machine, who member, mtu int, hosts ...*machine) *guest {
	b.t.Helper()
	g := &guest{room: newRoom(b.t), member: b.f.of(who), host: host}
	var index int
	host.in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = fmt.Sprintf("veth%d", who.id), mtu
		l := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(mtu), PeerHardwareAddr: who.mac[:], PeerNamespace: netlink.NsFd(int(g.ns))}
		err := errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
		index = l.Attrs().Index
		return err
	})
	g.in(func() error { return errors.Join(ip("link set eth0 up"), g.address()) })
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

// queued counts the frames that went to a container through its veth's queue.
func (g *guest) queued() (n uint64) {
	g.t.Helper()
	g.host.in(func() error {
		l, err := netlink.LinkByName(fmt.Sprintf("veth%d", g.id))
		if err == nil {
			n = l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return n
}

// A container's frames skip its veth's queue: from the same host, and from
// another whose underlay is of their family. Those of the other family take it,
// or their headers would be read as what they are not. Both carry TCP and UDP,
// merged frames among them, and their bytes arrive.
func TestContainers(t *testing.T) {
	for i, f := range []fabric{fabric4(1550), fabric6(1570)} {
		t.Run(f.name, func(t *testing.T) {
			b := newBed(t, f, copied)
			hosts := []*machine{b.host(0), b.host(1)}
			from, beside, away := b.container(hosts[0], redA, 1500, hosts...), b.container(hosts[0], redA2, 1500, hosts...), b.container(hosts[1], redB, 1500, hosts...)
			for family, name := range []string{"IPv4", "IPv6"} {
				t.Run("same host, "+name, func(t *testing.T) { contained(t, from, beside, family, true) })
				t.Run("cross host, "+name, func(t *testing.T) { contained(t, from, away, family, family == i) })
			}
			for _, h := range hosts {
				h.onlyDropped("ip_options", "nd_probe")
			}
		})
	}
}

func contained(t *testing.T, from, to *guest, family int, skips bool) {
	before := to.queued()
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(2<<20, 3), noise(1<<20, 5)}); err != nil {
		t.Errorf("TCP: %v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	if err := datagrams(from, to, family, 12); err != nil {
		t.Errorf("UDP: %v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	// The gateway's answers are few.
	if n := to.queued() - before; skips != (n < 10) {
		t.Errorf("%d frames went through the queue of the veth, skips it %t", n, skips)
	}
}
