package etcd

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeBudget bounds what a scrape may wait for the database.
const scrapeBudget = time.Second

var (
	bytesDesc = prometheus.NewDesc("replug_store_bytes", "Size of the store's database, of a cluster its largest member's.", nil, nil)
	quotaDesc = prometheus.NewDesc("replug_store_quota_bytes", "What the store's database may grow to.", nil, nil)
	fullDesc  = prometheus.NewDesc("replug_store_full", "1 while the store refuses writes, since its quota was reached.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (e *Etcd) Describe(c chan<- *prometheus.Desc) {
	c <- bytesDesc
	c <- quotaDesc
	c <- fullDesc
}

// Collect implements [prometheus.Collector]: the database is asked each time.
func (e *Etcd) Collect(c chan<- prometheus.Metric) {
	ctx, stop := context.WithTimeout(context.Background(), scrapeBudget)
	defer stop()
	u, err := e.Usage(ctx)
	if err != nil {
		return
	}
	full := 0.0
	if u.Full {
		full = 1
	}
	for desc, v := range map[*prometheus.Desc]float64{bytesDesc: float64(u.Bytes), quotaDesc: float64(u.Quota), fullDesc: full} {
		c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
}
