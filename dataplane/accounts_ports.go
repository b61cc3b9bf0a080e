package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

// portCounters tell what each port has sent, got and been refused, for whoever
// wants series that name VMs (--port-metrics). They are read from the datapath when
// Prometheus asks, and nothing is remembered: a series goes with its port, and
// goes on when the port changes networks.
type portCounters struct {
	tally func(vnet.PortID) (Tally, error)
	here  func() map[string]vnet.PortID // ports in force
}

var (
	portPacketsDesc = prometheus.NewDesc("replug_port_packets_total", "Packets of a port: from its VM, to it.", []string{"port", "direction"}, nil)
	portBytesDesc   = prometheus.NewDesc("replug_port_bytes_total", "Ethernet bytes of a port: from its VM, to it.", []string{"port", "direction"}, nil)
	portDropsDesc   = prometheus.NewDesc("replug_port_drops_total", "Frames refused from or to a port.", []string{"port"}, nil)
)

func (c portCounters) Describe(ch chan<- *prometheus.Desc) {
	ch <- portPacketsDesc
	ch <- portBytesDesc
	ch <- portDropsDesc
}

func (c portCounters) Collect(ch chan<- prometheus.Metric) {
	say := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for name, id := range c.here() {
		t, err := c.tally(id)
		if err != nil {
			continue // it has just gone
		}
		say(portPacketsDesc, t.FromPackets, name, "from")
		say(portPacketsDesc, t.ToPackets, name, "to")
		say(portBytesDesc, t.FromBytes, name, "from")
		say(portBytesDesc, t.ToBytes, name, "to")
		say(portDropsDesc, t.Drops, name)
	}
}
