package dataplane

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

type fakeFlows struct{ swept Swept }

func (f *fakeFlows) Sweep(func(FlowEvent)) (Swept, error) { return f.swept, nil }

// How full each family's table is is told at each sweep; that one forgets is said once,
// with what to do, and once more when it has room again.
func TestFullTableIsTold(t *testing.T) {
	var said bytes.Buffer
	flows, reg := &fakeFlows{}, prometheus.NewRegistry()
	none := newAccounts(prometheus.NewRegistry())
	none.here = func() map[vnet.PortID]account { return nil }
	s := newSweeper(flows, none, reg, slog.New(slog.NewTextHandler(&said, nil)))
	for _, c := range []struct {
		full  [2]float64
		words string // of what is said
	}{
		{[2]float64{0.7, 0.99}, ""}, {[2]float64{0.7, 1}, "--max-flows\" family=IPv6"}, {[2]float64{0.7, 1.1}, ""},
		{[2]float64{1.3, 1.1}, "--max-flows\" family=IPv4"}, {[2]float64{1.3, 0.2}, "again\" family=IPv6"},
	} {
		said.Reset()
		flows.swept.Full = c.full
		s.sweep()
		if got := said.String(); !strings.Contains(got, c.words) || c.words == "" && got != "" {
			t.Errorf("full to %v: said %q, want %q", c.full, got, c.words)
		}
		for f, want := range c.full {
			if got := gaugeOf(t, reg, "replug_flow_table_full", family(f).String()); got != want {
				t.Errorf("full to %v: %s is told as %v", c.full, family(f), got)
			}
		}
	}
}

func gaugeOf(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && m.Label[0].GetValue() == label {
				return m.Gauge.GetValue()
			}
		}
	}
	t.Fatalf("no %s of %s", name, label)
	return 0
}
