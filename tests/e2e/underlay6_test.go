package e2e_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	pb "replug/control/controlpb"
	"replug/directory/frame"
	"replug/directory/pki"
	"replug/directory/vnet"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// guestMTU is what VXLAN over IPv6 leaves of 1500 bytes (RFC 7348, section 4.3).
const guestMTU = 1430

// A cluster whose underlay has IPv6 and nothing else, over wires that carry bytes as
// between real NICs: the server, its hosts, and VXLAN. What guests have of both
// families passes, a swap goes through, and diagnosis shows what there is.
func TestUnderlayOfIPv6(t *testing.T) {
	start := shared.within(t)
	w, err := newWorld(start, lab.Config{Name: fmt.Sprint("six", os.Getpid()%100000), Hosts: 3, MTU: guestMTU + 70, Family: lab.IPv6, Wire: lab.WireCable, Threaded: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.down(); err != nil {
			t.Error(err)
		}
	})
	ctx := w.within(t, "no_route", "unknown_source", "wrong_source")
	web, left := w.lowered(ctx, t), w.guest(ctx, t, 2, "red", true)
	w.onWire(ctx, t, web, left)
	w.dualOverSix(ctx, t)
	w.strangers(ctx, t, web, left)
	vni, out := w.exits(ctx, t), w.guest(ctx, t, 1, "exits", true)
	out.six(ctx, t)
	w.leads(ctx, t, out, w.vtep(ctx, t, vni, out), "0.0.0.0/0", "::/0")

	was, ip := web.ip, w.ip()
	c := left.holds(ctx, t, web)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection from before the swap, at its far end: %v, want a reset", err)
	}
	for _, agent := range []int{1, 2} { // what is in force over IPv6 is taken over
		if err := errors.Join(w.KillHost(ctx, agent), w.StartHost(ctx, agent)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	talks(ctx, t, w.peer(ctx, t, "blue").Node, web.Node, ip)
	silent(ctx, t, "the old network from the new one", web.Node, left.ip)
	silent(ctx, t, "the new address from the old network", left.Node, ip)
	silent(ctx, t, "the old address", left.Node, was)
	w.otherFamily(ctx, t)
}

// lowered attaches a guest whose NIC could carry more, and fails the test unless
// DHCP makes it what the underlay leaves.
func (w *world) lowered(ctx context.Context, t *testing.T) *member {
	t.Helper()
	web := &member{w: w, port: "web", ip: w.ip()}
	g, err := w.Attach(ctx, cluster.Attachment{Name: web.port, Host: 1, Tenant: tenant, Network: "red", IP: web.ip, Bits: bits, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	web.Guest = g
	if err := web.Netlink(func(h *netlink.Handle) error {
		nic, err := h.LinkByName("eth0")
		if err == nil && nic.Attrs().MTU != guestMTU {
			err = fmt.Errorf("the guest's MTU is %d, want %d", nic.Attrs().MTU, guestMTU)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	return web
}

// onWire lets two guests talk: the underlay has VXLAN over IPv6 in frames of its
// own size, though guests and datapath pass them on in larger ones.
func (w *world) onWire(ctx context.Context, t *testing.T, web, left *member) {
	t.Helper()
	record := func(dev string) *lab.Recording {
		r, err := w.Lab.Host(1).Capture(dev, filepath.Join(t.TempDir(), dev+".pcap"))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	wire, tap := record("up0"), record(web.Tap())
	talks(ctx, t, web.Node, left.Node, left.ip)
	if err := errors.Join(wire.Stop(), tap.Stop()); err != nil {
		t.Fatal(err)
	}
	frames, err := lab.ReadPcap(wire.File())
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	for _, f := range frames {
		b, words := f.Data, strings.Join(frame.Words(f.Data), "; ")
		if binary.BigEndian.Uint16(b[12:]) != 0x86dd {
			t.Fatalf("not IPv6: %s", words)
		}
		// What arrives is recorded after GRO, what leaves after segmentation.
		if src, dst := netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[38:54])); w.Lab.PAPrefix(1).Contains(src) {
			if _, _, ok := frame.Inner(b); !ok || !w.Lab.PAPrefix(2).Contains(dst) || len(b) > 14+guestMTU+70 {
				t.Fatalf("no frame of VXLAN to a PA, of the underlay's size: %s", words)
			}
			if len(b) == 14+guestMTU+70 {
				full++
			}
		}
	}
	if full < 4<<20/guestMTU {
		t.Errorf("%d full frames have left, of 4 MiB", full)
	}
	if frames, err = lab.ReadPcap(tap.File()); err != nil {
		t.Fatal(err)
	}
	mac, err := web.MAC()
	if err != nil {
		t.Fatal(err)
	}
	from, to := 0, 0
	for _, f := range frames {
		if slices.Equal(f.Data[6:12], mac) {
			from = max(from, len(f.Data))
		} else {
			to = max(to, len(f.Data))
		}
	}
	if from < 10000 || to < 2*guestMTU {
		t.Errorf("the largest frame from the guest has %d bytes and the largest to it %d: segmentation is not left to the host", from, to)
	}
}

// holds opens a connection to another guest, whose kernel takes it. Reads end with ctx.
func (m *member) holds(ctx context.Context, t *testing.T, to *member) net.Conn {
	t.Helper()
	var l net.Listener
	var c net.Conn
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp4", ":7915")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := m.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", to.ip+":7915")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	return c
}

// dualOverSix lets guests of a dual network talk in both families, and compares what
// a trace says.
func (w *world) dualOverSix(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(), Network: &pb.Network{
		Moniker: "lime", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}, {Prefix: "fd20:7::/64"}}}}); err != nil {
		t.Fatal(err)
	}
	a, b := w.guest(ctx, t, 1, "lime", true), w.guest(ctx, t, 2, "lime", true)
	a.six(ctx, t)
	for _, ip := range []string{b.six(ctx, t), b.ip} {
		talks(ctx, t, a.Node, b.Node, ip)
		out := w.must(ctx, t, "trace", "--from", a.port, "--to", ip, "tcp/443")
		for _, want := range []string{"1. host h1, from_vm", "mapping    PA fd64:0:0:2::", "IPv6 fd64:0:0:1::", " > fd64:0:0:2::", "> 4789", "2. host h2, from_wire", "delivered to " + tenant + "." + b.port} {
			if !strings.Contains(out, want) {
				t.Errorf("the trace to %s says nothing of %q:\n%s", ip, want, out)
			}
		}
	}
	got, code := w.trace(ctx, t, "--from", a.port, "--to", b.port, "--size", fmt.Sprint(guestMTU+1), "udp/443")
	if code == 0 || got.Hops[0].Drop != "too_big" {
		t.Errorf("a packet of %d bytes: exit %d, %s", guestMTU+1, code, got.Summary)
	}
	if got, code = w.trace(ctx, t, "--from", a.port, "--to", b.port, "--size", fmt.Sprint(guestMTU), "udp/443"); code != 0 {
		t.Errorf("a packet of %d bytes: exit %d, %s", guestMTU, code, got.Summary)
	}
}

// strangers has a machine that is no host of the cluster send to web what left could
// have sent, and what nobody could: each is refused, and an operator sees by whom.
func (w *world) strangers(ctx context.Context, t *testing.T, web, left *member) {
	t.Helper()
	p, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "drops")
	looking := w.looking(ctx, t, "drops --follow > "+file)
	for from, reason := range map[string]string{left.ip: "wrong_source", w.ip(): "unknown_source"} {
		if err := lab.Until(ctx, "the drops as "+reason, func() error {
			w.intrude(t, p, from, web)
			b, err := os.ReadFile(file)
			want := fmt.Sprintf("udp %s:7913 > %s:7914 in VNI %d, %s > %s", from, web.ip, p.Vni, w.Lab.HostAddr(3), p.Pa)
			if !slices.ContainsFunc(strings.Split(string(b), "\n"), func(l string) bool { return strings.Contains(l, reason) && strings.Contains(l, want) }) {
				return fmt.Errorf("no line with %q and %q (%v) in:\n%s", reason, want, err, b)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if err := looking.Stop(ctx); err != nil {
		t.Error(err)
	}
	talks(ctx, t, left.Node, web.Node, web.ip)
}

// intrude sends a datagram to a port in VXLAN, from the third host.
func (w *world) intrude(t *testing.T, p *pb.Port, from string, to *member) {
	t.Helper()
	mac, err := to.MAC()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := frame.Compose(frame.Spec{SrcMAC: vnet.GatewayMAC, DstMAC: vnet.MAC(mac), Protocol: vnet.UDP, SrcPort: 7913, DstPort: 7914,
		Src: netip.MustParseAddr(from), Dst: netip.MustParseAddr(to.ip)})
	if err != nil {
		t.Fatal(err)
	}
	head := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, p.Vni<<8)
	if err := w.Lab.Host(3).Do(func() error {
		c, err := net.Dial("udp", net.JoinHostPort(p.Pa, "4789"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(append(head, inner...))
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// otherFamily starts an agent whose underlay is IPv4 on the third host: it is
// refused, is told why, and is no host of the cluster.
func (w *world) otherFamily(ctx context.Context, t *testing.T) {
	t.Helper()
	h := w.Lab.Host(3)
	if _, err := pki.Issue(w.PKI, pki.Request{Kind: pki.Host, Name: h.Name}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(ctx, "ip", "addr", "add", "172.31.3.2/24", "dev", "up0"); err != nil {
		t.Fatal(err)
	}
	f := pki.DirFiles(w.PKI, h.Name)
	agent, err := h.Start(ctx, lab.Cmd{Name: "of-ipv4", Args: []string{filepath.Join(bin, "replug-host"), "--name", h.Name,
		"--server", w.Endpoint(), "--uplink", "up0", "--pa-prefix", "100.64.3.0/24",
		"--state-dir", filepath.Join(h.Dir(), "state"), "--bpffs", h.BPF(), "--ca", f.CA, "--cert", f.Cert, "--key", f.Key}})
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"its underlay is IPv4 (172.31.3.2)", "is IPv6 (fd31:0:0:1::2)", "--pa-prefix of IPv6"} {
		if err := agent.Says(ctx, words); err != nil {
			t.Error(err)
		}
	}
	if err := agent.Stop(ctx); err != nil {
		t.Error(err)
	}
	if out := w.must(ctx, t, "host", "list"); strings.Contains(out, h.Name) || !strings.Contains(out, "fd64:0:0:2::/112") {
		t.Errorf("hosts:\n%s", out)
	}
}
