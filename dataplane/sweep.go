package dataplane

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// sweepEvery is how often flows that have ended are removed. Their budgets hold
// for a minute without.
const sweepEvery = 5 * time.Second

// Flows is the datapath's memory of flows.
type Flows interface {
	// Sweep removes the flows that have ended or whose epoch is over, and counts
	// those of each port anew, so that none has more than its share. Each that is
	// removed is told.
	Sweep(ended func(FlowEvent)) (Swept, error)
}

// Swept is what a sweep found.
type Swept struct {
	Alive, Ended int
	// Full is how full the table of each family was: from 1 on it forgets flows, and
	// nobody hears of their end.
	Full [2]float64
}

// A sweeper keeps the flows and what is counted of networks in order.
type sweeper struct {
	flows    Flows
	accounts *accounts
	told     func(FlowEvent) // hears of each flow's end
	log      *slog.Logger
	alive    prometheus.Gauge
	full     *prometheus.GaugeVec
	overran  [2]bool // the table of each family, when it was looked at last
	ended    prometheus.Counter
	took     prometheus.Histogram
}

func newSweeper(f Flows, a *accounts, r prometheus.Registerer, log *slog.Logger) *sweeper {
	s := &sweeper{
		flows: f, accounts: a, told: func(FlowEvent) {}, log: log,
		alive: prometheus.NewGauge(prometheus.GaugeOpts{Name: "replug_flows", Help: "Flows that the datapath remembers, of all ports."}),
		full: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "replug_flow_table_full",
			Help: "Rows of a table of flows, to those that it takes before it forgets any: from 1 on it does."}, []string{"family"}),
		ended: prometheus.NewCounter(prometheus.CounterOpts{Name: "replug_flows_ended_total", Help: "Flows that have ended, or whose port has left their network."}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "replug_sweep_seconds", Help: "Time to look at all flows.",
			Buckets: []float64{1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1}}),
	}
	r.MustRegister(s.alive, s.full, s.ended, s.took)
	return s
}

// run sweeps until ctx is done.
func (s *sweeper) run(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		s.sweep()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (s *sweeper) sweep() {
	begun := time.Now()
	swept, err := s.flows.Sweep(s.told)
	if err != nil {
		s.log.Error("flows that have ended stay: ports may run out of their share", "err", err)
	}
	s.alive.Set(float64(swept.Alive))
	s.ended.Add(float64(swept.Ended))
	for f, full := range swept.Full {
		s.full.WithLabelValues(family(f).String()).Set(full)
		if over := full >= 1; over != s.overran[f] {
			s.overran[f] = over
			s.say(family(f), over)
		}
	}
	s.took.Observe(time.Since(begun).Seconds())
	s.accounts.all()
}

// say tells of a table that has begun or ceased to forget flows.
func (s *sweeper) say(f family, over bool) {
	if over {
		s.log.Warn("the table of flows is full: it forgets some, which are judged again as new ones, and no flow log tells their end; start this host's agent with a larger --max-flows", "family", f)
		return
	}
	s.log.Info("the table of flows has room again", "family", f)
}
