package server

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a server counts.
type Metrics struct {
	streams    prometheus.Gauge
	messages   prometheus.Counter
	resyncs    prometheus.Counter
	slow       prometheus.Counter
	unreadable prometheus.Counter
	refused    *prometheus.CounterVec
	dropped    *prometheus.CounterVec
}

// NewMetrics registers them; with nil they are counted for nobody.
func NewMetrics(r prometheus.Registerer) *Metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "replug", Subsystem: "directory", Name: name, Help: help}
	}
	m := &Metrics{
		streams:    prometheus.NewGauge(prometheus.GaugeOpts(opts("streams", "Hosts that are attached."))),
		messages:   prometheus.NewCounter(opts("messages_total", "Messages sent to hosts.")),
		resyncs:    prometheus.NewCounter(opts("resyncs_total", "Streams that began with everything instead of changes.")),
		slow:       prometheus.NewCounter(opts("slow_streams_total", "Streams closed because the host did not keep up.")),
		unreadable: prometheus.NewCounter(opts("unreadable_rows_total", "Rows of the store that hosts did not get.")),
		refused:    prometheus.NewCounterVec(opts("refused_streams_total", "Streams refused, by code."), []string{"code"}),
		dropped: prometheus.NewCounterVec(opts("dropped_statuses_total",
			"Statuses that control did not hear: late, foreign (no port of that host), unreadable."), []string{"reason"}),
	}
	if r != nil {
		r.MustRegister(m.streams, m.messages, m.resyncs, m.slow, m.unreadable, m.refused, m.dropped)
	}
	return m
}
