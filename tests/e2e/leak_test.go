package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// A place is where a VM was: a network and its address there.
type place struct{ network, ip string }

const leakText = "leak probe from "

// probe sends datagrams that say their network from a guest to addresses, until
// the test ends or stop is called.
func probe(t *testing.T, from *lab.Node, network string, ips []string) (sent func() int, stop func()) {
	t.Helper()
	var all []*cluster.Sender
	for _, ip := range ips {
		s, err := cluster.StartSender(from, netip.AddrPortFrom(netip.MustParseAddr(ip), 7913), 150, []byte(leakText+network+";"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	over := false
	stop = func() {
		if !over {
			over = true
			for _, s := range all {
				s.Stop()
			}
		}
	}
	t.Cleanup(stop)
	return func() (n int) {
		for _, s := range all {
			n += s.Sent()
		}
		return n
	}, stop
}

// No frame of a network reaches a VM that is in another one: before, during and
// after swaps, with the same address in both networks, from the same host and
// over the wire, and with the agent and the server killed in between (invariants
// 1, 2, 3, 7; MISSION S60, S65, S68).
//
// Each place has an address of its own or a network of its own, so what reached
// the tap tells by itself where it came from and which place it was meant for;
// and the places must follow one another as the swaps did. No clock is asked.
func TestNothingOfAnotherNetwork(t *testing.T) {
	w := shared
	// After a move that was undone, the next one is to another address of the same network:
	// a host whose agent is dead still sends its peers' frames for the old one to the port,
	// which refuses them.
	ctx := w.within(t, "imds_other", "wrong_ca")
	lossless := w.bystanders(ctx, t)
	web := w.guest(ctx, t, 1, "red", false)
	ips := []string{web.ip, w.ip(), w.ip(), w.ip()}
	var senders []func() int
	var stops []func()
	for _, network := range []string{"red", "blue"} {
		near := w.guest(ctx, t, 1, network, true)
		for _, from := range []*lab.Node{near.Node, w.peer(ctx, t, network).Node} {
			sent, stop := probe(t, from, network, ips)
			senders, stops = append(senders, sent), append(stops, stop)
		}
	}
	record, err := w.Lab.Host(1).Capture(web.Tap(), filepath.Join(t.TempDir(), "tap.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	mac, err := web.MAC()
	if err != nil {
		t.Fatal(err)
	}
	probed := func() {
		t.Helper()
		before := total(senders)
		if err := lab.Until(ctx, "probes in this place", func() error {
			if n := total(senders) - before; n < 1700 {
				return fmt.Errorf("%d are sent", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	been, sure := []place{{"red", ips[0]}}, map[place]bool{{"red", ips[0]}: true}
	reaches(ctx, t, w.peer(ctx, t, "red").Node, web.ip)
	probed()
	for _, m := range []struct {
		to   place
		kill string // program that is killed
		at   string // phase at which it is
	}{
		{to: place{"blue", ips[0]}},
		{to: place{"red", ips[1]}, kill: "host", at: "reserved"},
		{to: place{"blue", ips[1]}, kill: "host", at: "switched"},
		{to: place{"red", ips[2]}, kill: "server", at: "switched"},
		{to: place{"blue", ips[2]}, kill: "host", at: "leased"},
		{to: place{"red", ips[3]}},
	} {
		s := web.start(ctx, t, &pb.StartSwapRequest{Network: m.to.network, Ip: m.to.ip})
		w.strike(ctx, t, s.Id, m.kill, m.at)
		if s, err = w.until(ctx, s.Id, func(s *pb.Swap) bool { return s.Done }); err != nil {
			t.Fatal(err)
		}
		switch s.Phase {
		case "committed":
			been = append(been, m.to)
			sure[m.to] = true
		case "undone": // it may have been there, and for how long nobody knows
			been = append(been, m.to, been[len(been)-1])
		default:
			t.Fatalf("%s killed at %s: the swap ended %s: %s", m.kill, m.at, s.Phase, s.Error)
		}
		t.Logf("%s killed at %q: %s", m.kill, m.at, s.Phase)
		now := been[len(been)-1]
		reaches(ctx, t, w.peer(ctx, t, now.network).Node, now.ip)
		probed()
	}
	for _, stop := range stops {
		stop()
	}
	if err := record.Stop(); err != nil {
		t.Fatal(err)
	}
	judge(t, record.File(), mac, been, sure, total(senders))
	lossless()
}

// strike kills a program when the swap is in a phase, or has passed it, and starts
// it again.
func (w *world) strike(ctx context.Context, t *testing.T, id, program, phase string) {
	t.Helper()
	if program == "" {
		return
	}
	_, err := w.until(ctx, id, func(s *pb.Swap) bool {
		return s.Done || s.Phase == phase || strings.Contains(fmt.Sprint(hops(s)), "/"+phase)
	})
	if err == nil && program == "host" {
		if err = w.KillHost(ctx, 1); err == nil {
			err = w.StartHost(ctx, 1)
		}
	} else if err == nil {
		if err = w.KillServer(ctx); err == nil {
			err = w.StartServer(ctx)
		}
	}
	if err == nil {
		err = w.Connected(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func total(counts []func() int) (n int) {
	for _, c := range counts {
		n += c()
	}
	return n
}

// judge reads what reached the tap, where the VM has been one place after the other,
// in some of them for long enough to be sure that probes reach it.
func judge(t *testing.T, file string, mac net.HardwareAddr, been []place, sure map[place]bool, sent int) {
	t.Helper()
	frames, err := lab.ReadPcap(file)
	if err != nil {
		t.Fatal(err)
	}
	at, arrived, wrong := 0, make(map[place]int), 0
	for _, f := range frames {
		_, rest, ok := bytes.Cut(f.Data, []byte(leakText))
		if !ok || len(f.Data) < 34 || !bytes.Equal(f.Data[:6], mac) { // what the VM sends may quote them
			continue
		}
		network, _, _ := strings.Cut(string(rest), ";")
		p := place{network, netip.AddrFrom4([4]byte(f.Data[30:34])).String()}
		arrived[p]++
		next := at
		for next < len(been) && been[next] != p {
			next++
		}
		if next == len(been) {
			if wrong++; wrong < 5 {
				t.Errorf("a frame for %v arrived at %s, when the VM was at %v (of %v)", p, f.At, been[at], been)
			}
			continue
		}
		at = next
	}
	for p := range sure {
		if arrived[p] == 0 {
			t.Errorf("nothing at all arrived at %v: this proves nothing", p)
		}
	}
	t.Logf("%d probes, arrived: %v, %d in the wrong network", sent, arrived, wrong)
	if sent < 10000 {
		t.Errorf("only %d probes were sent", sent)
	}
}

// The same address in two networks is two VMs: each hears its own peers only
// (invariant 1).
func TestSameAddressTwice(t *testing.T) {
	w := shared
	ctx := w.within(t)
	ip := w.ip()
	records := make(map[string]*lab.Recording)
	for i, network := range []string{"red", "blue"} {
		twin := w.guestAt(ctx, t, 1+i, network, ip, true)
		var err error
		if records[network], err = twin.On().Capture(twin.Tap(), filepath.Join(t.TempDir(), network+".pcap")); err != nil {
			t.Fatal(err)
		}
		sent, _ := probe(t, w.peer(ctx, t, network).Node, network, []string{ip})
		if err := lab.Until(ctx, "probes", func() error {
			if sent() < 50 {
				return fmt.Errorf("%d are sent", sent())
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		reaches(ctx, t, w.peer(ctx, t, network).Node, ip)
	}
	for network, r := range records {
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		frames, err := lab.ReadPcap(r.File())
		if err != nil {
			t.Fatal(err)
		}
		heard := make(map[string]int)
		for _, f := range frames {
			if _, rest, ok := bytes.Cut(f.Data, []byte(leakText)); ok {
				from, _, _ := strings.Cut(string(rest), ";")
				heard[from]++
			}
		}
		if len(heard) != 1 || heard[network] < 10 {
			t.Errorf("%s in %s heard %v", ip, network, heard)
		}
	}
}

// Bystanders lose nothing while the agent is killed and started again, and while
// another build of it takes over (invariant 7).
func TestUpgradeLosesNothing(t *testing.T) {
	w := shared
	ctx := w.within(t)
	other := t.TempDir()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", other+"/", "replug/cmd/replug-host")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lossless := w.bystanders(ctx, t)
	web := w.guest(ctx, t, 1, "red", true)
	for n := 1; n <= 2; n++ {
		if err := w.KillHost(ctx, n); err != nil {
			t.Fatal(err)
		}
		if err := w.StartHost(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	first := w.Config.Bin
	for _, bin := range []string{other, first} {
		w.Config.Bin = bin
		for n := 1; n <= 2; n++ {
			if err := w.Agent(n).Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if err := w.StartHost(ctx, n); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Connected(ctx); err != nil {
			t.Fatal(err)
		}
		ip := w.ip()
		web.also(ctx, t, ip)
		to := "blue"
		if bin == first {
			to = "red"
		}
		web.move(ctx, t, &pb.StartSwapRequest{Network: to, Ip: ip, Trigger: "none"})
		reaches(ctx, t, w.peer(ctx, t, to).Node, ip)
	}
	lossless()
}
