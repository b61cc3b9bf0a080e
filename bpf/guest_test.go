package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A room is a network namespace without a name, gone with the test.
type room struct {
	t      *testing.T
	ns     netns.NsHandle
	mounts *os.File // mount namespace of the test's own thread
}

// newRoom makes a room. The test has called isolate.
func newRoom(t *testing.T) *room {
	t.Helper()
	mounts, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	r := &room{t: t, mounts: mounts}
	onThread(t, func() error {
		ns, err := netns.New()
		if err != nil {
			return fmt.Errorf("new network namespace (needs root): %w", err)
		}
		r.ns = ns
		for _, s := range []string{"net/ipv6/conf/all/disable_ipv6=1", "net/ipv6/conf/default/disable_ipv6=1"} {
			if err := sysctl(s); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	t.Cleanup(func() { _, _ = r.ns.Close(), r.mounts.Close() })
	return r
}

// in runs f inside the room. Sockets that f opens stay there.
func (r *room) in(f func() error) {
	r.t.Helper()
	onThread(r.t, func() error {
		err := errors.Join(netns.Set(r.ns), unix.Unshare(unix.CLONE_FS), unix.Setns(int(r.mounts.Fd()), unix.CLONE_NEWNS))
		if err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func sysctl(assign string) error {
	for i := range assign {
		if assign[i] == '=' {
			return os.WriteFile("/proc/sys/"+assign[:i], []byte(assign[i+1:]), 0)
		}
	}
	return fmt.Errorf("sysctl %q", assign)
}

// uso is what a VMM sets on a tap that takes UDP superpackets.
const uso = unix.TUN_F_USO4 | unix.TUN_F_USO6

// makeTap makes a tap with a virtio-net header and segmentation offload, as a
// VMM does, in the namespace of the thread.
func makeTap(name string, mac []byte) (*os.File, netlink.Link, error) {
	fd, err := openTap(name)
	if err != nil {
		return nil, nil, err
	}
	offloads := unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads|uso); err != nil { // before Linux 6.2
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads)
		if err != nil {
			return nil, nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
		}
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, nil, err
	}
	if mac != nil {
		if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
			return nil, nil, err
		}
	}
	return os.NewFile(uintptr(fd), name), l, errors.Join(netlink.LinkSetMTU(l, 1500), netlink.LinkSetUp(l))
}

// guest gives m's port a guest: a namespace whose NIC is a tap, and a wire to
// m's tap on the host that carries frames with their offloads. It returns the
// host tap's ifindex, and the guest's own tap, to write to as the VM would.
func (r *room) guest(host *room, m member) (ifindex int, nic *os.File) {
	r.t.Helper()
	var tap, out *os.File
	host.in(func() error {
		f, l, err := makeTap(fmt.Sprintf("tap%d", m.id), nil)
		if err != nil {
			return err
		}
		tap, ifindex = f, l.Attrs().Index
		return nil
	})
	r.in(func() error {
		f, l, err := makeTap("eth0", m.mac[:])
		if err != nil {
			return err
		}
		out = f
		ip := &netlink.Addr{IPNet: netlink.NewIPNet(m.ca.AsSlice())}
		ip.Mask = []byte{255, 255, 255, 0}
		if err := netlink.AddrAdd(l, ip); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice()})
	})
	go pump(tap, out)
	go pump(out, tap)
	r.t.Cleanup(func() { _, _ = tap.Close(), out.Close() })
	return ifindex, tap
}

func openTap(name string) (int, error) {
	return openTapAs(name, unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
}

func openTapAs(name string, flags uint16) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, fmt.Errorf("TUNSETIFF: %w", err)
	}
	return fd, nil
}

// takesUSO reports whether a guest can hand down UDP superpackets here.
func (r *room) takesUSO() (does bool) {
	r.in(func() error {
		fd, err := openTap("uso0")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		does = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|uso) == nil
		return nil
	})
	return does
}

func pump(from, to *os.File) {
	b := make([]byte, 1<<17)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		// A full queue loses the frame, as a ring does.
		if _, err := to.Write(b[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// pumpInPieces writes the Ethernet header apart, which for IFF_NAPI_FRAGS is where a
// buffer's head ends.
func pumpInPieces(from, to *os.File) {
	raw, err := to.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 1<<17)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		err = raw.Write(func(fd uintptr) bool {
			_, _ = unix.Writev(int(fd), [][]byte{b[:14], b[14:n]})
			return true
		})
		if err != nil {
			return
		}
	}
}

// wire joins two hosts by a veth pair with an address each.
func wire(t *testing.T, a, b *room, addrA, addrB netip.Addr) {
	t.Helper()
	a.in(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "up0", 1550
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerNamespace: netlink.NsFd(int(b.ns))})
	})
	for _, end := range []struct {
		r          *room
		self, peer netip.Addr
		pas        netip.Prefix
	}{{a, addrA, addrB, prefixB}, {b, addrB, addrA, prefixA}} {
		end.r.in(func() error {
			l, err := netlink.LinkByName("up0")
			if err != nil {
				return err
			}
			ip := &netlink.Addr{IPNet: netlink.NewIPNet(end.self.AsSlice())}
			ip.Mask = []byte{255, 255, 0, 0}
			via := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: end.peer.AsSlice(), Dst: netlink.NewIPNet(end.pas.Addr().AsSlice())}
			via.Dst.Mask = []byte{255, 255, 255, 0}
			return errors.Join(netlink.LinkSetMTU(l, 1550), netlink.LinkSetUp(l), netlink.AddrAdd(l, ip), netlink.RouteAdd(via))
		})
	}
}

func (r *room) listen(at netip.AddrPort) net.Listener {
	r.t.Helper()
	var l net.Listener
	r.in(func() (err error) { l, err = net.Listen("tcp", at.String()); return err })
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

func (r *room) dial(to netip.AddrPort) net.Conn {
	r.t.Helper()
	var c net.Conn
	r.in(func() (err error) { c, err = net.DialTimeout("tcp", to.String(), 10*time.Second); return err })
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// serve sends data to the first caller.
func serve(l net.Listener, data []byte) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(data)
	return err
}

func fetch(c net.Conn) ([]byte, error) {
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}

// exchange sends data from one end to the other.
func exchange(t *testing.T, from, to net.Conn, data []byte) {
	t.Helper()
	if err := errors.Join(from.SetDeadline(time.Now().Add(10*time.Second)), to.SetDeadline(time.Now().Add(10*time.Second))); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Write(data); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("exchanged %d bytes, %v", len(data), err)
	}
}
