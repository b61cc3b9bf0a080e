package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// A holding counts what a cluster holds, by what it is.
type holding map[string]int

// After swaps, also undone and cancelled ones, everything is as it was: entries
// of maps, pinned links, devices, goroutines, open files, rows of the store that
// don't expire (invariant 8).
func TestNothingPilesUp(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web, cold := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 1, "red", false)
	w.peer(ctx, t, "red")
	w.peer(ctx, t, "blue")
	at := "red"
	hop := func(r *pb.StartSwapRequest) {
		to := "blue"
		if at == to {
			to = "red"
		}
		ip := w.ip()
		web.also(ctx, t, ip)
		r.Network, r.Ip, r.Trigger = to, ip, "none"
		s := web.start(ctx, t, r)
		if r.Confirm == "caller" {
			w.in(ctx, t, s.Id, "published")
			if _, err := pb.NewSwapsClient(w.conn).CancelSwap(ctx, &pb.CancelSwapRequest{RequestId: w.id(), Id: s.Id}); err != nil {
				t.Fatal(err)
			}
			w.ends(ctx, t, s.Id, "undone")
			return
		}
		w.ends(ctx, t, s.Id, "committed")
		at = to
	}
	round := func(n int) {
		for i := range n {
			hop(&pb.StartSwapRequest{})
			if i%5 == 4 {
				hop(&pb.StartSwapRequest{Confirm: "caller"})
			}
		}
		for _, to := range []string{"blue", "red"} {
			cold.move(ctx, t, &pb.StartSwapRequest{Network: to, Ip: w.ip()})
		}
	}
	round(6) // what is made once is made
	before := w.holding(ctx, t)
	round(24)
	err := lab.Until(ctx, "the baseline", func() error {
		after := w.holding(ctx, t)
		var more []string
		for what, n := range after {
			// gRPC and the collector of garbage have a few goroutines and files that
			// come and go; 24 swaps that each leave one would show.
			if slack := slackOf(what); n > before[what]+slack {
				more = append(more, fmt.Sprintf("%s: %d, then %d", what, before[what], n))
			}
		}
		if slices.Sort(more); len(more) > 0 {
			return fmt.Errorf("there is more than before: %s", strings.Join(more, "; "))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, what := range []string{"h1 map taps", "h1 map locals", "h1 map mappings", "h1 links", "h1 devices", "h1 agent go_goroutines", "h1 agent files", "server go_goroutines", "rows ports"} {
		if before[what] == 0 {
			t.Errorf("nothing was counted as %q: this proves nothing; counted: %v", what, before)
		}
	}
	t.Logf("%v", before)
}

func slackOf(what string) int {
	switch what {
	case "rows swaps", "rows requests": // kept for a day, then swept: see control/swap
		return 24 + 4 + 2
	case "rows cas": // a former address rests for a minute
		return 24 + 4 + 2
	}
	if strings.HasSuffix(what, " map tenant_flows") { // one a tenant, from the sweep on that follows its first port
		return 1
	}
	if strings.Contains(what, "goroutines") || strings.Contains(what, "files") {
		return 8
	}
	return 0
}

// holding counts everything.
func (w *world) holding(ctx context.Context, t *testing.T) holding {
	t.Helper()
	h := make(holding)
	for i, n := range w.Lab.Hosts() {
		w.holdingOf(ctx, t, h, n, w.Agent(i+1))
	}
	maps.Copy(h, measured(ctx, t, "server ", w.Lab.Server(), 9418))
	h["server files"] = files(t, w.Server())
	w.rows(ctx, t, h)
	return h
}

func (w *world) holdingOf(ctx context.Context, t *testing.T, h holding, n *lab.Node, agent *lab.Proc) {
	t.Helper()
	pins, _ := filepath.Glob(filepath.Join(n.BPF(), "replug/maps/*"))
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		switch m.Type() {
		case ebpf.Hash, ebpf.LPMTrie: // an array has all its entries, an LRU's die by themselves
			h[n.Name+" map "+filepath.Base(pin)] = entries(t, m)
		}
		m.Close()
	}
	links, _ := filepath.Glob(filepath.Join(n.BPF(), "replug/links/*"))
	h[n.Name+" links"] = len(links)
	err := n.Netlink(func(nl *netlink.Handle) error {
		all, err := nl.LinkList()
		h[n.Name+" devices"] = len(all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(h, measured(ctx, t, n.Name+" agent ", n, 9417))
	h[n.Name+" agent files"] = files(t, agent)
}

func entries(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	key := make([]byte, m.KeySize())
	var next []byte
	var err error
	for next, err = m.NextKeyBytes(nil); err == nil && next != nil; next, err = m.NextKeyBytes(key) {
		copy(key, next)
		n++
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// measured reads the gauges of a program that must not grow.
func measured(ctx context.Context, t *testing.T, prefix string, n *lab.Node, port int) holding {
	t.Helper()
	h := make(holding)
	for name, v := range metrics(ctx, t, n, port) {
		switch name {
		case "go_goroutines", "replug_ports", "replug_mappings", "replug_orphan_ports", "replug_swaps_live", "replug_swap_alarms":
			h[prefix+name] = int(v)
		}
	}
	return h
}

// metrics reads a program's metrics, by name with labels.
func metrics(ctx context.Context, t *testing.T, n *lab.Node, port int) map[string]float64 {
	t.Helper()
	all, err := scrape(ctx, n, port)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// scrape reads a program's metrics.
func scrape(ctx context.Context, n *lab.Node, port int) (map[string]float64, error) {
	out, err := n.Run(ctx, "busybox", "wget", "-qO-", fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		return nil, err
	}
	all := make(map[string]float64)
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		space := strings.LastIndexByte(line, ' ') // there may be some in labels
		if v, err := strconv.ParseFloat(line[space+1:], 64); space > 0 && err == nil {
			all[line[:space]] = v
		}
	}
	return all, nil
}

func files(t *testing.T, p *lab.Proc) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// rows counts the store's rows by kind, from a backup: it has those that don't
// expire by themselves.
func (w *world) rows(ctx context.Context, t *testing.T, h holding) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup")
	if _, said, code := w.cli(ctx, t, "backup", file); code != 0 {
		t.Fatal(said)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var row struct {
			Key   string
			Value json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		if parts := strings.Split(row.Key, "/"); len(parts) > 2 {
			h["rows "+parts[2]]++
		}
	}
}
