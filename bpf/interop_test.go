package bpf

import (
	"errors"
	"math/bits"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Issue 3, point 2: a plain Linux host with a kernel VXLAN device and static
// entries is a member of a network. It is known by a mapping, which is what a
// VTEP is, and by its registered address. TCP goes both ways in superpackets, IPv4
// and IPv6, over either underlay, of small frames and jumbo frames; over IPv6 with the
// outer checksum and without.
func TestKernelVXLANInteroperates(t *testing.T) {
	for _, f := range []fabric{fabric4(1550), fabric4(9000)} {
		t.Run(f.name, func(t *testing.T) { interoperates(t, f, "") })
	}
	for _, f := range []fabric{fabric6(1570), fabric6(9000)} {
		t.Run(f.name, func(t *testing.T) { interoperates(t, f, "udp6zerocsumtx udp6zerocsumrx") })
		t.Run(f.name+", with checksums", func(t *testing.T) { interoperates(t, f, "noudp6zerocsumtx udp6zerocsumrx") })
	}
}

func interoperates(t *testing.T, f fabric, flags string) {
	b := newBed(t, f, uncut)
	host := b.host(0)
	g := b.guest(host, redA, f.inner(), f.inner(), host)
	p := b.plain(flags, g)
	host.in(func() error {
		mapping, mapping6 := p.mapping(0), p.mapping6(0)
		return errors.Join(host.dp.PutHost(netip.PrefixFrom(p.pa, p.pa.BitLen())), host.dp.PutMappings(mapping, mapping6))
	})
	for family, inner := range []string{"IPv4", "IPv6"} {
		for name, ends := range map[string][2]talker{"guest calls": {g, p}, "guest is called": {p, g}} {
			from, to := host.superpackets(g.id, false, f.inner()), host.superpackets(g.id, true, f.inner())
			c := connect(t, ends[0], ends[1], family)
			if err := c.exchange([2][]byte{noise(4<<20, 3), noise(4<<20, 5)}); err != nil {
				t.Errorf("%s, %s: %v; drops %v", inner, name, err, host.reasons())
			}
			if from, to := from(), to(); from < 20 || to < 20 {
				t.Errorf("%s, %s: %d superpackets from the guest and %d to it, want 20 of each 4 MiB", inner, name, from, to)
			}
		}
	}
	host.onlyDropped("ip_options", "nd_probe")
}

// superpackets counts the frames from a port's guest, or to it, that no wire of an MTU
// could carry: until the function that it returns is called for their number.
func (m *machine) superpackets(id uint16, to bool, mtu int) func() uint32 {
	m.t.Helper()
	const outgoing, pass, packetType = unix.PACKET_OUTGOING, 1, 0xfffff000 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE (linux/filter.h)
	right, wrong := uint8(0), uint8(3)
	if !to {
		right, wrong = 3, 0
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: packetType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: outgoing, Jt: right, Jf: wrong},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: uint32(14 + mtu), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: pass},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	fd := -1
	m.in(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(unix.ETH_P_ALL), Ifindex: m.taps[id]}))
	})
	return func() uint32 {
		defer unix.Close(fd)
		n, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			m.t.Fatal(err)
		}
		return n.Packets // those for which the socket had no room too
	}
}

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
