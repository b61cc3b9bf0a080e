// Package host_test runs the host agent as it will run: the real program with
// its datapath, in the namespaces of a lab, with guests on real taps behind it.
// Only the directory is played by the test.
package host_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replug/directory/pki"
	"replug/directory/vnet"
	"replug/tests/lab"
)

// What the tests of this package share.
var (
	helper                []string
	hostAgent, guestAgent string
)

func TestMain(m *testing.M) {
	if err := lab.Check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "replug-host-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if helper, err = lab.BuildHelper(ctx, dir); err != nil {
		return fail(err)
	}
	programs, err := lab.Build(ctx, dir, "replug/cmd/replug-host", "replug/cmd/replug-guest")
	if err != nil {
		return fail(err)
	}
	hostAgent, guestAgent = programs[0], programs[1]
	return m.Run()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// A world is a lab with agents on its hosts.
type world struct {
	t   *testing.T
	ctx context.Context
	lab *lab.Lab
	dir *directory
}

// budget is for any of these tests. The longest boots a small guest twice, which takes
// 3 s of a CPU each time under emulation; on two cores that many others want it got 50 s.
const budget = 5 * time.Minute

func newWorld(t *testing.T, name string, hosts int) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	t.Cleanup(cancel)
	l, err := lab.Up(ctx, lab.Config{Name: name, Hosts: hosts, Helper: helper})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ctx: ctx, lab: l, dir: newDirectory(t)}
	t.Cleanup(w.down)
	w.dir.start(t, l)
	return w
}

func (w *world) down() {
	if w.t.Failed() {
		w.explain()
	}
	if err := w.lab.Down(context.Background()); err != nil {
		w.t.Error(err)
	}
	if left := lab.Residue(w.lab.Name()); len(left) > 0 {
		w.t.Errorf("left behind: %q", left)
	}
}

// explain shows what the programs said and what the datapaths refused.
func (w *world) explain() {
	logs, _ := filepath.Glob(join(w.lab.Dir(), "*/*.log"))
	for _, log := range logs {
		b, _ := os.ReadFile(log)
		w.t.Logf("%s:\n%s", log, b)
	}
	for _, h := range w.lab.Hosts() {
		w.t.Logf("%s counted:\n%s", h.Name, counted(w.metrics(h)))
	}
}

// metrics reads an agent's metrics; "" if it has none to give.
func (w *world) metrics(h *lab.Node) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := h.Run(ctx, "busybox", "wget", "-qO-", "http://127.0.0.1:9417/metrics")
	return string(out)
}

// counted is what isn't zero of our own metrics.
func counted(metrics string) string {
	var b strings.Builder
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "replug_") && !strings.HasSuffix(line, " 0\n") && !strings.Contains(line, "_bucket") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func hostName(n int) string { return fmt.Sprint("h", n) }

// args is the agent's command line on host n.
func (w *world) args(n int, more ...string) []string {
	files := w.dir.issue(w.t, pki.Host, hostName(n))
	node := w.lab.Host(n)
	return append([]string{
		hostAgent, "--server", fmt.Sprint(w.lab.ServerAddr(), ":", port), "--name", hostName(n),
		"--uplink", "up0", "--pa-prefix", w.lab.PAPrefix(n).String(), "--state-dir", join(node.Dir(), "state"),
		"--bpffs", node.BPF(), "--ca", files.CA, "--cert", files.Cert, "--key", files.Key, "--log-level", "debug",
	}, more...)
}

// agent starts replug-host on host n and waits until it is attached.
func (w *world) agent(n int, more ...string) *lab.Proc {
	w.t.Helper()
	p, err := w.lab.Host(n).Start(w.ctx, lab.Cmd{Args: w.args(n, more...)})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.Says(w.ctx, "attached to the directory"); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// guest makes a VM of somebody else's on host n: a tap, a monitor, our agent.
func (w *world) guest(n int, name string, id vnet.PortID, p vnet.Place) (*lab.Guest, vnet.Intent) {
	w.t.Helper()
	in := vnet.Intent{
		Port: "p-" + name, ID: id, Host: hostName(n), MAC: vnet.PortMAC(0x2a000000 + uint32(id)), VM: "vm-" + name,
		PA: vnet.PA{Addr: addr(fmt.Sprintf("100.64.%d.%d", n, id))}, Current: p,
	}
	g, err := w.lab.TapGuest(w.ctx, w.lab.Host(n), lab.GuestConfig{Name: name, MAC: net.HardwareAddr(in.MAC[:])})
	if err != nil {
		w.t.Fatal(err)
	}
	in.Tap, in.Monitor = g.Tap(), g.Monitor()
	if _, err := g.StartAgent(w.ctx, guestAgent, "--dhcp", "own", "--root", "/"); err != nil {
		w.t.Fatal(err)
	}
	return g, in
}

const (
	red  = vnet.VNI(0xabcdef)
	blue = vnet.VNI(0x123457)
)

func place(name vnet.Moniker, vni vnet.VNI, ca string, counter uint64) vnet.Place {
	return vnet.Place{
		Epoch: vnet.NewEpoch(3, counter), Tenant: "acme", Network: name, VNI: vni,
		Addrs:    []vnet.Addr{{CA: vnet.CA{Addr: addr(ca)}, Bits: 24, Gateway: addr("10.17.34.254")}},
		DHCP:     vnet.DHCP{Lease: 24 * time.Hour},
		Document: &vnet.Document{Instance: "vm-23", Hostname: "in-" + string(name)},
	}
}

// to is the intent that prepares the way to a place, and the one that takes it.
func to(in vnet.Intent, p vnet.Place, trigger vnet.Trigger) (prepare, change vnet.Intent) {
	p.Swap, p.Trigger, p.Confirm = "s-1", trigger, vnet.ConfirmGuest
	prepare, change = in, in
	prepare.Next = &p
	change.Current = p
	return prepare, change
}

// pings waits until the guest reaches an address; it fails the test if it doesn't.
func (w *world) pings(g *lab.Guest, ca string) {
	w.t.Helper()
	err := lab.Until(w.ctx, g.Name+" reaches "+ca, func() error {
		_, err := g.Exec(w.ctx, "ping", "-c", "1", "-W", "1", ca)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// The main job, on two hosts: a guest moves from red to blue and back, with its
// peers on the other host at the same address in both.
func TestSwapOverTwoHosts(t *testing.T) {
	w := newWorld(t, "hostswap", 2)
	w.agent(1)
	w.agent(2)
	web, in := w.guest(1, "web", 23, place("red", red, "10.17.34.51", 7))
	peerRed, inRed := w.guest(2, "red", 37, place("red", red, "10.17.34.77", 5))
	peerBlue, inBlue := w.guest(2, "blue", 41, place("blue", blue, "10.17.34.77", 6))
	for _, in := range []vnet.Intent{in, inRed, inBlue} {
		w.dir.put(in)
	}
	for _, in := range []vnet.Intent{in, inRed, inBlue} {
		w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	}
	w.pings(web, "10.17.34.77")
	w.pings(peerRed, "10.17.34.51")

	next := place("blue", blue, "10.17.34.62", 8)
	next.Document.RunOnce = []vnet.Command{{ID: "app", Command: "sleep 1; exit 3"}}
	prepare, change := to(in, next, vnet.TriggerBounce)
	w.dir.put(prepare)
	w.dir.await(w.ctx, t, in.Port, prepare.Next.Epoch, vnet.StatusPrepared)
	w.dir.put(change)
	s := w.dir.await(w.ctx, t, in.Port, change.Current.Epoch, vnet.StatusConfirmed, vnet.StatusFailed)
	if s.Phase != vnet.StatusConfirmed || s.Guest == nil || s.Guest.Hostname != "in-blue" || s.Guest.Error != "" {
		t.Fatalf("swap: %+v", s)
	}
	if err := lab.Until(w.ctx, "the guest reports on its command", func() error {
		if s = w.dir.last(in.Port); s.Phase != vnet.StatusConfirmed || s.Guest == nil || !s.Guest.OK || s.Guest.Error != "command app: exit status 3" {
			return fmt.Errorf("last status %+v", s)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("bounce: %s", timeline(s))
	if addrs, _ := web.Addrs(); len(addrs) != 1 || addrs[0].String() != "10.17.34.62/24" {
		t.Errorf("guest has %v", addrs)
	}
	w.pings(web, "10.17.34.77")
	w.pings(peerBlue, "10.17.34.62")
	if _, err := peerRed.Exec(w.ctx, "ping", "-c", "1", "-W", "1", "10.17.34.51"); err == nil {
		t.Error("red still reaches the old address")
	}

	back := place("red", red, "10.17.34.51", 9)
	back.Undo = true
	_, undo := to(change, back, vnet.TriggerBounce)
	w.dir.put(undo)
	s = w.dir.await(w.ctx, t, in.Port, undo.Current.Epoch, vnet.StatusConfirmed, vnet.StatusFailed)
	t.Logf("undo: %s", timeline(s))
	w.pings(web, "10.17.34.77")
	w.pings(peerRed, "10.17.34.51")

	undo.Gone = true
	w.dir.put(undo)
	w.dir.await(w.ctx, t, in.Port, undo.Current.Epoch, vnet.StatusGone)
	w.dir.drop(undo)
}

func timeline(s vnet.Status) string {
	var b strings.Builder
	for _, h := range s.Hops {
		fmt.Fprintf(&b, "%s +%.1f ms  ", h.Name, float64(h.At.Sub(s.Hops[0].At).Microseconds())/1000)
	}
	fmt.Fprintf(&b, "rung %q, blackout %s", s.Rung, s.Blackout)
	return b.String()
}

// A guest that has its new address configured already is moved in no time.
func TestSwapWithoutTrigger(t *testing.T) {
	w := newWorld(t, "hostnone", 1)
	w.agent(1)
	g, err := w.lab.TapGuest(w.ctx, w.lab.Host(1), lab.GuestConfig{Name: "fix", MAC: net.HardwareAddr{2, 0x52, 0x2a, 0, 0, 29}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.17.34.51", "10.17.34.62"} {
		if _, err := g.Exec(w.ctx, "ip", "addr", "add", a+"/24", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	in := vnet.Intent{Port: "p-fix", ID: 29, Host: "h1", MAC: vnet.MAC{2, 0x52, 0x2a, 0, 0, 29}, Tap: g.Tap(),
		PA: vnet.PA{Addr: addr("100.64.1.29")}, Current: place("red", red, "10.17.34.51", 7)}
	in.Current.Document = nil
	w.dir.put(in)
	w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusPublished)
	for i := uint64(1); i <= 20; i++ {
		p := place("blue", blue, "10.17.34.62", 7+i)
		if i%2 == 0 {
			p = place("red", red, "10.17.34.51", 7+i)
		}
		p.Document = nil
		prepare, change := to(in, p, vnet.TriggerNone)
		w.dir.put(prepare)
		w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusPrepared)
		begun := time.Now()
		w.dir.put(change)
		s := w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusPublished, vnet.StatusFailed)
		t.Logf("%.2f ms: %s", float64(time.Since(begun).Microseconds())/1000, timeline(s))
		in = change
	}
}

// A second agent on the same state is refused, and harms nobody.
func TestSecondAgent(t *testing.T) {
	w := newWorld(t, "hosttwo", 1)
	first := w.agent(1)
	out, err := w.lab.Host(1).Run(w.ctx, w.args(1)...)
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) && exit.ExitCode() != 1 || !strings.Contains(fmt.Sprint(err, string(out)), "another agent works here") {
		t.Errorf("second agent: %v, %s", err, out)
	}
	if !first.Alive() {
		t.Error("the first agent died of it")
	}
	if err := first.Stop(w.ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}
