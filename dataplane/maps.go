package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"replug/bpf"
	"replug/directory/vnet"
)

// maps is the BPF datapath in the agent's words. Nothing else in this package
// speaks BPF types.
type maps struct {
	bpf    *bpf.Datapath
	nic    bool // XDP takes small packets off the uplink
	log    *slog.Logger
	settle chan struct{} // of length 1: a grace period is to be waited for
	done   chan struct{}
	copied copied
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
			m.log.Warn("a flip is not settled: the next one takes longer, or an undo after a restart may find no room for its rules", "err", err)
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
			Gateway: p.Gateway, MTU: uint16(p.MTU), Tenant: p.Tenant, Ifindex: p.Ifindex,
		}
		for flag, on := range r.flags() {
			*on = p.Flags&flag != 0
		}
		copy(r.CAs[:], p.CAs)
		rows = append(rows, r)
	}
	return rows, err
}

// flags are where a row has what the datapath keeps as flags.
func (r *Row) flags() map[bpf.PortFlags]*bool {
	return map[bpf.PortFlags]*bool{
		bpf.Isolated: &r.Isolated, bpf.Timed: &r.Timed, bpf.Router: &r.Router, bpf.FlowLog: &r.Logged,
		bpf.Draining: &r.Draining, bpf.Strict: &r.Strict, bpf.Reset: &r.Reset, bpf.XDP: &r.Tap, bpf.Peer: &r.Peer,
	}
}

func (m *maps) SetPort(r Row) error {
	p := bpf.Port{
		Ifindex: r.Ifindex, VNI: uint32(r.VNI), Epoch: uint64(r.Epoch), MAC: r.MAC, PA: r.PA.Addr,
		Gateway: r.Gateway, MTU: int(r.MTU), Tenant: r.Tenant, Flags: bpf.Open,
	}
	for flag, on := range r.flags() {
		if *on {
			p.Flags |= flag
		}
	}
	if m.takesXDP(r.Ifindex) {
		p.Flags |= bpf.XDP
	}
	for _, ca := range r.CAs {
		if ca.IsValid() {
			p.CAs = append(p.CAs, ca)
		}
	}
	var err error
	if p.Rules, err = m.rulesFor(r); err != nil {
		return err
	}
	m.copied.mu.RLock()
	defer m.copied.mu.RUnlock()
	if m.copied.ports[r.Port] {
		p.Flags |= bpf.Captured
	}
	err = m.bpf.SetPort(uint16(r.Port), p)
	m.unsettled()
	return err
}

// unsettled has the grace period after a flip waited for.
func (m *maps) unsettled() {
	select {
	case m.settle <- struct{}{}:
	default:
	}
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

func (m *maps) Tally(id vnet.PortID) (Tally, error) {
	c, err := m.bpf.PortCounters(uint16(id))
	return Tally{c.FromPackets, c.FromBytes, c.ToPackets, c.ToBytes, c.Drops}, err
}

// A trapped is a guest's frame that the datapath handed up.
type trapped struct {
	port  vnet.PortID
	epoch vnet.Epoch
	said  said
	frame []byte
}

// said is what a trapped frame is about.
type said uint8

const (
	saidDHCP      said = 1 // of either family
	saidARP       said = 2 // an ARP reply from the port's current CA
	saidSolicit   said = 3 // a Router Solicitation
	saidNeighbour said = 4 // a Neighbour Advertisement to the gateway
	saidProbe     said = 5 // TCP to the gateway: the answer to a health check
)

var saidBy = map[bpf.TrapKind]said{
	bpf.TrapDHCP:            saidDHCP,
	bpf.TrapDHCPv6:          saidDHCP,
	bpf.TrapARPReply:        saidARP,
	bpf.TrapRouterSolicit:   saidSolicit,
	bpf.TrapNeighbourAdvert: saidNeighbour,
	bpf.TrapProbe:           saidProbe,
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
			about, ok := saidBy[t.Kind]
			if !ok {
				lost(fmt.Errorf("unknown trap kind %d", t.Kind))
				continue
			}
			take(trapped{vnet.PortID(t.Port), vnet.Epoch(t.Epoch), about, t.Frame})
		}
	}
	return run, func() { _ = r.Close() }, nil
}
