package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Issue 3, point 4: guests whose NICs take more than the way does, over
// underlays of 1500 and 9000 bytes of either family.
func TestPathMTU(t *testing.T) {
	for _, f := range []fabric{fabric4(1500), fabric4(9000), fabric6(1500), fabric6(9000)} {
		t.Run(f.name, func(t *testing.T) { pathMTU(t, f) })
	}
}

func pathMTU(t *testing.T, f fabric) {
	b := newBed(t, f, copied)
	hosts := []*machine{b.host(0), b.host(1)}
	nic := f.mtu + 500
	from := b.guest(hosts[0], redA, nic, nic, hosts...) // the network promises too much, too: the underlay decides
	to := b.guest(hosts[1], redB, nic, nic, hosts...)
	for family, inner := range []string{"IPv4", "IPv6"} {
		name := inner
		t.Run(name+": UDP that mustn't be cut", func(t *testing.T) { notCut(t, from, to, family, f.inner()) })
		if family == 1 { // IPv4's pieces don't ask to be told
			t.Run(name+": a datagram in pieces", func(t *testing.T) { inPieces(t, from, to, f.inner()) })
		}
		t.Run(name+": segments fit from the first", func(t *testing.T) { clamped(t, from, to, family, f.inner()) })
		t.Run(name+": the way gets narrower", func(t *testing.T) { narrower(t, from, to, family, f.inner()-137) })
		t.Run(name+": only the far end gets narrower", func(t *testing.T) { farEnd(t, from, to, family, f.inner()-149) })
	}
}

// Over a wire that carries superpackets whole the far end is asked for one that
// its port doesn't take.
func TestPathMTUOfSuperpackets(t *testing.T) {
	for _, f := range []fabric{fabric4(1550), fabric6(1570)} {
		t.Run(f.name, func(t *testing.T) {
			b := newBed(t, f, uncut)
			hosts := []*machine{b.host(0), b.host(1)}
			from, to := b.guest(hosts[0], redA, 1500, 1500, hosts...), b.guest(hosts[1], redB, 1500, 1500, hosts...)
			for family, inner := range []string{"IPv4", "IPv6"} {
				t.Run(inner, func(t *testing.T) { farEnd(t, from, to, family, 1351) })
			}
		})
	}
}

// What a guest's metadata service sends it must fit its port, however much its NIC
// would take: nobody could tell the host's stack.
func TestMetadataFitsThePort(t *testing.T) {
	b := newBed(t, fabric4(1550), copied)
	host := b.host(0)
	g := b.guest(host, redA, 1400, 1500, host)
	document := noise(1<<16, 3)
	host.in(func() error {
		return errors.Join(sysctl("net/ipv6/conf/imds0/disable_ipv6=0"), ip("addr add %s/128 dev imds0 nodad", imds6), ip("route add fd52:5047::/32 dev imds0"))
	})
	for family, at := range []netip.Addr{imds, imds6} {
		l := host.listen(netip.AddrPortFrom(at, 80))
		served := make(chan error)
		go func() { served <- serve(l, document) }()
		var c net.Conn
		g.in(func() (err error) {
			c, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(g.at(family, 0)), net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 80)))
			return err
		})
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		_ = c.Close()
		if err != nil || !bytes.Equal(got, document) {
			t.Fatalf("from %s: %d bytes of %d, %v; drops %v", at, len(got), len(document), err, host.reasons())
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	if n := host.drop("to_too_big"); n != 0 {
		t.Errorf("%d frames were too big", n)
	}
}

// farEnd: only the MTU of the receiving port is lowered, which its own host alone
// knows: the word about it must cross the wire, to TCP and to a datagram's sender.
func farEnd(t *testing.T, from, to *guest, family, mtu int) {
	from.forget()
	to.forget()
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(1<<18, 3), noise(1<<18, 5)}); err != nil {
		t.Fatal(err)
	}
	was := to.portMTU(mtu)
	defer to.portMTU(was)
	before := to.host.drop("to_too_big")
	if err := c.exchange([2][]byte{noise(1<<20, 7), noise(1<<18, 9)}); err != nil {
		t.Fatalf("%v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	const stamps = 12
	if got, want := segmentSize(t, c.from), mtu-40-20*family-stamps; got != want {
		t.Errorf("segments of %d bytes, want %d", got, want)
	}
	if to.host.drop("to_too_big") == before {
		t.Error("nothing was too big: the far end didn't get narrower")
	}
	from.forget()
	notCut(t, from, to, family, mtu)
}

// clamped: each end's segments fit although both NICs take more, and nobody had to be told.
func clamped(t *testing.T, from, to *guest, family, mtu int) {
	before := from.host.drop("too_big") + to.host.drop("too_big")
	from.forget()
	to.forget()
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(1<<20, 3), noise(1<<20, 5)}); err != nil {
		t.Errorf("%v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	const stamps = 12
	want := mtu - 40 - 20*family - stamps
	if a, b := segmentSize(t, c.from), segmentSize(t, c.to); a != want || b != want {
		t.Errorf("segments of %d and %d bytes, want %d", a, b, want)
	}
	if n := from.host.drop("too_big") + to.host.drop("too_big") - before; n != 0 {
		t.Errorf("%d frames were too big", n)
	}
}

// narrower: the MTU of a network is lowered under a connection whose segments
// then no longer fit: it goes on with smaller ones, because its senders are told.
// Were they not, this would be a black hole.
func narrower(t *testing.T, from, to *guest, family, mtu int) {
	from.forget()
	to.forget()
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(1<<18, 3), noise(1<<18, 5)}); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*guest{from, to} {
		was := g.portMTU(mtu)
		defer g.portMTU(was)
	}
	before := from.host.drop("too_big")
	if err := c.exchange([2][]byte{noise(1<<20, 7), noise(1<<18, 9)}); err != nil {
		t.Errorf("%v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	const stamps = 12
	if got, want := segmentSize(t, c.from), mtu-40-20*family-stamps; got != want {
		t.Errorf("segments of %d bytes, want %d", got, want)
	}
	if from.host.drop("too_big") == before {
		t.Error("nothing was too big: the way didn't get narrower")
	}
}

// notCut: the sender of a datagram that is too big is told how large it may be,
// and its next one is an error at once. The largest that fits arrives.
func notCut(t *testing.T, from, to *guest, family, mtu int) {
	in, out := datagramPair(t, from, to, family)
	header := 28 + 20*family
	tooLong := noise(mtu-header+1, 3)
	if _, err := out.Write(tooLong); err != nil {
		t.Fatalf("a byte too many, and nobody has said so: %v", err)
	}
	if err := awaitError(t, out); !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("a byte too many: the kernel heard %v, want EMSGSIZE; drops %v", err, from.host.reasons())
	}
	if _, err := out.Write(tooLong); !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("a byte too many: %v, want EMSGSIZE; drops %v", err, from.host.reasons())
	}
	if got := knownMTU(t, out, family); got != mtu {
		t.Errorf("the way takes %d bytes, says the sender's kernel; want %d", got, mtu)
	}
	largest := noise(mtu-header, 5)
	if _, err := out.Write(largest); err != nil {
		t.Fatalf("the largest that fits: %v", err)
	}
	b := make([]byte, 65536)
	if err := in.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := in.Read(b); err != nil || !bytes.Equal(b[:n], largest) {
		t.Errorf("the largest that fits: %d bytes arrived, %v; want %d; drops %v and %v", n, err, len(largest), from.host.reasons(), to.host.reasons())
	}
}

// inPieces: a sender of IPv6 that cuts its datagram too large hears of the first
// piece, and the next datagram's pieces fit.
func inPieces(t *testing.T, from, to *guest, mtu int) {
	from.forget()
	in, out := datagramPair(t, from, to, 1)
	const want = 1 // IPV6_PMTUDISC_WANT
	control(t, out, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, want),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	})
	body := noise(2*mtu, 11)
	if _, err := out.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := awaitError(t, out); !errors.Is(err, unix.EMSGSIZE) || knownMTU(t, out, 1) != mtu {
		t.Fatalf("the kernel heard %v and knows %d bytes, want %d; drops %v", err, knownMTU(t, out, 1), mtu, from.host.reasons())
	}
	if _, err := out.Write(body); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65536)
	if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := in.Read(b); err != nil || !bytes.Equal(b[:n], body) {
		t.Errorf("in pieces that fit: %d bytes arrived, %v; want %d; drops %v and %v", n, err, len(body), from.host.reasons(), to.host.reasons())
	}
}

// levels are the options for what mustn't be cut, by family.
var levels = [2]struct{ level, discover, mtu int }{
	{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU},
	{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU},
}

func datagramPair(t *testing.T, from, to talker, family int) (in, out *net.UDPConn) {
	t.Helper()
	to.in(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to.at(family, 0)))
		return err
	})
	from.in(func() (err error) {
		out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	})
	t.Cleanup(func() { _, _ = in.Close(), out.Close() })
	const do = 2 // IP_PMTUDISC_DO, and IPV6_PMTUDISC_DO
	control(t, out, func(fd int) error { return unix.SetsockoptInt(fd, levels[family].level, levels[family].discover, do) })
	return in, out
}

// awaitError waits until the socket's kernel has heard of an error, and takes it. The
// kernel tells of the queued message before it notes the error (net/ipv6/udp.c).
func awaitError(t *testing.T, c *net.UDPConn) (heard error) {
	t.Helper()
	control(t, c, func(fd int) error {
		on := []unix.PollFd{{Fd: int32(fd)}} // POLLERR is always told
		for end := time.Now().Add(patience); ; {
			if n, err := unix.Poll(on, int(time.Until(end).Milliseconds())); err != nil || n == 0 {
				return fmt.Errorf("no error within %v: %w", patience, err)
			}
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if heard = unix.Errno(code); code != 0 || err != nil || time.Now().After(end) {
				return err
			}
		}
	})
	return heard
}

func knownMTU(t *testing.T, c *net.UDPConn, family int) (mtu int) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		mtu, err = unix.GetsockoptInt(fd, levels[family].level, levels[family].mtu)
		return err
	})
	return mtu
}

func control(t *testing.T, c *net.UDPConn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var did error
	err = raw.Control(func(fd uintptr) { did = f(int(fd)) })
	if err := errors.Join(err, did); err != nil {
		t.Fatal(err)
	}
}

// forget lets the guest's kernel forget what it was told of ways' sizes.
func (g *guest) forget() {
	g.t.Helper()
	g.in(func() error { return errors.Join(ip("route flush cache"), ip("-6 route flush cache")) })
}

// portMTU sets the MTU of the guest's port while it is running, and returns what it was.
func (g *guest) portMTU(mtu int) (was int) {
	g.t.Helper()
	p, err := g.host.dp.Port(g.id)
	if err != nil {
		g.t.Fatal(err)
	}
	was, p.MTU = p.MTU, mtu
	if err := g.host.dp.SetPort(g.id, p); err != nil {
		g.t.Fatal(fmt.Errorf("set the MTU of port %d: %w", g.id, err))
	}
	return was
}
