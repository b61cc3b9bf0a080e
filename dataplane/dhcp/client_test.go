package dhcp_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/dataplane/dhcp"
	"replug/directory/vnet"
)

// A wire is the far end of the client's NIC, a tap: it answers ARP for every
// address with the gateway's MAC, and DHCP from the port, as a host does.
type wire struct {
	tap    *os.File
	mu     sync.Mutex
	port   dhcp.Port
	said   []string // kinds of the answers; "renew" before one to a frame sent to the server alone
	closed chan struct{}
}

func (w *wire) run(t *testing.T) {
	defer close(w.closed)
	b := make([]byte, 2048)
	for {
		n, err := w.tap.Read(b)
		if err != nil {
			return
		}
		if reply := w.answer(t, b[:n]); reply != nil {
			if _, err := w.tap.Write(reply); err != nil {
				t.Errorf("write to the tap: %v", err)
			}
		}
	}
}

func (w *wire) answer(t *testing.T, f []byte) []byte {
	switch {
	case len(f) >= 42 && binary.BigEndian.Uint16(f[12:]) == 0x0806 && f[21] == 1:
		reply := append(append(append([]byte{}, f[6:12]...), vnet.GatewayMAC[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
		reply = append(append(reply, vnet.GatewayMAC[:]...), f[38:42]...)
		return append(reply, f[22:32]...)
	case len(f) > 42 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == 17 && binary.BigEndian.Uint16(f[36:]) == 67:
		w.mu.Lock()
		defer w.mu.Unlock()
		r, err := dhcp.Answer(f, w.port)
		if err != nil {
			t.Errorf("the client's frame % x: %v", f, err)
		}
		if net.IP(f[30:34]).String() == ours && vnet.MAC(f[:6]) == vnet.GatewayMAC {
			w.said = append(w.said, "renew")
		}
		w.said = append(w.said, r.Kind.String())
		return r.Frame
	}
	return nil
}

// move gives the port another place, as a flip does.
func (w *wire) move(p *vnet.Place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.port.Place = p
}

// newWire makes the client's NIC in a network namespace of the test's own.
func newWire(t *testing.T) *wire {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the namespace goes with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v (needs root)", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	req, err := unix.NewIfreq("eth0")
	must(t, err)
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	link, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netlink.LinkSetHardwareAddr(link, guestMAC[:]))
	must(t, netlink.LinkSetUp(link))
	w := &wire{tap: os.NewFile(uintptr(fd), "tap"), port: port(), closed: make(chan struct{})}
	go w.run(t)
	t.Cleanup(func() { w.tap.Close(); <-w.closed })
	return w
}

// udhcpc starts busybox's client with a script that does what Debian's does, and
// returns the process and what the script says.
func udhcpc(t *testing.T) (*os.Process, <-chan string) {
	t.Helper()
	dir := t.TempDir()
	says := filepath.Join(dir, "says")
	must(t, unix.Mkfifo(says, 0o600))
	script := filepath.Join(dir, "script")
	must(t, os.WriteFile(script, []byte(`#!/bin/sh
case $1 in
deconfig)
	busybox ip addr flush dev eth0 ;;
bound|renew)
	busybox ip addr add $ip/$mask dev eth0
	busybox ip link set eth0 mtu $mtu
	set -- $1 $staticroutes
	event=$1; shift
	while [ $# -gt 1 ]; do busybox ip route replace $1 via $2 dev eth0; shift 2; done
	set -- $event ;;
esac
echo $1 $ip $serverid $hostname $lease >`+says+"\n"), 0o700))
	cmd := exec.Command("busybox", "udhcpc", "-f", "-i", "eth0", "-s", script, "-t", "9", "-T", "1")
	if err := cmd.Start(); err != nil {
		t.Fatalf("start udhcpc: %v (needs busybox)", err)
	}
	r, err := os.OpenFile(says, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); r.Close() })
	lines := make(chan string, 32)
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- strings.TrimSpace(s.Text())
		}
	}()
	return cmd.Process, lines
}

// TestUdhcpc has a real client lease, renew by unicast, and follow its port into
// another network: the renewal of the old address gets a NAK at once.
func TestUdhcpc(t *testing.T) {
	w := newWire(t)
	client, says := udhcpc(t)
	await(t, says, "deconfig")
	await(t, says, "bound 10.23.45.67 169.254.169.254 web-1 108000")
	checkRoutes(t, 1462, "10.23.45.67", map[string]string{
		"198.51.100.7": "10.23.32.9", "169.254.169.254": "10.23.32.9", "172.29.57.8": "10.23.41.83", "192.0.2.200": "10.23.32.9",
	})
	must(t, client.Signal(unix.SIGUSR1))
	await(t, says, "renew 10.23.45.67 169.254.169.254 web-1 108000")

	w.move(&vnet.Place{
		Addrs: []vnet.Addr{{CA: ca("10.88.14.33"), Bits: 26, Gateway: ip("10.88.14.62")}}, MTU: 1333,
		Document: &vnet.Document{Hostname: "web-9"}, DHCP: vnet.DHCP{Lease: 26 * time.Hour},
	})
	must(t, client.Signal(unix.SIGUSR1))
	await(t, says, "nak")
	await(t, says, "bound 10.88.14.33 169.254.169.254 web-9 93600") // 3 s later: the client's own choice
	checkRoutes(t, 1333, "10.88.14.33", map[string]string{
		"198.51.100.7": "10.88.14.62", "169.254.169.254": "10.88.14.62", "172.29.57.8": "10.88.14.62",
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	// busybox 1.35 opens the socket for the answer after it has sent the renewal, and
	// now and then the answer is faster: then it asks again, by broadcast, after 1 s.
	want := regexp.MustCompile(`^offer ack renew ack( ack)? renew nak( nak)? offer ack$`)
	if got := strings.Join(w.said, " "); !want.MatchString(got) {
		t.Errorf("answers %q, want %s", got, want)
	}
}

// await reads what the client says up to a line that begins with want.
func await(t *testing.T, says <-chan string, want string) {
	t.Helper()
	late := time.After(20 * time.Second)
	var heard []string
	for {
		select {
		case line := <-says:
			if strings.HasPrefix(line, want) {
				return
			}
			heard = append(heard, line)
		case <-late:
			t.Fatalf("heard %q, want %q", heard, want)
		}
	}
}

// checkRoutes asks the kernel which way a packet would go.
func checkRoutes(t *testing.T, mtu int, source string, via map[string]string) {
	t.Helper()
	link, err := netlink.LinkByName("eth0")
	must(t, err)
	if got := link.Attrs().MTU; got != mtu {
		t.Errorf("MTU %d, want %d", got, mtu)
	}
	for dst, hop := range via {
		routes, err := netlink.RouteGet(netip.MustParseAddr(dst).AsSlice())
		if err != nil {
			t.Errorf("to %s: %v", dst, err)
			continue
		}
		if got := fmt.Sprint(routes[0].Gw, " from ", routes[0].Src); got != hop+" from "+source {
			t.Errorf("to %s via %s, want %s from %s", dst, got, hop, source)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
