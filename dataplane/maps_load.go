package dataplane

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"replug/bpf"
	"replug/directory/vnet"
)

// loadMaps puts the datapath in force, or takes over the one that is.
func loadMaps(u *underlay, c *Config, log *slog.Logger) (*maps, error) {
	decap, err := decapFlags()
	if err != nil {
		return nil, err
	}
	d, err := bpf.Load(bpf.Options{
		PinDir: c.pins(), Uplink: u.uplink.Ifindex, UplinkMAC: u.uplink.MAC, IMDS: u.imds.Near.Ifindex, IMDSMAC: u.imds.Near.MAC, GatewayMAC: vnet.GatewayMAC,
		HostAddress: u.uplink.Addr, PAPrefix: u.prefix, UnderlayMTU: u.uplink.MTU, Mappings: uint32(c.MaxMappings), Flows: uint32(c.MaxFlows), Rules: uint32(c.MaxRules), DecapFlags: decap,
	})
	if errors.Is(err, bpf.ErrShape) {
		return nil, fmt.Errorf("%w; to go back for good, drain the host, then run replug-host teardown", err)
	}
	if err != nil {
		return nil, err
	}
	for _, attach := range []func() error{
		func() error { return d.AttachIMDS(u.imds.Near.Ifindex) },
		func() error { return d.AttachVXLAN(u.vxlan.Ifindex) },
		func() error { return d.AttachUplink(u.uplink.Ifindex) },
	} {
		if err := attach(); err != nil {
			_ = d.Close()
			return nil, err
		}
	}
	nic, err := attachNIC(d, u.uplink, c.XDP, log)
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	m := newMaps(d, log)
	m.nic = nic
	if err := m.forgetCopies(); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// unloadMaps takes the datapath out of force.
func unloadMaps(pins string) error { return bpf.Remove(pins) }

// What the datapath counts, read when Prometheus asks.
var (
	dropsDesc     = prometheus.NewDesc("replug_drops_total", "Frames that the datapath refused, by reason.", []string{"reason"}, nil)
	forwardedDesc = prometheus.NewDesc("replug_forwarded_total", "Frames delivered, sent, trapped or answered.", nil, nil)
	portsDesc     = prometheus.NewDesc("replug_ports", "Ports in force.", nil, nil)
	mappingsDesc  = prometheus.NewDesc("replug_mappings", "Mappings in the datapath.", nil, nil)
)

func (m *maps) Describe(ch chan<- *prometheus.Desc) {
	ch <- dropsDesc
	ch <- forwardedDesc
	ch <- portsDesc
	ch <- mappingsDesc
}

func (m *maps) Collect(ch chan<- prometheus.Metric) {
	if drops, err := m.bpf.Drops(); err == nil {
		for reason, n := range drops {
			ch <- prometheus.MustNewConstMetric(dropsDesc, prometheus.CounterValue, float64(n), reason.String())
		}
	}
	if n, err := m.bpf.Forwarded(); err == nil {
		ch <- prometheus.MustNewConstMetric(forwardedDesc, prometheus.CounterValue, float64(n))
	}
	if ports, err := m.bpf.Ports(); err == nil {
		ch <- prometheus.MustNewConstMetric(portsDesc, prometheus.GaugeValue, float64(len(ports)))
	}
	if all, err := m.bpf.Mappings(); err == nil {
		ch <- prometheus.MustNewConstMetric(mappingsDesc, prometheus.GaugeValue, float64(len(all)))
	}
}
