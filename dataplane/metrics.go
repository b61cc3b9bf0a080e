package dataplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the agent's own. What the datapath counts is read when somebody
// asks, see [Datapath] in maps.go.
type Metrics struct {
	flips   *prometheus.CounterVec
	flipFor prometheus.Histogram
	dhcp    *prometheus.CounterVec
	imds    *prometheus.CounterVec
	traps   *prometheus.CounterVec
	adverts *prometheus.CounterVec
	orphans prometheus.Gauge
}

// NewMetrics registers the agent's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		flips: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replug_flips_total", Help: "Rows put in force, by kind: first (a port's first place) or swap.",
		}, []string{"kind"}),
		flipFor: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "replug_flip_seconds", Help: "Time to put a swapped port's new row in force.",
			Buckets: []float64{1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1},
		}),
		dhcp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replug_dhcp_total", Help: "DHCP messages by what came of them: offer, ack, nak, or why there was no answer.",
		}, []string{"kind"}),
		imds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replug_imds_refused_total", Help: "Metadata requests that were refused, by reason.",
		}, []string{"reason"}),
		traps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replug_trap_drops_total", Help: "Trapped frames that the agent dropped, by reason.",
		}, []string{"reason"}),
		adverts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replug_router_advertisements_total", Help: "Router Advertisements sent to guests, by kind: solicited or unsolicited.",
		}, []string{"kind"}),
		orphans: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "replug_orphan_ports", Help: "Ports in force that no intent names.",
		}),
	}
	r.MustRegister(m.flips, m.flipFor, m.dhcp, m.imds, m.traps, m.adverts, m.orphans)
	return m
}

func (m *Metrics) flipped(d time.Duration, first bool) {
	if first {
		m.flips.WithLabelValues("first").Inc()
		return
	}
	m.flips.WithLabelValues("swap").Inc()
	m.flipFor.Observe(d.Seconds())
}
