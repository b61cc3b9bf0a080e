package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replug/bpf"
	"replug/directory/vnet"
)

// maps is the BPF datapath in the agent's words. Nothing else in this package
// speaks BPF types.
type maps struct {
	bpf    *bpf.Datapath
	log    *slog.Logger
	settle chan struct{} // of length 1: a grace period is to be waited for
	done   chan struct{}
}

func newMaps(d *bpf.Datapath, log *slog.Logger) *maps {
	m := &maps{bpf: d, log: log, settle: make(chan struct{}, 1), done: make(chan struct{})}
	go m.settler()
	return m
}

// settler waits for the frames that still use a replaced row, off the path that
// a guest waits for: the next flip of the port would have to wait otherwise.
func (m *maps) settler() {
	defer close(m.done)
	for range m.settle {
		if err := m.bpf.Settle(); err != nil {
			m.log.Warn("the next flip takes longer", "err", err)
		}
	}
}

// close lets go of the datapath. It stays in force.
func (m *maps) close() error {
	close(m.settle)
	<-m.done
	return m.bpf.Close()
}

func (m *maps) Rows() ([]Row, error) {
	ports, err := m.bpf.Ports()
	rows := make([]Row, 0, len(ports))
	for id, p := range ports {
		r := Row{
			Port: vnet.PortID(id), Epoch: vnet.Epoch(p.Epoch), VNI: vnet.VNI(p.VNI), MAC: p.MAC, PA: vnet.PA{Addr: p.PA},
			Gateway: p.Gateway, Bits: p.Bits, MTU: uint16(p.MTU), Ifindex: p.Ifindex,
			Isolated: p.Flags&bpf.Isolated != 0, Timed: p.Flags&bpf.Timed != 0,
		}
		for i, ca := range p.CAs {
			r.CAs[i] = vnet.CA{Addr: ca}
		}
		rows = append(rows, r)
	}
	return rows, err
}

func (m *maps) SetPort(r Row) error {
	p := bpf.Port{
		Ifindex: r.Ifindex, VNI: uint32(r.VNI), Epoch: uint64(r.Epoch), MAC: r.MAC, PA: r.PA.Addr,
		Gateway: r.Gateway, Bits: r.Bits, MTU: int(r.MTU), Flags: bpf.Open,
	}
	if r.Isolated {
		p.Flags |= bpf.Isolated
	}
	if r.Timed {
		p.Flags |= bpf.Timed
	}
	for _, ca := range r.CAs {
		if ca.Is4() { // the datapath carries IPv4 as yet
			p.CAs = append(p.CAs, ca.Addr)
		}
	}
	err := m.bpf.SetPort(uint16(r.Port), p)
	select {
	case m.settle <- struct{}{}:
	default:
	}
	return err
}

func (m *maps) SetTimed(id vnet.PortID, on bool) error {
	if !on {
		return m.bpf.SetPortFlags(uint16(id), 0, bpf.Timed)
	}
	if err := m.bpf.ResetTimes(uint16(id)); err != nil {
		return err
	}
	return m.bpf.SetPortFlags(uint16(id), bpf.Timed, 0)
}

func (m *maps) DeletePort(id vnet.PortID) error { return m.bpf.DeletePort(uint16(id)) }

func (m *maps) Attach(_ vnet.PortID, ifindex int) error { return m.bpf.AttachTap(ifindex) }

func (m *maps) Detach(_ vnet.PortID, ifindex int) error { return m.bpf.DetachTap(ifindex) }

func (m *maps) Times(id vnet.PortID) (Times, error) {
	from, _, err := m.bpf.Times(uint16(id))
	t := Times{Epoch: vnet.Epoch(from.Epoch)}
	if from.Last != 0 {
		t.Seen = time.Now().Add(from.Last - bpf.Now())
	}
	if gap, ok := from.Blackout(); ok {
		t.Blackout = gap
	}
	return t, err
}

func (m *maps) SetMappings(rows []MappingRow) error {
	out := make([]bpf.Mapping, len(rows))
	for i, r := range rows {
		out[i] = bpf.Mapping{
			MappingKey: bpf.MappingKey{VNI: uint32(r.VNI), CA: r.CA.Addr},
			PA:         r.PA.Addr, MAC: r.MAC, Epoch: uint64(r.Epoch), NextHop: r.NextHop,
		}
	}
	return m.bpf.PutMappings(out...)
}

func (m *maps) DeleteMappings(keys []MappingKey) error {
	out := make([]bpf.MappingKey, len(keys))
	for i, k := range keys {
		out[i] = bpf.MappingKey{VNI: uint32(k.VNI), CA: k.CA.Addr}
	}
	return m.bpf.DeleteMappings(out...)
}

func (m *maps) EachMapping(f func(MappingRow)) error {
	all, err := m.bpf.Mappings()
	for _, b := range all {
		f(MappingRow{NextHop: b.NextHop, Mapping: vnet.Mapping{
			VNI: vnet.VNI(b.VNI), CA: vnet.CA{Addr: b.CA}, PA: vnet.PA{Addr: b.PA}, MAC: b.MAC, Epoch: vnet.Epoch(b.Epoch),
		}})
	}
	return err
}

func (m *maps) PutHost(p netip.Prefix) error    { return m.bpf.PutHost(p) }
func (m *maps) DeleteHost(p netip.Prefix) error { return m.bpf.DeleteHost(p) }
func (m *maps) Hosts() ([]netip.Prefix, error)  { return m.bpf.Hosts() }

func (m *maps) SetNextHop(index uint32, n NextHop) error {
	if n == (NextHop{}) {
		return m.bpf.ClearNextHop(index)
	}
	return m.bpf.SetNextHop(index, bpf.NextHop{Ifindex: n.Ifindex, Src: n.Src, Dst: n.Dst})
}

// SetRoutes puts before it deletes, so that no route is missing in between.
func (m *maps) SetRoutes(vni vnet.VNI, routes []vnet.Route) error {
	keep := map[netip.Prefix]bool{}
	for _, r := range routes {
		keep[r.Prefix.Masked()] = true
		if err := m.bpf.PutRoute(bpf.Route{VNI: uint32(vni), Prefix: r.Prefix, NextHop: r.NextHop}); err != nil {
			return err
		}
	}
	all, err := m.bpf.Routes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all {
		if r.VNI == uint32(vni) && !keep[r.Prefix] {
			errs = append(errs, m.bpf.DeleteRoute(r.VNI, r.Prefix))
		}
	}
	return errors.Join(errs...)
}

func (m *maps) RouteNetworks() ([]vnet.VNI, error) {
	all, err := m.bpf.Routes()
	seen := map[vnet.VNI]bool{}
	var vnis []vnet.VNI
	for _, r := range all {
		if v := vnet.VNI(r.VNI); !seen[v] {
			seen[v] = true
			vnis = append(vnis, v)
		}
	}
	return vnis, err
}

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

// A trapped is a guest's frame that the datapath handed up.
type trapped struct {
	port  vnet.PortID
	epoch vnet.Epoch
	dhcp  bool // else an ARP reply from the port's current CA
	frame []byte
}

// traps reads what the datapath hands up until stop is called; then it returns
// nil.
func (m *maps) traps(take func(trapped), lost func(error)) (run func() error, stop func(), err error) {
	r, err := m.bpf.Traps()
	if err != nil {
		return nil, nil, err
	}
	run = func() error {
		const most = 100 // in a row: the ring itself is broken
		for failed := 0; ; {
			t, err := r.Read()
			switch {
			case errors.Is(err, bpf.ErrClosed):
				return nil
			case err != nil:
				lost(err)
				if failed++; failed > most {
					return err
				}
				continue
			}
			failed = 0
			switch t.Kind {
			case bpf.TrapDHCP, bpf.TrapARPReply:
				take(trapped{vnet.PortID(t.Port), vnet.Epoch(t.Epoch), t.Kind == bpf.TrapDHCP, t.Frame})
			default:
				lost(fmt.Errorf("unknown trap kind %d", t.Kind))
			}
		}
	}
	return run, func() { _ = r.Close() }, nil
}
