package dataplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"replug/directory/frame"
	"replug/directory/vnet"
)

// A neighbour is a second guest on the cable's host: a kernel of its own behind
// wire1, at 10.17.34.62, in the network of the first one.
type neighbour struct {
	c       *cable
	ifindex int // of wire1
	ns      netns.NsHandle
}

var (
	neighbourCA  = netip.MustParseAddr("10.17.34.62")
	neighbourMAC = vnet.PortMAC(0x5e6f7081)
)

// settledCable is a cable whose guest has its address, at in.
func settledCable(t *testing.T, in vnet.Intent) (*cable, *neighbour) {
	c := newCable(t)
	c.address("eth0", "10.17.34.51/24", c.handle)
	n := c.neighbour()
	c.agent.set(in)
	c.reach(in.Current.Epoch, vnet.StatusFlipped, 10*time.Second)
	return c, n
}

func (c *cable) address(device, addr string, h *netlink.Handle) {
	c.t.Helper()
	link, err := h.LinkByName(device)
	must(c.t, err)
	a, err := netlink.ParseAddr(addr)
	must(c.t, err)
	must(c.t, h.AddrAdd(link, a))
	must(c.t, h.LinkSetUp(link))
}

func (c *cable) neighbour() *neighbour {
	c.t.Helper()
	mine, err := netns.Get()
	must(c.t, err)
	defer mine.Close()
	n := &neighbour{c: c}
	n.ns, err = netns.New() // and switches to it
	must(c.t, err)
	must(c.t, netns.Set(mine))
	c.t.Cleanup(func() { n.ns.Close() })
	must(c.t, c.handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire1"}, PeerName: "eth1",
		PeerHardwareAddr: neighbourMAC[:], PeerNamespace: netlink.NsFd(int(n.ns))}))
	link, err := c.handle.LinkByName("wire1")
	must(c.t, err)
	must(c.t, c.handle.LinkSetUp(link))
	n.ifindex = link.Attrs().Index
	far, err := netlink.NewHandleAt(n.ns)
	must(c.t, err)
	defer far.Close()
	c.address("eth1", "10.17.34.62/24", far)

	must(c.t, c.maps.Attach(24, n.ifindex))
	must(c.t, c.maps.SetPort(Row{Port: 24, Epoch: 5, VNI: red, MAC: neighbourMAC, PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.24")},
		CAs: [MaxCAs]netip.Prefix{netip.PrefixFrom(neighbourCA, 24)}, Gateway: netip.MustParseAddr("10.17.34.1"), MTU: 1500, Ifindex: n.ifindex, Rules: open}))
	in := intent()
	taken(c.t, c.maps.SetMappings([]MappingRow{
		{Mapping: vnet.Mapping{VNI: red, CA: in.Current.Addrs[0].CA, PA: in.PA, MAC: in.MAC, Epoch: 7}},
		{Mapping: vnet.Mapping{VNI: red, CA: vnet.CA{Addr: neighbourCA}, PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.24")}, MAC: neighbourMAC, Epoch: 5}},
	}))
	return n
}

// taken ends a test whose datapath has no room.
func taken(t *testing.T, not NotSet) {
	t.Helper()
	if len(not) > 0 {
		t.Fatal(not)
	}
}

// do runs f on a thread in the neighbour's namespace. Sockets stay in the one they
// were made in.
func (n *neighbour) do(f func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := netns.Set(n.ns); err != nil {
			n.c.t.Error(err)
			return
		}
		f()
	})
	wg.Wait()
}

// dial connects from the neighbour to the guest.
func (n *neighbour) dial(port string) (net.Conn, error) { return n.dialTo("10.17.34.51:" + port) }

func (n *neighbour) dialTo(addr string) (conn net.Conn, err error) {
	n.do(func() { conn, err = net.DialTimeout("tcp4", addr, 1500*time.Millisecond) })
	return conn, err
}

// serve accepts the guest's connections on a port.
func (c *cable) serve(port string) net.Listener {
	c.t.Helper()
	l, err := net.Listen("tcp4", "10.17.34.51:"+port)
	must(c.t, err)
	c.t.Cleanup(func() { l.Close() })
	return l
}

// Rules of groups reach the datapath with the row and live: real kernels connect,
// or don't.
func TestRulesJudgeRealGuests(t *testing.T) {
	in := intent()
	in.Current.Groups = []string{"web"}
	in.Current.Document, in.Monitor = nil, ""
	web := vnet.Group{VNI: red, Name: "web", Slot: 3, Rules: []vnet.Rule{
		{Name: "https", Priority: 100, Direction: vnet.In, Action: vnet.Allow, Protocol: vnet.TCP, MinPort: 443, MaxPort: 443},
	}}
	c := newCable(t)
	c.groups.put(web)
	c.address("eth0", "10.17.34.51/24", c.handle)
	n := c.neighbour()
	c.agent.set(in)
	c.reach(in.Current.Epoch, vnet.StatusFlipped, 10*time.Second)
	c.serve("443")
	c.serve("22")
	conn, err := n.dial("443")
	must(t, err)
	defer conn.Close()
	if ssh, err := n.dial("22"); err == nil {
		ssh.Close()
		t.Fatal("connected although no rule allows it")
	}
	row := func() (rules []Rule) {
		t.Helper()
		set, err := c.maps.rulesFor(Row{Port: in.ID})
		must(t, err)
		for _, r := range set.In {
			rules = append(rules, Rule{ID: r.ID})
		}
		return rules
	}
	before := row()

	// From members of a group only, and the neighbour becomes one.
	web.Rules = append(web.Rules, vnet.Rule{Name: "ssh", Priority: 200, Direction: vnet.In, Action: vnet.Allow, Protocol: vnet.TCP,
		MinPort: 22, MaxPort: 22, RemoteGroup: "web"})
	c.groups.put(web)
	c.agent.kickIn(red)
	eventually(t, "the edit is in force", func() bool { return len(row()) == 2 })
	if ssh, err := n.dial("22"); err == nil {
		ssh.Close()
		t.Error("connected although it is in no group")
	}
	taken(t, c.maps.SetMembers([]Member{{MappingKey{red, vnet.CA{Addr: neighbourCA}}, vnet.Groups(0).With(3)}}))
	ssh, err := n.dial("22")
	must(t, err)
	ssh.Close()
	if now := row(); now[0] != before[0] {
		t.Errorf("an edit of another rule renumbered this one: %v, was %v", now, before)
	}

}

// Rules read back are those that were written, so that a restarted agent doesn't
// write what is in force.
func TestRulesReadBack(t *testing.T) {
	c := newCable(t)
	in := intent()
	echo := uint8(8)
	g := vnet.Group{VNI: red, Name: "web", Slot: 9}
	for i, remote := range []string{"", "10.17.0.0/16", "10.17.34.51/32", "0.0.0.0/0", "::/0", "fd17:34::/32", "fd17:34::51/128", "10.17.34.99/24"} {
		r := allow("r"+remote, uint16(100+i), vnet.In)
		if remote != "" {
			r.Remote = netip.MustParsePrefix(remote)
		}
		g.Rules = append(g.Rules, r)
	}
	g.Rules = append(g.Rules, deny("no", 7, vnet.Out), vnet.Rule{Name: "ping", Priority: 1, Direction: vnet.Out, Action: vnet.Allow, Protocol: vnet.ICMP, ICMPType: &echo},
		vnet.Rule{Name: "mates", Priority: 2, Direction: vnet.Out, Action: vnet.Allow, RemoteGroup: "web"})
	c.groups.put(g)
	in.Current.Groups = []string{"web"}
	c.agent.set(in)
	c.reach(in.Current.Epoch, vnet.StatusFlipped, 10*time.Second)
	set, err := c.groups.rules(&in.Current)
	must(t, err)
	p, err := c.maps.bpf.Port(uint16(in.ID))
	must(t, err)
	if d := cmp.Diff(ruleSet(set), p.Rules, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" || !reflect.DeepEqual(ruleSet(set), p.Rules) {
		t.Errorf("-written +read back\n%s", d)
	}
	row := c.rows[in.ID]
	row.Rules = nil // as they are
	must(t, c.maps.SetPort(row))
	if q, err := c.maps.bpf.Port(uint16(in.ID)); err != nil || !reflect.DeepEqual(p.Rules, q.Rules) {
		t.Errorf("a row that says nothing of its rules changed them: %v", err)
	}
	must(t, c.maps.SetRules(in.ID, open))
	if q, err := c.maps.bpf.Port(uint16(in.ID)); err != nil || q.Rules != nil {
		t.Errorf("in no group, but %+v, %v", q.Rules, err)
	}
}

// eventually waits for something that another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	begun := time.Now()
	for tick := time.NewTicker(5 * time.Millisecond); !ok(); <-tick.C {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("never: %s", what)
		}
	}
}

// A service leads to its backend, by the directory's word; when that dies its
// connections are reset, and a client that comes later is turned away.
func TestServiceOfARealGuest(t *testing.T) {
	in := intent()
	in.Current.Document, in.Monitor = nil, ""
	c, n := settledCable(t, in)
	ns, err := newNetworks(c.maps, kernel4test{}, "h1", NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(io.Discard, nil)))
	must(t, err)
	l := c.serve("8443")
	s := service(red, "www", "10.17.34.90", 443)
	s.Backends = []vnet.Backend{{Member: in.Port, CA: in.Current.Addrs[0].CA, Port: 8443, Weight: 1}}
	ns.OnService(s)
	theirs, err := n.dialTo("10.17.34.90:443")
	must(t, err)
	defer theirs.Close()
	ours, err := l.Accept()
	must(t, err)
	defer ours.Close()
	talk(t, theirs, ours, 50000)
	talk(t, ours, theirs, 50000)
	if from := ours.RemoteAddr().(*net.TCPAddr).IP.String(); from != neighbourCA.String() {
		t.Errorf("the backend sees %s", from)
	}

	s.Backends = slices.Clone(s.Backends)
	s.Backends[0].Dead = true
	ns.OnService(s)
	if _, err := theirs.Write([]byte("still there?")); err != nil {
		t.Error(err)
	}
	must(t, theirs.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection to a dead backend: %v", err)
	}
	if late, err := n.dialTo("10.17.34.90:443"); err == nil {
		late.Close()
		t.Error("connected to a dead backend")
	}
	ns.OnServiceGone(red, "www")
	if keys, err := c.maps.Services(); err != nil || len(keys) != 0 {
		t.Errorf("services left: %v, %v", keys, err)
	}
}

// A route leads into a peer network, where the destination has its mapping; the
// answer comes back by the peer's own route.
func TestPeersOfRealGuests(t *testing.T) {
	in := intent()
	in.Current.Document, in.Monitor = nil, ""
	back := vnet.Route{Prefix: netip.MustParsePrefix("10.99.0.0/24"), Peer: blue}
	in.Current.Routes = []vnet.Route{back}
	c, n := settledCable(t, in)
	ns, err := newNetworks(c.maps, kernel4test{}, "h1", NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(io.Discard, nil)))
	must(t, err)
	ca := netip.MustParseAddr("10.99.0.62")
	blueSide := Row{Port: 24, Epoch: 6, VNI: blue, MAC: neighbourMAC, PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.24")},
		CAs: [MaxCAs]netip.Prefix{netip.PrefixFrom(ca, 24)}, Gateway: netip.MustParseAddr("10.99.0.1"), MTU: 1500, Ifindex: n.ifindex, Rules: open}
	must(t, c.maps.SetPort(blueSide))
	ns.OnMapping(vnet.Mapping{VNI: blue, CA: vnet.CA{Addr: ca}, PA: blueSide.PA, MAC: neighbourMAC, Epoch: 6, Host: "h1"})
	ns.flush()
	must(t, ns.Use(24, &vnet.Place{VNI: blue, Routes: []vnet.Route{{Prefix: netip.MustParsePrefix("10.17.34.0/24"), Peer: red}}}))
	must(t, ns.Use(in.ID, &in.Current))
	far, err := netlink.NewHandleAt(n.ns)
	must(t, err)
	defer far.Close()
	link, err := far.LinkByName("eth1")
	must(t, err)
	old, err := netlink.ParseAddr("10.17.34.62/24")
	must(t, err)
	must(t, far.AddrDel(link, old))
	c.address("eth1", "10.99.0.62/24", far)
	must(t, far.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(10, 99, 0, 1).To4()}))
	eth0, err := c.handle.LinkByName("eth0")
	must(t, err)
	must(t, c.handle.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 99, 0, 0).To4(), Mask: net.CIDRMask(24, 32)},
		Gw: net.IPv4(10, 17, 34, 1).To4()}))
	l := c.serve("443")
	theirs, err := n.dial("443")
	must(t, err)
	defer theirs.Close()
	ours, err := l.Accept()
	must(t, err)
	defer ours.Close()
	talk(t, ours, theirs, 50000)

	in.Current.Routes = nil
	must(t, ns.Use(in.ID, &in.Current))
	if late, err := n.dial("443"); err == nil {
		late.Close()
		t.Error("connected although the way back is gone")
	}
}

// Both kernels believe the resets: the numbers are right, whoever connected.
func TestResetOfRealConnections(t *testing.T) {
	for name, to := range map[string]string{"to the guest": "10.17.34.51:443", "by a service": "10.17.34.90:8443"} {
		t.Run(name, func(t *testing.T) { resetOfReal(t, to) })
	}
}

func resetOfReal(t *testing.T, to string) {
	in := intent()
	in.Current.Document, in.Monitor = nil, ""
	c, n := settledCable(t, in)
	c.way = Way{VNI: red, MAC: neighbourMAC, Ifindex: n.ifindex}
	s := service(red, "www", "10.17.34.90", 8443)
	s.Backends = []vnet.Backend{{Member: in.Port, CA: in.Current.Addrs[0].CA, Port: 443, Weight: 1}}
	must(t, c.maps.SetService(s))
	l := c.serve("443")
	theirs, err := n.dialTo(to)
	must(t, err)
	ours, err := l.Accept()
	must(t, err)
	talk(t, theirs, ours, 70000)
	talk(t, ours, theirs, 3000)

	next := place("blue", blue, "10.17.34.51", 8)
	next.Swap, next.Trigger, next.Document = "s-5", vnet.TriggerNone, nil
	in.Next = &next
	c.agent.set(in)
	c.reach(next.Epoch, vnet.StatusPrepared, 10*time.Second)
	in.Current, in.Next = next, nil
	c.agent.set(in)
	c.reach(next.Epoch, vnet.StatusFlipped, 10*time.Second)
	for name, conn := range map[string]net.Conn{"the neighbour's": theirs, "the guest's": ours} {
		must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s end: %v", name, err)
		}
		conn.Close()
	}
}

func talk(t *testing.T, from, to net.Conn, size int) {
	t.Helper()
	go func() { _, _ = from.Write(make([]byte, size)) }()
	must(t, to.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.ReadFull(to, make([]byte, size))
	must(t, err)
}

// halfOpen matches connections of 10.17.34.51:8443 that aren't closed.
var halfOpen = regexp.MustCompile(`(?m)^ *\d+: 3322110A:20FB [0-9A-F]+:[0-9A-F]+ 0[123]`)

// A health check shakes hands with a real guest, through rules that allow nothing,
// and leaves no connection behind.
func TestCheckOfARealGuest(t *testing.T) {
	in := intent()
	in.Current.Document, in.Monitor, in.Current.Groups = nil, "", []string{"closed"}
	c, _ := settledCable(t, in)
	checks := newChecks(slog.New(slog.NewTextHandler(io.Discard, nil)))
	s := service(red, "www", "10.17.34.90", 443)
	s.Check = &vnet.Check{Interval: 100 * time.Millisecond, Timeout: 10 * time.Second, Rise: 2, Fall: 2}
	s.Backends = []vnet.Backend{{Member: in.Port, CA: in.Current.Addrs[0].CA, Port: 8443, Weight: 1}}
	heard := make(chan vnet.Health, 16)
	checks.services, checks.find = func() []vnet.Service { return []vnet.Service{s} }, c.agent.find
	checks.report, checks.forget = func(h vnet.Health) { heard <- h }, func(vnet.Health) {}
	checks.send = func(to target, s frame.Spec) error {
		f, err := frame.Compose(s)
		if err != nil {
			return err
		}
		return c.sender.Answer(to.id, to.place.Epoch, to.ifindex, f)
	}
	c.guests.checks = checks
	l := c.serve("8443")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		checks.run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended }) // before the sender and the agent
	checks.changed()
	hear := func(dead bool) {
		t.Helper()
		select {
		case h := <-heard:
			if h.Dead != dead || dead != (h.Error != "") {
				t.Errorf("heard %+v", h)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("nothing heard of a backend that is dead: %t", dead)
		}
	}
	hear(false)
	must(t, l.Close())
	hear(true)
	c.serve("8443")
	hear(false)
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	must(t, err)
	if n := len(halfOpen.FindAll(b, -1)); n > 2 { // those of the moment
		t.Errorf("%d connections are left:\n%s", n, b)
	}
}
