package trap_test

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/dataplane/trap"
	"replug/directory/vnet"
)

// newNetns puts the running test into a network namespace of its own, which the
// kernel frees with the thread that Go ends after the test.
func newNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v (needs root)", err)
	}
}

// tap makes a tap and returns its ifindex and the guest's end of it.
func tap(t *testing.T) (int, *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq("rt-trap7")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	guest := os.NewFile(uintptr(fd), "tap")
	t.Cleanup(func() { guest.Close() })
	link, err := netlink.LinkByName("rt-trap7")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/rt-trap7/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index, guest
}

// TestAnswer sends what is in force and nothing that isn't: the frame that
// arrives proves that the others did not.
func TestAnswer(t *testing.T) {
	newNetns(t)
	ifindex, guest := tap(t)
	s, err := trap.NewSender(func(port vnet.PortID) (vnet.Epoch, bool) { return vnet.NewEpoch(3, 8), port == 7 })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stale := bytes.Repeat([]byte{0x5a}, 60)
	for name, err := range map[string]error{
		"older epoch":          s.Answer(7, vnet.NewEpoch(3, 7), ifindex, stale),
		"older era":            s.Answer(7, vnet.NewEpoch(2, 9), ifindex, stale),
		"a port that isn't":    s.Answer(8, vnet.NewEpoch(3, 8), ifindex, stale),
		"an epoch to come yet": s.Answer(7, vnet.NewEpoch(3, 9), ifindex, stale),
	} {
		if !errors.Is(err, trap.ErrStale) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	probe := trap.Probe(gatewayIP, vnet.GatewayMAC, guestCA, guestMAC)
	if err := s.Answer(7, vnet.NewEpoch(3, 8), ifindex, probe); err != nil {
		t.Fatal(err)
	}
	if err := guest.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := guest.Read(b)
	if err != nil || !bytes.Equal(b[:n], probe) {
		t.Errorf("the guest reads % x, %v; want % x", b[:n], err, probe)
	}
	if err := s.Send(ifindex, probe[:13]); err == nil {
		t.Error("half an Ethernet header was sent")
	}
	if err := s.Send(ifindex+1000, probe); !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) {
		t.Errorf("a device that isn't there: %v", err)
	}
}
