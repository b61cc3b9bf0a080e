package swap

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the engine's figures. A nil *Metrics counts nothing.
type Metrics struct {
	outcomes *prometheus.CounterVec
	phases   *prometheus.HistogramVec
	blackout prometheus.Histogram
	lives    prometheus.Gauge
	alarms   prometheus.Gauge
	retries  prometheus.Counter
}

// NewMetrics registers the figures.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	buckets := prometheus.ExponentialBuckets(0.001, 2, 17) // 1 ms to 65 s
	m := &Metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "replug_swaps_total", Help: "Swaps ended, by the phase they ended in."}, []string{"phase"}),
		phases:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "replug_swap_phase_seconds", Help: "Time from the start of a swap until a phase was reached.", Buckets: buckets}, []string{"phase"}),
		blackout: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "replug_swap_blackout_seconds", Help: "Time without frames around the flip, by the dataplane.", Buckets: buckets}),
		lives:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "replug_swaps_live", Help: "Swaps that are driven now."}),
		alarms:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "replug_swap_alarms", Help: "Live swaps that an operator should look at: degraded, host cut off, or not writable."}),
		retries:  prometheus.NewCounter(prometheus.CounterOpts{Name: "replug_swap_retries_total", Help: "Steps of swaps that failed and were tried again."}),
	}
	reg.MustRegister(m.outcomes, m.phases, m.blackout, m.lives, m.alarms, m.retries)
	return m
}

func (m *Metrics) reached(r *Record) {
	if m != nil {
		m.phases.WithLabelValues(r.Phase.String()).Observe(time.Since(r.Started).Seconds())
	}
}

func (m *Metrics) ended(r *Record) {
	if m == nil {
		return
	}
	m.outcomes.WithLabelValues(r.Phase.String()).Inc()
	if r.Blackout > 0 {
		m.blackout.Observe(r.Blackout.Seconds())
	}
}

func (m *Metrics) live(n float64) {
	if m != nil {
		m.lives.Add(n)
	}
}

func (m *Metrics) retry() {
	if m != nil {
		m.retries.Inc()
	}
}

// alarm follows an alarm that is raised or goes away.
func (m *Metrics) alarm(before, now string) {
	switch {
	case m == nil:
	case before == "" && now != "":
		m.alarms.Inc()
	case before != "" && now == "":
		m.alarms.Dec()
	}
}
