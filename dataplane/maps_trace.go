package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"replug/bpf"
	"replug/dataplane/flowlog"
	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// The datapath as a witness: what it would do with a frame, copies of frames, flows.

var verdicts = map[bpf.Way]string{
	bpf.Trapped: ask.Trapped, bpf.Answered: ask.Answered, bpf.ToIMDS: ask.ToIMDS, bpf.ToPort: ask.ToPort, bpf.ToWire: ask.ToWire,
	bpf.ToItsVM: ask.ToPort, bpf.Climbs: ask.SentUp, bpf.NotOurs: ask.Passed,
}

func (m *maps) TraceFromVM(id vnet.PortID, b []byte) (Traced, error) {
	t, err := m.bpf.TraceFromVM(uint16(id), b)
	if err != nil {
		return Traced{}, tooLarge(err, b)
	}
	out := traced(&t)
	out.Port, out.To = id, vnet.PortID(t.ToPort)
	if sent, ok := frame.TupleOf(b); ok && t.NextHop.IsValid() {
		p, err := m.bpf.Port(uint16(id))
		if err != nil {
			return out, err
		}
		dst := sent.Dst.Addr()
		if out.Service, out.Backend = translation(&t, sent); out.Service == sent.Dst {
			dst = out.Backend.Addr()
		}
		if out.Route, err = m.route(&p, dst); err != nil {
			return out, err
		}
		if t.NextHop != dst {
			out.NextHop = t.NextHop
		}
	}
	return out, m.device(&out)
}

func (m *maps) TraceFromWire(b []byte) (Traced, error) {
	t, err := m.bpf.TraceFromWire(b)
	if err != nil {
		return Traced{}, tooLarge(err, b)
	}
	out := traced(&t)
	out.To, out.Mapping = vnet.PortID(t.Port), nil
	return out, m.device(&out)
}

// tooLarge explains why the kernel refuses to test-run a large frame: it must fit
// into one page with the kernel's own room (bpf_test_init in net/bpf/test_run.c).
func tooLarge(err error, b []byte) error {
	const surely = 3400
	if len(b) > surely && errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("a kernel test-runs frames of about %d bytes, and this one has %d: ask about a smaller one; what depends on size alone is the MTU: %w", surely, len(b), err)
	}
	return err
}

// traced is what both hooks tell in the same way.
func traced(t *bpf.Trace) Traced {
	out := Traced{Verdict: verdicts[t.Way], RuleOut: RuleUnasked, RuleIn: RuleUnasked, MTU: t.MTU, Frame: t.Frame,
		FlowOut: flowStates[t.FlowOut], FlowIn: flowStates[t.FlowIn], Reset: t.Reset}
	if t.Drop != 0 {
		out.Verdict, out.Drop = ask.Dropped, t.Drop.String()
	}
	if t.FlowOut != bpf.FlowNotAsked {
		out.RuleOut = int64(t.RuleOut)
	}
	if t.FlowIn != bpf.FlowNotAsked {
		out.RuleIn = int64(t.RuleIn)
	}
	if t.PA.IsValid() {
		out.Mapping = &ask.Mapping{VNI: vnet.VNI(t.VNI), PA: t.PA, MAC: t.MAC}
	}
	return out
}

var flowStates = map[bpf.FlowState]string{bpf.FlowNew: "new", bpf.FlowKnown: "established", bpf.FlowRelated: "related"}

// translation returns the two ends of a service's translation: the VM sends to the
// service, or answers as one of its backends.
func translation(t *bpf.Trace, sent frame.Tuple) (service, backend netip.AddrPort) {
	switch {
	case !t.Translated.IsValid():
		return netip.AddrPort{}, netip.AddrPort{}
	case t.Answers:
		return t.Translated, sent.Src
	}
	return sent.Dst, t.Translated
}

// route returns what leads from a port to an address: its subnet, or the longest
// prefix among the routes of its network.
func (m *maps) route(p *bpf.Port, dst netip.Addr) (netip.Prefix, error) {
	for _, ca := range p.CAs {
		if ca.Contains(dst) {
			return ca.Masked(), nil
		}
	}
	routes, err := m.bpf.Routes()
	var best netip.Prefix
	for _, r := range routes {
		if r.VNI == p.VNI && r.Prefix.Contains(dst) && (!best.IsValid() || r.Prefix.Bits() > best.Bits()) {
			best = r.Prefix
		}
	}
	return best, err
}

// device finds by which tap a frame leaves.
func (m *maps) device(t *Traced) error {
	if t.Verdict != ask.ToPort {
		return nil
	}
	p, err := m.bpf.Port(uint16(t.To))
	t.Ifindex = p.Ifindex
	return err
}

// copied are the ports whose frames are copied: a row that is replaced must say so
// again.
type copied struct {
	mu    sync.RWMutex
	ports map[vnet.PortID]bool
}

func (m *maps) SetCaptured(id vnet.PortID, on bool) error {
	m.copied.mu.Lock()
	defer m.copied.mu.Unlock()
	if m.copied.ports == nil {
		m.copied.ports = map[vnet.PortID]bool{}
	}
	set, clear := bpf.Captured, bpf.PortFlags(0)
	if m.copied.ports[id] = on; !on {
		delete(m.copied.ports, id)
		set, clear = clear, set
	}
	err := m.bpf.SetPortFlags(uint16(id), set, clear)
	if errors.Is(err, bpf.ErrNoPort) {
		return nil // its next row will say so
	}
	return err
}

func (m *maps) WatchDrops(on bool) error { return m.bpf.WatchDrops(on) }

// forgetCopies ends the copying that an agent which was killed has left on.
func (m *maps) forgetCopies() error {
	if err := m.bpf.WatchDrops(false); err != nil {
		return err
	}
	ports, err := m.bpf.Ports()
	for id, p := range ports {
		if p.Flags&bpf.Captured != 0 {
			err = errors.Join(err, m.bpf.SetPortFlags(id, 0, bpf.Captured))
		}
	}
	return err
}

var points = map[bpf.Point]ask.Point{
	bpf.AtFromVM: ask.PointFromVM, bpf.AtToVM: ask.PointToVM, bpf.AtFromWire: ask.PointFromWire, bpf.AtToWire: ask.PointToWire, bpf.AtDrop: ask.PointDrop, bpf.AtDropTo: ask.PointDrop,
}

func (m *maps) Copies(take func(Copy)) (run func() error, stop func(), err error) {
	r, err := m.bpf.Captures()
	if err != nil {
		return nil, nil, err
	}
	run = readAll(func() error {
		c, err := r.Read()
		if err == nil {
			out := Copy{Port: vnet.PortID(c.Port), Point: points[c.Point], At: c.Time, Now: bpf.Now(), Length: c.Len, Frame: c.Frame, Sender: vnet.PortID(c.Sender)}
			if c.Drop != 0 {
				out.Drop = c.Drop.String()
			}
			take(out)
		}
		return err
	})
	return run, func() { _ = r.Close() }, nil
}

// readAll calls read until the ring is closed, at a bounded pace; a ring that fails
// again and again is broken.
func readAll(read func() error) func() error {
	const most = 100
	return func() error {
		var pace pacer
		for failed := 0; ; pace.wait() {
			switch err := read(); {
			case errors.Is(err, bpf.ErrClosed):
				return nil
			case err == nil:
				failed = 0
			default:
				if failed++; failed > most {
					return err
				}
			}
		}
	}
}

func (m *maps) CopiesLost() (uint64, error) { return m.bpf.CapturesLost() }

func (m *maps) DropTotals() (map[string]uint64, error) {
	drops, err := m.bpf.Drops()
	totals := make(map[string]uint64, len(drops))
	for reason, n := range drops {
		totals[reason.String()] = n
	}
	return totals, err
}

func (m *maps) DropText(reason string) string { return bpf.DropText(reason) }

func (m *maps) Flows(id vnet.PortID) ([]ask.Flow, error) {
	p, err := m.bpf.Port(uint16(id))
	if err != nil {
		return nil, fmt.Errorf("read the port's row: %w", err)
	}
	var all []ask.Flow
	now := bpf.Now()
	err = m.bpf.EachFlow(func(f bpf.Flow) {
		if f.Port != uint16(id) || f.Epoch != p.Epoch || f.Answers {
			return
		}
		all = append(all, ask.Flow{
			Protocol: vnet.Protocol(f.Protocol), Local: f.Local, Remote: f.Remote, Inbound: f.Inbound, State: flowState(&f),
			Age: now - f.Began, Idle: f.Idle, Packets: f.From.Packets + f.To.Packets, Bytes: f.From.Bytes + f.To.Bytes,
		})
	})
	slices.SortFunc(all, func(a, b ask.Flow) int { return int(min(1, max(-1, a.Idle-b.Idle))) })
	return all, err
}

func flowState(f *bpf.Flow) string {
	switch {
	case f.Closing:
		return "closing"
	case f.Answered:
		return "open"
	}
	return "opening"
}

func (m *maps) FlowEvents(take func(FlowEvent)) (run func() error, stop func(), err error) {
	r, err := m.bpf.FlowEvents()
	if err != nil {
		return nil, nil, err
	}
	run = readAll(func() error {
		e, err := r.Read()
		if err == nil {
			out := FlowEvent{
				Kind: flowlog.Start, Port: vnet.PortID(e.Port), Epoch: vnet.Epoch(e.Epoch), Protocol: vnet.Protocol(e.Protocol),
				Local: e.Local, Remote: e.Remote, Inbound: e.Inbound, Rule: int64(e.Rule), At: time.Now().Add(e.Time - bpf.Now()),
			}
			switch e.Kind {
			case bpf.FlowDenied:
				out.Kind, out.Drop, out.Packets, out.Bytes = flowlog.Denied, e.Drop.String(), e.Packets, e.Bytes
			case bpf.FlowEnded:
				out.Kind, out.Lasted, out.Packets, out.Bytes = flowlog.End, e.Time-e.Began, e.Packets, e.Bytes
			}
			take(out)
		}
		return err
	})
	return run, func() { _ = r.Close() }, nil
}

func (m *maps) FlowEventsLost() (uint64, error) { return m.bpf.FlowEventsLost() }
