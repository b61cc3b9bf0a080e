package control

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replug/control/pool"
)

// scrapeBudget bounds what a scrape may wait for the store.
const scrapeBudget = time.Second

// metrics are the control plane's own; swaps and directory have theirs.
type metrics struct {
	calls *prometheus.CounterVec
	vms   *prometheus.Desc
	s     *Server
}

func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replug_api_calls_total", Help: "Calls of the API that were answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		vms: prometheus.NewDesc("replug_pool_vms", "VMs of the pool, by type and state.", []string{"type", "state"}, nil),
		s:   s,
	}
	reg.MustRegister(m.calls, m,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "replug_store_txns_total", Help: "Durable transactions that this server has committed.",
		}, func() float64 { return float64(s.cfg.Store.Txns()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "replug_leading", Help: "1 while this server leads.",
		}, func() float64 {
			if s.reign.Load() != nil {
				return 1
			}
			return 0
		}))
	return m
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(c chan<- *prometheus.Desc) { c <- m.vms }

// Collect implements [prometheus.Collector]: the pool is counted when asked.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	r := m.s.reign.Load()
	if r == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), scrapeBudget)
	defer stop()
	members, err := (fleet{r}).Members(ctx)
	if err != nil {
		return
	}
	count := make(map[[2]string]float64)
	names := map[pool.State]string{pool.Booting: "booting", pool.Waiting: "ready", pool.Broken: "failed"}
	for _, v := range members {
		count[[2]string{v.Type, names[v.State]}]++
	}
	for k, n := range count {
		c <- prometheus.MustNewConstMetric(m.vms, prometheus.GaugeValue, n, k[0], k[1])
	}
}
