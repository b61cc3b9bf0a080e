package lab_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

var guestMAC = net.HardwareAddr{0x02, 0x52, 0x0a, 0x2b, 0x3c, 0x4d}

// newGuest makes a guest on host 1 that stops with the test.
func newGuest(t *testing.T, c lab.GuestConfig) *lab.Guest {
	t.Helper()
	g, err := shared.TapGuest(within(t, time.Minute), shared.Host(1), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// hostAddr gives the host's end of the guest's wire an address.
func hostAddr(t *testing.T, g *lab.Guest, cidr string) {
	t.Helper()
	addHostAddr(t, g.On(), g.Tap(), cidr)
}

func addHostAddr(t *testing.T, n *lab.Node, dev, cidr string) {
	t.Helper()
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	err = n.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		return h.AddrAdd(link, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestGuestOnTap(t *testing.T) {
	ctx := within(t, time.Minute)
	g := newGuest(t, lab.GuestConfig{Name: "web", MAC: guestMAC})
	hostAddr(t, g, "10.23.45.67/24")
	if err := g.SetAddr(netip.MustParsePrefix("10.23.45.89/24"), netip.MustParseAddr("10.23.45.67")); err != nil {
		t.Fatal(err)
	}
	if err := reaches(ctx, g.On(), "10.23.45.89"); err != nil {
		t.Error(err)
	}
	addrs, err := g.Addrs()
	if err != nil || len(addrs) != 1 || addrs[0].String() != "10.23.45.89/24" {
		t.Errorf("Addrs = %v, %v", addrs, err)
	}
	if mac, err := g.MAC(); err != nil || mac.String() != guestMAC.String() {
		t.Errorf("MAC = %v, %v, want %v", mac, err, guestMAC)
	}
	// By default the tap leaves room for VXLAN on the underlay.
	err = g.On().Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(g.Tap())
		if err == nil && link.Attrs().MTU != 1500 {
			t.Errorf("the tap's MTU is %d", link.Attrs().MTU)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Frames of a TCP stream cross the taps in large pieces with unfinished
// checksums, as a virtio NIC's do, and arrive whole.
func TestGuestSendsLargeFrames(t *testing.T) {
	ctx := within(t, time.Minute)
	g := newGuest(t, lab.GuestConfig{Name: "bulk"})
	hostAddr(t, g, "10.23.46.67/24")
	if err := g.SetAddr(netip.MustParsePrefix("10.23.46.89/24"), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.On().Start(ctx, lab.Cmd{Name: "sink", Args: []string{"busybox", "nc", "-l", "-p", "7788", "-e", "md5sum"}}); err != nil {
		t.Fatal(err)
	}
	if err := g.On().Listens(ctx, 7788); err != nil {
		t.Fatal(err)
	}
	wire, err := g.On().Capture(g.Tap(), "bulk.pcap")
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.Sh(ctx, "yes lopsided | head -c 3000000 >/tmp/sent; nc 10.23.46.67 7788 </tmp/sent; md5sum </tmp/sent")
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Stop(); err != nil {
		t.Fatal(err)
	}
	if sums := strings.Fields(string(out)); len(sums) != 4 || sums[0] != sums[2] {
		t.Errorf("checksums differ: %q", out)
	}
	frames, err := lab.ReadPcap(filepath.Join(g.On().Dir(), "bulk.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for _, f := range frames {
		longest = max(longest, len(f.Data))
	}
	if longest < 3*1500 {
		t.Errorf("the longest frame on the host's tap has %d bytes: they were cut before", longest)
	}
}

// monitor is a bare QMP client.
type monitor struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

func dial(t *testing.T, path string) *monitor {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := &monitor{t, conn, bufio.NewScanner(conn)}
	if greeting := m.read(); greeting["QMP"] == nil {
		t.Fatalf("greeting = %v", greeting)
	}
	return m
}

// read waits for the next line.
func (m *monitor) read() map[string]any {
	m.t.Helper()
	m.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if !m.in.Scan() {
		m.t.Fatalf("the monitor hung up: %v", m.in.Err())
	}
	var v map[string]any
	if err := json.Unmarshal(m.in.Bytes(), &v); err != nil {
		m.t.Fatal(err)
	}
	return v
}

// ask sends a line and returns what the answer returns, or its error's class.
func (m *monitor) ask(line string) (any, string) {
	m.t.Helper()
	fmt.Fprintln(m.conn, line)
	a := m.read()
	if e, ok := a["error"].(map[string]any); ok {
		return nil, e["class"].(string)
	}
	return a["return"], ""
}

func TestMonitor(t *testing.T) {
	g := newGuest(t, lab.GuestConfig{Name: "qmp", Device: "net0"})
	m := dial(t, g.Monitor())
	for _, c := range []struct{ line, class string }{
		{`{"execute":"query-status"}`, "CommandNotFound"}, // before the handshake
		{`{"execute":"qmp_capabilities"}`, ""},
		{`{"execute":"query-status"}`, ""},
		{`{"execute":"query-version"}`, ""},
		{`{"execute":"make-coffee"}`, "CommandNotFound"},
		{`{"execute":`, "GenericError"},
		{`{"execute":"set_link","arguments":{"name":"net0"}}`, "GenericError"},
		{`{"execute":"set_link","arguments":{"name":"net7","up":false}}`, "DeviceNotFound"},
		{`{"execute":"set_link","arguments":{"name":"net0","up":false}}`, ""},
		{`{"execute":"set_link","arguments":{"name":"net0","up":true}}`, ""},
	} {
		if _, class := m.ask(c.line); class != c.class {
			t.Errorf("%s: %q, want %q", c.line, class, c.class)
		}
	}
	fmt.Fprintln(m.conn, `{"execute":"query-status","id":"seventeen"}`)
	if a := m.read(); a["id"] != "seventeen" {
		t.Errorf("the answer lost its id: %v", a)
	}
}

// The link goes down for the guest only, loses frames meanwhile, and the DHCP
// client asks again when it is back.
func TestBounceAndDHCP(t *testing.T) {
	ctx := within(t, time.Minute)
	g := newGuest(t, lab.GuestConfig{Name: "dhcp", MAC: guestMAC})
	hostAddr(t, g, "10.23.47.67/24")
	serveDHCP(t, g, "10.23.47.91")
	client, err := g.StartDHCP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Says(ctx, "leased 10.23.47.91"); err != nil {
		t.Fatal(err)
	}
	if err := reaches(ctx, g.On(), "10.23.47.91"); err != nil {
		t.Error(err)
	}

	m := dial(t, g.Monitor())
	m.ask(`{"execute":"qmp_capabilities"}`)
	m.ask(`{"execute":"set_link","arguments":{"name":"eth0","up":false}}`)
	if up := carrier(t, g.Node, "eth0"); up {
		t.Error("the guest's link is up after set_link down")
	}
	if up := carrier(t, g.On(), g.Tap()); !up {
		t.Error("the host's tap lost its carrier: only the guest's may")
	}
	// The guest could not answer anyway: what counts is what reaches it.
	reached, err := counted(g.Node, "eth0", func() error { ping(ctx, g.On(), "10.23.47.91"); return nil })
	if err != nil || reached != 0 {
		t.Errorf("%d frames crossed a link that is down (%v)", reached, err)
	}
	m.ask(`{"execute":"set_link","arguments":{"name":"eth0","up":true}}`)
	err = lab.Until(ctx, "a second lease", func() error {
		if log, _ := os.ReadFile(client.Log()); strings.Count(string(log), "leased 10.23.47.91") < 2 {
			return fmt.Errorf("log: %s", log)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := reaches(ctx, g.On(), "10.23.47.91"); err != nil {
		t.Error(err)
	}
}

func carrier(t *testing.T, n *lab.Node, dev string) (up bool) {
	t.Helper()
	err := n.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(dev)
		if err == nil {
			up = link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// What a guest changes, it changes in its room.
func TestRoomIsTheGuestsOwn(t *testing.T) {
	ctx := within(t, time.Minute)
	before, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, lab.GuestConfig{Name: "room"})
	if out, err := g.Sh(ctx, "hostname; ls /sys/class/net; ls /usr/share/zoneinfo/Europe"); err != nil || string(out) != "room\neth0\nlo\nZurich\n" {
		t.Errorf("in the room: %q, %v", out, err)
	}
	if _, err := g.Sh(ctx, "set -e; hostname web-1; echo ada:x:1042:1042::/home/ada:/bin/sh >>/etc/passwd; echo web-1 >/etc/hostname; mkdir -p /home/ada/.ssh"); err != nil {
		t.Fatal(err)
	}
	if out, err := g.Sh(ctx, "hostname; cut -d: -f1,6 /etc/passwd"); err != nil || string(out) != "web-1\nroot:/root\nada:/home/ada\n" {
		t.Errorf("in the room afterwards: %q, %v", out, err)
	}
	if after, _ := os.Hostname(); after != before {
		t.Errorf("the machine is called %s now, it was %s", after, before)
	}
	if b, _ := os.ReadFile("/etc/passwd"); strings.Contains(string(b), "ada:") {
		t.Error("the machine has the guest's user")
	}
	if _, err := os.Stat(filepath.Join(g.Root(), "home/ada/.ssh")); err != nil {
		t.Error(err)
	}
}

func TestPowerOff(t *testing.T) {
	ctx := within(t, time.Minute)
	g := newGuest(t, lab.GuestConfig{Name: "off"})
	p, err := g.StartInside(ctx, lab.Cmd{Args: []string{"sleep", "304"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	p.Wait(ctx)
	err = g.On().Netlink(func(h *netlink.Handle) error {
		_, err := h.LinkByName(g.Tap())
		return err
	})
	if err == nil || p.Alive() {
		t.Errorf("after the power cut: tap %v, a program alive %v", err, p.Alive())
	}
}

func TestGuestNeedsAHelper(t *testing.T) {
	l, err := lab.Up(within(t, time.Minute), lab.Config{Name: "labbare", Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Down(context.Background())
	_, err = l.TapGuest(t.Context(), l.Host(1), lab.GuestConfig{Name: "web"})
	if err == nil || !strings.Contains(err.Error(), "Config.Helper") {
		t.Errorf("TapGuest = %v", err)
	}
	if _, err := l.Node("g-web"); err == nil {
		t.Error("the refused guest left a namespace")
	}
}
