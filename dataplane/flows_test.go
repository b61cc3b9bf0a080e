package dataplane

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replug/dataplane/flowlog"
	"replug/directory/vnet"
)

type fakeEvents struct{ lost uint64 }

func (*fakeEvents) FlowEvents(func(FlowEvent)) (func() error, func(), error) {
	return func() error { return nil }, func() {}, nil
}
func (f *fakeEvents) FlowEventsLost() (uint64, error) { return f.lost, nil }

// countOf reads a counter, all its reasons if none is given.
func countOf(t *testing.T, r *prometheus.Registry, name, reason string) (n float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && (reason == "" || m.Label[0].GetValue() == reason) {
				n += m.Counter.GetValue()
			}
		}
	}
	return n
}

func newLogged(t *testing.T) (*flowLogger, *fakeEvents, *fakeHouse, *prometheus.Registry, string) {
	t.Helper()
	dir := t.TempDir()
	e, h := &fakeEvents{lost: 1000}, &fakeHouse{}
	reg := prometheus.NewRegistry()
	rules := func(id int64) string {
		if h.gone {
			return "deleted"
		}
		return fmt.Sprint("rule ", id)
	}
	l, err := newFlowLogger(e, h, rules, dir, reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l, e, h, reg, dir
}

func event(kind string, id vnet.PortID, counter uint64) FlowEvent {
	return FlowEvent{Kind: kind, Port: id, Epoch: vnet.NewEpoch(3, counter), Protocol: vnet.TCP, Rule: 77, At: time.Unix(1764140000, 0),
		Local: netip.MustParseAddrPort("10.17.34.51:443"), Remote: netip.MustParseAddrPort("10.17.34.85:50123"), Inbound: true}
}

func linesOf(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var r flowlog.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %s %s %s %s %s", r.Event, r.Tenant, r.Network, r.Port, r.Direction, r.Verdict, r.Rule, r.Reason))
	}
	return lines
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Invariant 9: a flow that ends after its port has moved is written down where it
// was, never where the port is now.
func TestFlowLogFollowsEpoch(t *testing.T) {
	l, _, h, reg, dir := newLogged(t)
	p := h.add("acme.web-1", 23, "acme")
	l.take(event(flowlog.Start, 23, 7))
	denied := event(flowlog.Denied, 23, 7)
	denied.Drop, denied.Rule = "rule_in", 78
	l.take(denied)
	after := *p.place
	after.Epoch, after.Network, after.VNI = vnet.NewEpoch(3, 9), "blue", 0xb4c5d6
	p.setPlace(&after, 5)
	h.gone = true // the rules went with the network
	l.take(event(flowlog.End, 23, 7))
	h.gone = false
	l.take(event(flowlog.Start, 23, 9))
	l.take(event(flowlog.End, 23, 4)) // of a place that this agent has not seen
	quiet := after
	quiet.Epoch, quiet.FlowLog = vnet.NewEpoch(3, 11), false
	p.setPlace(&quiet, 5)
	l.take(event(flowlog.Start, 23, 11))
	l.take(event(flowlog.End, 23, 9))
	l.flush()
	compare(t, linesOf(t, filepath.Join(dir, "10597059.jsonl")), []string{
		"start acme red acme.web-1 in allow rule 77 ", "denied acme red acme.web-1 in deny rule 78 rule_in", "end acme red acme.web-1 in allow rule 77 "})
	compare(t, linesOf(t, filepath.Join(dir, "11847126.jsonl")), []string{
		"start acme blue acme.web-1 in allow rule 77 ", "end acme blue acme.web-1 in allow rule 77 "})
	if n := countOf(t, reg, "replug_flow_records_lost_total", lostPlace); n != 1 {
		t.Errorf("%v records of unknown places are counted", n)
	}
	if n := countOf(t, reg, "replug_flow_records_total", ""); n != 5 {
		t.Errorf("%v records are counted", n)
	}
}

// What is not in the log is in a counter.
func TestFlowLogCountsLosses(t *testing.T) {
	l, e, h, reg, dir := newLogged(t)
	h.add("acme.web-1", 23, "acme")
	e.lost = 1017 // 1000 were lost before this agent
	l.flush()
	l.flush()
	if n := countOf(t, reg, "replug_flow_records_lost_total", lostRing); n != 17 {
		t.Errorf("%v records lost by the ring, want 17", n)
	}
	path := filepath.Join(dir, "10597059.jsonl")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	l.take(event(flowlog.Start, 23, 7))
	l.take(event(flowlog.End, 23, 7))
	if n := countOf(t, reg, "replug_flow_records_lost_total", lostDisk); n != 2 {
		t.Errorf("%v records lost by the disk, want 2", n)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.take(event(flowlog.Start, 23, 7))
	l.flush()
	compare(t, linesOf(t, path), []string{"start acme red acme.web-1 in allow rule 77 "})
}
