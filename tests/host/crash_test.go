package host_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replug/directory/vnet"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// fixed makes a guest with a static address and no agent in it. Its queue is no shorter
// than a busy machine's pauses, so that what it loses is the datapath's loss.
func (w *world) fixed(n int, name string, id vnet.PortID, p vnet.Place) (*lab.Guest, vnet.Intent) {
	w.t.Helper()
	p.Document = nil
	in := vnet.Intent{
		Port: "p-" + name, ID: id, Host: hostName(n), MAC: vnet.PortMAC(0x2a000000 + uint32(id)), VM: "vm-" + name,
		PA: vnet.PA{Addr: addr(fmt.Sprintf("100.64.%d.%d", n, id))}, Current: p,
	}
	g, err := w.lab.TapGuest(w.ctx, w.lab.Host(n), lab.GuestConfig{Name: name, MAC: net.HardwareAddr(in.MAC[:]), Queue: 5000})
	if err != nil {
		w.t.Fatal(err)
	}
	a := p.Addrs[0]
	if err := g.SetAddr(netip.PrefixFrom(a.CA.Addr, a.Bits), a.Gateway); err != nil {
		w.t.Fatal(err)
	}
	in.Tap, in.Monitor = g.Tap(), g.Monitor()
	return g, in
}

// The agent is killed in every phase of swaps, and started again: each swap ends
// confirmed, and a bystander on the same hosts loses nothing (invariants 3, 6, 7).
func TestAgentKilledInEveryPhase(t *testing.T) {
	w := newWorld(t, "hostkill", 2)
	agent := w.agent(1)
	w.agent(2)
	a, inA := w.fixed(1, "a", 31, place("green", 0x2468ac, "10.17.34.11", 3))
	b, inB := w.fixed(2, "b", 43, place("green", 0x2468ac, "10.17.34.22", 4))
	web, in := w.guest(1, "web", 23, place("red", red, "10.17.34.51", 7))
	peer, inPeer := w.guest(2, "blue", 41, place("blue", blue, "10.17.34.77", 6))
	for _, in := range []vnet.Intent{inA, inB, in, inPeer} {
		w.dir.put(in)
		w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusPublished, vnet.StatusConfirmed)
	}
	w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	w.pings(a, "10.17.34.22")
	bystander, err := cluster.StartStream(a.Node, b.Node, netip.MustParseAddrPort("10.17.34.22:6006"), 1000)
	if err != nil {
		t.Fatal(err)
	}

	kill := func() {
		if err := agent.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = agent.Wait(w.ctx)
		agent = w.agent(1)
	}
	for i, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 15 * time.Millisecond, 25 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond} {
		epoch := uint64(8 + i)
		p := place("blue", blue, "10.17.34.62", epoch)
		if i%2 == 1 {
			p = place("red", red, "10.17.34.51", epoch)
		}
		prepare, change := to(in, p, vnet.TriggerBounce)
		w.dir.put(prepare)
		if i%3 == 0 {
			kill() // while it is being staged
		}
		w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusPrepared)
		w.dir.put(change)
		time.Sleep(after) // the moment that this round is about
		kill()
		s := w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusConfirmed)
		t.Logf("killed %s after the change: %s", after, timeline(s))
		in = change
	}
	w.pings(web, "10.17.34.77")
	w.pings(peer, "10.17.34.62")
	if sent, lost := bystander.Stop(); lost != 0 || sent < 300 || bystander.Disorder() != 0 {
		t.Errorf("bystander lost %d of %d, %d came out of order", lost, sent, bystander.Disorder())
	}
}

// Without a server leases and documents last, over a restart of the agent too
// (invariant 6): a guest that boots meanwhile gets both.
func TestServerAway(t *testing.T) {
	w := newWorld(t, "hostaway", 1)
	agent := w.agent(1)
	web, in := w.guest(1, "web", 23, place("red", red, "10.17.34.51", 7))
	w.dir.put(in)
	w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	w.dir.stop()
	_ = agent.Signal(unix.SIGKILL)
	_ = agent.Wait(w.ctx)
	if _, err := w.lab.Host(1).Start(w.ctx, lab.Cmd{Name: "again", Args: w.args(1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := web.Exec(w.ctx, "sh", "-c", "kill $(pidof replug-guest); ip addr flush dev eth0; rm -rf /var/lib/replug-guest"); err != nil {
		t.Fatal(err)
	}
	if _, err := web.StartAgent(w.ctx, guestAgent, "--dhcp", "own", "--once"); err != nil {
		t.Fatal(err)
	}
	err := lab.Until(w.ctx, "the guest has its address again", func() error {
		if addrs, err := web.Addrs(); err != nil || len(addrs) != 1 {
			return fmt.Errorf("%v, %w", addrs, err)
		}
		out, err := web.Exec(w.ctx, "cat", "/etc/hostname")
		if err != nil || strings.TrimSpace(string(out)) != "in-red" {
			return fmt.Errorf("hostname %q, %w", out, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Fifty ports fit in 60 MB, and leave nothing when they are gone (invariant 8).
func TestFiftyPorts(t *testing.T) {
	const ports, limit = 50, 60 << 10 // KiB
	w := newWorld(t, "hostfifty", 1)
	agent := w.agent(1)
	w.detach(w.attached(99, 1)) // what the agent makes once, for its first port, stays
	before := w.settled()
	intents := w.attached(100, ports)
	if rss := w.rss(agent); rss > limit {
		t.Errorf("%d ports need %d KiB, want at most %d", ports, rss, limit)
	} else {
		t.Logf("%d ports: %d KiB", ports, rss)
	}
	w.detach(intents)
	err := lab.Until(w.ctx, "the baseline is back", func() error {
		if after := w.held(); !after.like(before) {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// attached puts ports for somebody else's taps on host 1, and waits for them.
func (w *world) attached(first vnet.PortID, ports int) []vnet.Intent {
	w.t.Helper()
	intents := make([]vnet.Intent, ports)
	for i := range intents {
		id := first + vnet.PortID(i)
		tap := fmt.Sprintf("other%d", id)
		if _, err := w.lab.Host(1).Run(w.ctx, "ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr"); err != nil {
			w.t.Fatal(err)
		}
		intents[i] = vnet.Intent{Port: fmt.Sprint("p-", id), ID: id, Host: "h1", MAC: vnet.PortMAC(0x2a000000 + uint32(id)),
			PA: vnet.PA{Addr: addr(fmt.Sprintf("100.64.1.%d", id))}, Tap: tap, Current: place("red", red, fmt.Sprintf("10.17.34.%d", id), 7)}
		w.dir.put(intents[i])
	}
	for _, in := range intents {
		w.dir.await(w.ctx, w.t, in.Port, in.Current.Epoch, vnet.StatusFlipped)
	}
	return intents
}

// detach ends ports, and waits until they are gone.
func (w *world) detach(intents []vnet.Intent) {
	w.t.Helper()
	for _, in := range intents {
		in.Gone = true
		w.dir.put(in)
	}
	for _, in := range intents {
		w.dir.await(w.ctx, w.t, in.Port, in.Current.Epoch, vnet.StatusGone)
		w.dir.drop(in)
	}
}

// A holding is what the agent of host 1 holds.
type holding struct {
	ports, files string
	links, taps  int // pinned links, taps' records
	goroutines   int
}

// like compares two. Goroutines of gRPC come and go: 3 more or fewer are the same.
func (h holding) like(other holding) bool {
	more := h.goroutines - other.goroutines
	h.goroutines = other.goroutines
	return h == other && -3 <= more && more <= 3
}

func (w *world) held() (h holding) {
	w.t.Helper()
	for line := range strings.Lines(w.metrics(w.lab.Host(1))) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "replug_ports":
			h.ports = value
		case "process_open_fds":
			h.files = value
		case "go_goroutines":
			h.goroutines, _ = strconv.Atoi(value)
		}
	}
	links, _ := os.ReadDir(join(w.lab.Host(1).BPF(), "replug/links"))
	taps, _ := os.ReadDir(join(w.lab.Host(1).Dir(), "state/ports"))
	h.links, h.taps = len(links), len(taps)
	return h
}

// settled returns what the agent holds once two looks at it are the same.
func (w *world) settled() (h holding) {
	w.t.Helper()
	if err := lab.Until(w.ctx, "the agent to hold what it held", func() error {
		was := h
		if h = w.held(); h != was || h.goroutines == 0 {
			return fmt.Errorf("it held %+v, it holds %+v", was, h)
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *world) rss(p *lab.Proc) (kib int) {
	w.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return kib
}

// Teardown takes away all that the agent made on the host.
func TestTeardown(t *testing.T) {
	w := newWorld(t, "hostdown", 1)
	node := w.lab.Host(1)
	before, err := node.Run(w.ctx, "sh", "-c", "ip -br link | cut -d' ' -f1; ip route")
	if err != nil {
		t.Fatal(err)
	}
	agent := w.agent(1)
	_, in := w.guest(1, "web", 23, place("red", red, "10.17.34.51", 7))
	w.dir.put(in)
	w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	down := w.args(1)
	down = slices.Insert(down, 1, "teardown")
	if out, err := node.Run(w.ctx, down...); err == nil {
		t.Errorf("teardown beside a running agent: %s", out)
	}
	if err := agent.Stop(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(join(node.BPF(), "replug/links/uplink")); err != nil {
		t.Errorf("the datapath went with the agent: %v", err)
	}
	if out, err := node.Run(w.ctx, down...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after, err := node.Run(w.ctx, "sh", "-c", "ip -br link | grep -v ^tap-web | cut -d' ' -f1; ip route")
	if err != nil {
		t.Fatal(err)
	}
	// The lab's own blackhole goes with ours: they are the same route.
	want := strings.ReplaceAll(string(before), "blackhole 100.64.1.0/24 \n", "")
	if string(after) != want {
		t.Errorf("left:\n%s\nwant:\n%s", after, want)
	}
	if _, err := os.Stat(join(node.BPF(), "replug")); !os.IsNotExist(err) {
		t.Errorf("pins are left: %v", err)
	}
}
