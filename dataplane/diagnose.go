package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"replug/directory/ask"
	"replug/directory/vnet"
)

// A Witness is what the datapath tells of frames, beside carrying them.
type Witness interface {
	// TraceFromVM runs a frame through the loaded programs as if the port's VM had
	// sent it, on the maps that are in force. Nothing is sent, counted or changed.
	TraceFromVM(vnet.PortID, []byte) (Traced, error)
	// TraceFromWire does the same for a frame from the underlay.
	TraceFromWire([]byte) (Traced, error)

	// SetCaptured copies a port's frames into the ring, or does not any more. It
	// outlasts a flip. A port without a row begins with its first one.
	SetCaptured(id vnet.PortID, on bool) error
	// WatchDrops copies every refused frame of the host into the ring.
	WatchDrops(on bool) error
	// Copies reads the ring until stop is called; then run returns nil.
	Copies(take func(Copy)) (run func() error, stop func(), err error)
	// CopiesLost counts the frames for which the ring was too full.
	CopiesLost() (uint64, error)
	// DropTotals counts the refused frames of the host, by reason.
	DropTotals() (map[string]uint64, error)
	// DropText says what a reason means.
	DropText(reason string) string

	// Flows lists what is remembered of a port's flows.
	Flows(vnet.PortID) ([]ask.Flow, error)
}

// Traced is an [ask.Trace] in the datapath's numbers.
type Traced struct {
	Verdict         string
	Drop            string
	Port, To        vnet.PortID // 0: none
	RuleOut, RuleIn int64       // ids, or RuleDefault and so on
	FlowOut, FlowIn string      // new, established, related; "": not asked
	Reset           bool        // the sender of a dropped one is told by a TCP reset
	Service         netip.AddrPort
	Backend         netip.AddrPort
	Route           netip.Prefix
	NextHop         netip.Addr
	Mapping         *ask.Mapping
	MTU             int
	Ifindex         int
	Frame           []byte
}

// What decides instead of a rule.
const (
	RuleDefault int64 = -1 // no rule matched
	RuleNone    int64 = -2 // the port is in no group
	RuleUnasked int64 = -3 // the frame did not come so far, or its flow was known
)

// A Copy is a frame as it passed a point.
type Copy struct {
	Port   vnet.PortID // 0: of none
	Point  ask.Point
	Drop   string        // reason, at [ask.PointDrop]
	Sender vnet.PortID   // of a refused frame for a port of this host: the port whose copy tells of it, too; else 0
	At     time.Duration // of the datapath's clock, see Copies
	Now    time.Duration // that clock when the copy was read
	Length int           // of the frame
	Frame  []byte        // the first bytes of it; the reader's own
}

// errQuestion says that a question can't be understood.
var errQuestion = errors.New("this agent doesn't understand the question: is it older than the server?")

// residents are the ports of this host.
type residents interface {
	named(string) *port    // nil: none
	get(vnet.PortID) *port // nil: none
}

// diagnosis answers an operator's questions. Nothing of it runs while nobody asks.
type diagnosis struct {
	witness Witness
	ports   residents
	rules   func(id uint32) (RuleName, bool)
	device  func(ifindex int) string
	uplink  vnet.MAC
	copies  *copies
	log     *slog.Logger
}

func newDiagnosis(w Witness, ps residents, rules func(uint32) (RuleName, bool), device func(int) string, uplink vnet.MAC, log *slog.Logger) *diagnosis {
	return &diagnosis{witness: w, ports: ps, rules: rules, device: device, uplink: uplink, copies: newCopies(w, log), log: log}
}

// answer answers one question; it is a client.Asked.
func (d *diagnosis) answer(ctx context.Context, kind string, payload []byte, answer func([]byte) error) error {
	switch kind {
	case ask.KindTraceFromVM:
		return once(payload, answer, d.traceFromVM)
	case ask.KindTraceFromWire:
		return once(payload, answer, d.traceFromWire)
	case ask.KindCapture:
		return stream(ctx, payload, answer, d.capture)
	case ask.KindDrops:
		return stream(ctx, payload, answer, d.drops)
	case ask.KindFlows:
		return stream(ctx, payload, answer, d.flows)
	}
	return fmt.Errorf("%q: %w", kind, errQuestion)
}

// once answers a question with one value.
func once[Q, A any](payload []byte, answer func([]byte) error, f func(Q) (A, error)) error {
	return stream(context.Background(), payload, answer, func(_ context.Context, q Q, say func(any) error) error {
		a, err := f(q)
		if err != nil {
			return err
		}
		return say(a)
	})
}

// stream answers a question with any number of values.
func stream[Q any](ctx context.Context, payload []byte, answer func([]byte) error, f func(context.Context, Q, func(any) error) error) error {
	var q Q
	if err := json.Unmarshal(payload, &q); err != nil {
		return fmt.Errorf("%w: %w", errQuestion, err)
	}
	return f(ctx, q, func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return answer(b)
	})
}

// A resident is a port as it is in force.
type resident struct {
	of    *port
	name  string
	id    vnet.PortID
	mac   vnet.MAC
	host  string
	place *vnet.Place
}

// find returns a port of this host that is in force.
func (d *diagnosis) find(name string) (resident, error) {
	p := d.ports.named(name)
	if p == nil {
		return resident{}, fmt.Errorf("port %q is not on this host: look where it is, it may just have been deleted", name)
	}
	r, ok := p.resident()
	if !ok {
		return r, fmt.Errorf("port %q is not in force yet: look at its status", name)
	}
	return r, nil
}

func (p *port) resident() (resident, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return resident{p, p.name, p.id, p.intent.MAC, p.intent.Host, p.place}, p.place != nil
}

// errLeft ends an answer that spoke of a port which is no more, or somebody else's
// by now: its number may be another port's the next moment.
var errLeft = errors.New("the port has been deleted, or given to another tenant")

// same returns [errLeft] if a port is not any more what it was when it was found.
func (d *diagnosis) same(r resident) error {
	if now, err := d.find(r.name); err != nil || now.of != r.of || now.place.Tenant != r.place.Tenant {
		return fmt.Errorf("port %q: %w", r.name, errLeft)
	}
	return nil
}

// ref names a port by its number; 0: none.
func (d *diagnosis) ref(id vnet.PortID) ask.PortRef {
	if id == 0 {
		return ask.PortRef{}
	}
	ref := ask.PortRef{ID: id, Name: fmt.Sprintf("port id %d", id)}
	if p := d.ports.get(id); p != nil {
		if r, ok := p.resident(); ok {
			ref.Name, ref.Network, ref.VNI, ref.Tenant = r.name, r.place.Network, r.place.VNI, r.place.Tenant
		}
	}
	return ref
}

// flows lists the live flows of a port, in parts.
func (d *diagnosis) flows(_ context.Context, q ask.Flows, say func(any) error) error {
	const part = 200
	r, err := d.find(q.Port)
	if err != nil {
		return err
	}
	all, err := d.witness.Flows(r.id)
	if err := errors.Join(err, d.same(r)); err != nil {
		return err
	}
	for len(all) > part {
		if err := say(all[:part]); err != nil {
			return err
		}
		all = all[part:]
	}
	return say(all)
}
