package bpf

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

// Issue 3, point 2: a plain Linux host with a kernel VXLAN device and static
// entries is a member of a network. It is known by a mapping, which is what a
// VTEP is, and by its registered address. TCP goes both ways in superpackets, IPv4
// and IPv6, over either underlay; over IPv6 with the outer checksum and without.
func TestKernelVXLANInteroperates(t *testing.T) {
	t.Run("over IPv4", func(t *testing.T) { interoperates(t, fabric4(1550), "") })
	t.Run("over IPv6", func(t *testing.T) { interoperates(t, fabric6(1570), "udp6zerocsumtx udp6zerocsumrx") })
	t.Run("over IPv6, with checksums", func(t *testing.T) { interoperates(t, fabric6(1570), "noudp6zerocsumtx udp6zerocsumrx") })
}

func interoperates(t *testing.T, f fabric, flags string) {
	b := newBed(t, f, uncut)
	host := b.host(0)
	g := b.guest(host, redA, 1500, 1500, host)
	p := b.plain(flags, g)
	host.in(func() error {
		mapping, mapping6 := p.mapping(0), p.mapping6(0)
		return errors.Join(host.dp.PutHost(netip.PrefixFrom(p.pa, p.pa.BitLen())), host.dp.PutMappings(mapping, mapping6))
	})
	for family, inner := range []string{"IPv4", "IPv6"} {
		for name, ends := range map[string][2]talker{"guest calls": {g, p}, "guest is called": {p, g}} {
			before, err := host.dp.PortCounters(g.id)
			if err != nil {
				t.Fatal(err)
			}
			c := connect(t, ends[0], ends[1], family)
			if err := c.exchange([2][]byte{noise(4<<20, 3), noise(4<<20, 5)}); err != nil {
				t.Errorf("%s, %s: %v; drops %v", inner, name, err, host.reasons())
			}
			n, err := host.dp.PortCounters(g.id)
			if err != nil {
				t.Fatal(err)
			}
			from, to := perFrame(n.FromBytes-before.FromBytes, n.FromPackets-before.FromPackets), perFrame(n.ToBytes-before.ToBytes, n.ToPackets-before.ToPackets)
			if from < 3000 || to < 3000 {
				t.Errorf("%s, %s: frames of %d bytes from the guest and %d to it on average, want superpackets", inner, name, from, to)
			}
		}
	}
	host.onlyDropped("ip_options", "nd_probe")
}

func perFrame(bytes, frames uint64) uint64 { return bytes / max(frames, 1) }

// A plainHost is a machine without Replug, which has a kernel VXLAN device.
type plainHost struct {
	*room
	member
}

func (p *plainHost) at(family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.cas()[family], port)
}

// plain makes the bed's other room a plain host, which is told of one guest.
func (b *bed) plain(flags string, peer *guest) *plainHost {
	b.t.Helper()
	p := &plainHost{b.rooms[1], redB}
	p.pa = b.f.hosts[1]
	p.in(func() error {
		mac := macOf(peer.mac)
		return errors.Join(
			ip("link add vx1 address %s mtu %d type vxlan id %d local %s dstport 4789 nolearning %s", macOf(p.mac), b.f.inner(), p.vni, p.pa, flags),
			sysctl("net/ipv6/conf/vx1/disable_ipv6=0"), sysctl("net/ipv6/conf/vx1/accept_ra=0"), ip("link set vx1 up"),
			ip("addr add %s/24 dev vx1", p.ca), ip("addr add %s/64 dev vx1 nodad", p.ca6),
			tool("bridge", "fdb append %s dev vx1 dst %s", mac, peer.pa),
			ip("neigh add %s lladdr %s dev vx1", peer.ca, mac), ip("neigh add %s lladdr %s dev vx1", peer.ca6, mac))
	})
	return p
}

func macOf(mac [6]byte) net.HardwareAddr { return mac[:] }
