package dataplane

import (
	"context"
	"slices"
	"time"

	"replug/directory/vnet"
)

// A step is how far a port is with the epoch in force. Stored in records.
type step string

// The steps of a flip, in the order of the walk.
const (
	stepPart    step = "part"    // the connections of the old place are reset
	stepCut     step = "cut"     // the guest's link goes down
	stepFlip    step = "flip"    // the row changes; the old metadata and local entry are gone
	stepDark    step = "dark"    // the link stays down for the rung's time, then comes up
	stepProve   step = "prove"   // the guest is to be seen on its new CA
	stepRecut   step = "recut"   // it was not: down again, for the next rung
	stepPublish step = "publish" // the metadata service serves the place's document
	stepConfirm step = "confirm" // the guest's agent reports on it
	stepSettled step = "settled" // nothing more is expected
)

// steps is the whole machine. A step says whether it is done, and if not, when
// to try again. The flip happens while the link is down: a guest that leases
// its old address again would keep it. Only prove has a second way out: give up
// waiting and climb the ladder.
var steps = map[step]struct {
	do    func(*port, context.Context, *vnet.Intent) (outcome, error)
	next  step
	again step
}{
	stepPart:    {do: (*port).part, next: stepCut},
	stepCut:     {do: (*port).cut, next: stepFlip},
	stepFlip:    {do: (*port).flip, next: stepDark},
	stepDark:    {do: (*port).dark, next: stepProve},
	stepProve:   {do: (*port).prove, next: stepPublish, again: stepRecut},
	stepRecut:   {do: (*port).recut, next: stepDark},
	stepPublish: {do: (*port).publish, next: stepConfirm},
	stepConfirm: {do: (*port).confirm, next: stepSettled},
	stepSettled: {do: (*port).settled},
}

// An outcome is what a step came to.
type outcome struct {
	kind outcomeKind
	wait time.Duration // of pending: look again then, or when woken
}

type outcomeKind uint8

const (
	pending outcomeKind = iota
	done
	again
)

func wait(d time.Duration) outcome { return outcome{pending, d} }

// A run is the walk of one epoch through the steps.
type run struct {
	Epoch    vnet.Epoch        `json:"epoch"`
	From     []vnet.CA         `json:"from,omitempty"` // what the guest called itself before; none: not known
	Step     step              `json:"step"`
	Hops     []vnet.Hop        `json:"hops,omitempty"`
	Rung     string            `json:"rung,omitempty"` // that worked
	Flipped  time.Time         `json:"flipped"`
	ACK      time.Time         `json:"ack"` // of the IPv4 lease, later than the flip
	ACK6     time.Time         `json:"ack6,omitzero"`
	Former   []former          `json:"former,omitempty"` // IPv6 routers that the guest may still believe in
	Speaks   [2]speech         `json:"speaks,omitzero"`  // the guest, in each family
	Guest    *vnet.GuestReport `json:"guest,omitempty"`
	Blackout time.Duration     `json:"blackout,omitempty"`
	Boots    bool              `json:"boots,omitempty"`   // the guest starts in this place: it asks by itself
	Reset    bool              `json:"reset,omitempty"`   // the guest was reset on the way: so does it
	Pooled   bool              `json:"pooled,omitempty"`  // the guest waits in the pool until it is seen here
	Polls    bool              `json:"polls,omitempty"`   // and asks for its document all the time
	Cuts     int               `json:"cuts,omitempty"`    // of the link so far
	Tried    int               `json:"tried,omitempty"`   // rung of the ladder
	Try      bool              `json:"try,omitempty"`     // it begins lower than others of its kind: see [rungs]
	Jumped   bool              `json:"jumped,omitempty"`  // rungs were left out
	Agent    bool              `json:"agent,omitempty"`   // the guest's agent is told instead of a first cut
	Resumed  bool              `json:"resumed,omitempty"` // the guest slept until this walk: its clock stood still
	Dark     time.Time         `json:"dark,omitzero"`     // since when the guest, which was saved so, has no link

	dirty              bool // the record doesn't have this yet
	resumed            bool // an earlier session of the agent began it
	asked              bool // its NIC, whether it boots
	again              bool // bounced by this session because there was no proof
	cutAt              time.Time
	half               time.Time // it was first seen in one family and not in the other
	kicked             time.Time // something happened to the guest: ask often from now on
	dueBy              time.Time // for a proof; zero: the wait has not begun
	probed             time.Time
	failed             bool
	worked             time.Duration // of the guest's CPUs, when it was looked at
	lookedAt, workedAt time.Time     // and when it was last seen to work
	begun              time.Time     // by this session
	owed               bool          // the link is not known to be up
	told               int           // advertisements since the last event
	tellFrom, tellAt   time.Time     // the first and the next of them
	hearing            hearing
}

// hop notes that a step has ended.
func (r *run) hop(name string) {
	r.Hops = append(r.Hops, vnet.Hop{Name: name, At: time.Now()})
	r.dirty = true
}

// up reports whether the link was put up after the last cut.
func (r *run) up() bool {
	for _, h := range slices.Backward(r.Hops) {
		if h.Name == "link_up" || h.Name == "link_down" {
			return h.Name == "link_up"
		}
	}
	return false
}

// advance walks the epoch that is to be in force through the steps, as far as
// it gets without waiting. A lower epoch than the one in force is late: it lost.
func (p *port) advance(ctx context.Context, in vnet.Intent) (time.Duration, error) {
	if p.row != nil && in.Current.Epoch < p.row.Epoch {
		return forever, nil
	}
	switch {
	case p.run.Epoch != in.Current.Epoch:
		p.begin(&in)
	case p.recorded:
		p.again(&in)
	}
	p.recorded = false
	p.heedReset(ctx, &in)
	if err := p.refresh(&in); err != nil {
		return 0, err
	}
	for {
		s := steps[p.run.Step]
		o, err := s.do(p, ctx, &in)
		switch {
		case err != nil:
			return 0, err
		case o.kind == pending:
			return o.wait, nil
		case o.kind == again:
			p.run.Step = s.again
		default:
			p.run.Step = s.next
		}
		p.run.dirty = true
	}
}

// begin starts the walk of a new epoch.
func (p *port) begin(in *vnet.Intent) {
	old := p.run
	defer func() { p.setFormer(leave(old.Former, p.left(in), p.mtu)) }()
	p.run = run{Epoch: in.Current.Epoch, Step: stepPart, Boots: p.row == nil && in.Machine != nil,
		Pooled: p.pooled(), Polls: p.docs.Polls(p.id), Speaks: p.heard(&old), Dark: old.Dark, begun: time.Now()}
	switch {
	case p.row != nil && p.row.Epoch == in.Current.Epoch:
		// Flipped by a session that left no word of it. The guest may have
		// followed: it is not bounced again before it had time to prove that.
		p.run.Step, p.run.resumed = stepDark, true
		p.firstRung(in)
		p.log.Info("found in force", "place", in.Current.String())
		return
	case p.staged != nil && p.staged.Epoch == in.Current.Epoch:
		p.run.Hops, p.run.From = p.staged.Hops, p.staged.From
		p.run.Pooled = p.run.Pooled || p.staged.Pooled
		p.run.Resumed = p.staged.Resumed
	case p.row != nil:
		p.run.From = used(p.row)
	}
	if in.Current.Undo {
		// The guest may be at either place.
		p.run.From = append(p.run.From, old.From...)
	}
	p.firstRung(in)
}

// again takes up a walk that a record knows. What was done before the flip is
// done again unless the row is in force; what came after is looked at again.
func (p *port) again(in *vnet.Intent) {
	r := &p.run
	r.resumed = true
	switch {
	case p.row == nil || p.row.Epoch != in.Current.Epoch:
		p.begin(in)
	case r.Step == stepPublish || r.Step == stepConfirm || r.Step == stepSettled:
		// The session may have ended with the link cut, on the way to a place of which
		// it left no word.
		r.Step, r.owed = stepPublish, r.Dark.IsZero()
	default:
		r.Step = stepDark
	}
}

func used(r *Row) []vnet.CA {
	var cas []vnet.CA
	for _, ca := range r.CAs {
		if ca.IsValid() {
			cas = append(cas, vnet.CA{Addr: ca.Addr()})
		}
	}
	return cas
}
