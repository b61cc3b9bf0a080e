package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"replug/directory/vnet"
)

// A port reconciles one port to the newest intent for it, in a goroutine of its
// own, so that no port waits for another. It is level-triggered: each step looks
// at the world and does the next thing that is missing, so it may be cut off
// anywhere and started again.
type port struct {
	rooms
	id   vnet.PortID
	name string
	log  *slog.Logger
	wake chan struct{} // of length 1: look again
	done chan struct{} // closed when the worker has ended

	needs []vnet.VNI // its networks; the lock of [ports] guards it

	mu      sync.Mutex // guards what other goroutines hand in or ask for
	intent  vnet.Intent
	fresh   bool // the intent comes from a server, not from a record
	removed bool // there is no intent any more
	ended   bool // nobody looks at intent any more
	place   *vnet.Place
	ifindex int
	events  events
	warned  map[string]time.Time // when, by what was said
	former  []former             // of run
	version int                  // of intent and removed
	looking int                  // version that the worker works on
	cancel  context.CancelFunc   // ends what takes long

	// The worker's own.
	row       *Row         // in force, as the datapath has it; nil: none
	limited   *vnet.Limits // in force; nil: not known
	run       run
	recorded  bool // run is what an earlier session wrote
	staged    *run // of Next; nil: nothing is staged
	refused   vnet.Epoch
	roomTaken bool               // for Next's rules
	roomHeld  bool               // of the rules that an undo would go back to
	started   time.Time          // the machine, by this session
	since     time.Time          // Next's mappings are waited for
	drained   time.Time          // until then the port drains; zero: it doesn't
	ways      map[netip.Addr]Way // to the other ends of the connections that a flip will end
	attached  int                // ifindex that the datapath has attached
	found     Device             // that tap returned last
	link      Link
	power     vnet.Power
	startAt   time.Time // the machine is not started again before
	startWait time.Duration
	saved     vnet.Intent // that the record holds
	last      vnet.Status // reported of the epoch in force
	gone      bool
}

const (
	retryFirst = 100 * time.Millisecond
	retryBound = 10 * time.Second
	// forever is the wait of a port to which nothing can happen unannounced.
	forever = time.Hour
	// powerCheck is how often a machine is looked after.
	powerCheck = 2 * time.Second
)

func newPort(r rooms, in vnet.Intent, log *slog.Logger) *port {
	return &port{
		rooms: r, id: in.ID, name: in.Port, intent: in, log: log,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// resume takes over what an earlier session of the agent knew. What it had
// staged may be in force by now: it was cut off in the middle.
func (p *port) resume(rec record, row *Row) {
	p.saved, p.recorded = rec.Intent, true
	p.run, p.staged = rec.Run, rec.Staged
	if p.staged != nil {
		p.staged.resumed = true
		if row != nil && p.staged.Epoch == row.Epoch {
			p.run, p.staged = *p.staged, nil
			p.run.Former = leave(rec.Run.Former, &rec.Intent.Current, p.mtu)
			if next := rec.Intent.Next; next != nil && next.Epoch == row.Epoch {
				p.intent.Current, p.intent.Next = *next, nil // no server may be there to say so
			}
		}
	}
	p.setFormer(p.run.Former)
}

// set hands in a newer intent. It is refused once the worker has ended.
func (p *port) set(in vnet.Intent) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.intent, p.fresh, p.removed = in, true, false
	p.interrupt()
	return true
}

// remove says that no server has an intent for the port any more.
func (p *port) remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed, p.fresh = true, true
	p.interrupt()
}

// interrupt ends what takes long and lets the worker look again; p is locked.
func (p *port) interrupt() {
	p.version++
	if p.cancel != nil {
		p.cancel()
	}
	p.kick()
}

// long returns a context that ends as soon as there is a newer intent.
func (p *port) long(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel = cancel; p.version != p.looking {
		cancel()
	}
	return ctx, cancel
}

func (p *port) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// inForce returns the place in force and the tap; false when it isn't known.
func (p *port) inForce() (place *vnet.Place, ifindex int, mac vnet.MAC, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.place, p.ifindex, p.intent.MAC, p.place != nil && p.ifindex != 0
}

func (p *port) setPlace(place *vnet.Place, ifindex int) {
	p.mu.Lock()
	p.place, p.ifindex = place, ifindex
	p.mu.Unlock()
	if p.moved != nil {
		p.moved()
	}
}

// work reconciles until ctx is done, or the port is gone for good.
func (p *port) work(ctx context.Context) {
	defer p.closeLink()
	defer p.hearOut()
	retry := retryFirst
	for ctx.Err() == nil {
		wait, err := p.step(ctx)
		switch {
		case errors.Is(err, context.Canceled):
			wait = 0 // interrupted
		case err != nil:
			p.complain(err)
			if wait == 0 || wait > retry {
				wait = retry
			}
			retry = min(2*retry, retryBound)
		default:
			retry = retryFirst
		}
		if p.over() {
			return
		}
		t := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// step does what is missing and says when to look again at the latest; with an
// error 0 means that it doesn't matter.
func (p *port) step(ctx context.Context) (time.Duration, error) {
	p.mu.Lock()
	in, fresh, removed := p.intent, p.fresh, p.removed
	p.looking = p.version
	p.mu.Unlock()
	if in.Gone || removed {
		return forever, p.leave(ctx, in)
	}
	if p.gone { // and wanted again
		p.gone, p.run, p.last = false, run{}, vnet.Status{}
	}
	if !fresh {
		return p.serve(ctx, in)
	}
	swap, err := p.advance(ctx, in)
	p.releaseRules(&in)
	// A port that is held up goes by the newest rules and limits all the same, and
	// one whose rules can't be had goes on under those in force.
	kept := errors.Join(p.keepRules(&in), p.keepLimits(&in))
	if err != nil {
		return 0, errors.Join(err, kept)
	}
	power, err1 := p.drive(ctx, in)
	stage, err2 := p.stage(ctx, in)
	p.remember(in)
	if err := errors.Join(kept, err1, err2); err != nil {
		return swap, err
	}
	return min(swap, power, stage, p.tellRouter()), nil
}

// serve keeps up a port that only a record knows, since no server has spoken
// yet: leases and documents of the place in force, by both ways to its guest, and
// nothing that changes it.
func (p *port) serve(ctx context.Context, in vnet.Intent) (time.Duration, error) {
	if in.Machine != nil && p.on(&in) {
		p.agents.Open(p.id, *in.Machine)
	}
	if p.row == nil || p.row.Epoch != in.Current.Epoch {
		return forever, nil
	}
	swap, err := p.advance(ctx, in)
	return min(swap, p.tellRouter()), err
}

// complain says what holds the port up, once.
func (p *port) complain(err error) {
	p.mu.Lock()
	epoch := max(p.run.Epoch, p.intent.Current.Epoch)
	p.mu.Unlock()
	if p.last.Error == err.Error() && p.last.Epoch == epoch {
		return
	}
	p.log.Warn("port is held up", "err", err)
	phase := p.last.Phase
	if p.last.Epoch != epoch || phase < vnet.StatusFlipped {
		phase = vnet.StatusFailed
	}
	p.tell(phase, epoch, err)
}

// tell reports the state of one epoch of the port.
func (p *port) tell(phase vnet.StatusPhase, epoch vnet.Epoch, why error) {
	s := vnet.Status{Port: p.name, Epoch: epoch, Phase: phase, Power: p.power}
	if why != nil {
		s.Error = why.Error()
	}
	switch {
	case p.run.Epoch == epoch:
		s.Hops, s.Rung, s.Guest, s.Blackout = slices.Clone(p.run.Hops), p.run.Rung, p.run.Guest, p.run.Blackout
	case p.staged != nil && p.staged.Epoch == epoch:
		s.Hops = slices.Clone(p.staged.Hops)
	}
	if epoch == p.run.Epoch {
		p.last = s
	}
	p.report(s)
}

// remember writes the record, when it says something new.
func (p *port) remember(in vnet.Intent) {
	p.mu.Lock()
	known := p.place != nil && p.place.Epoch == in.Current.Epoch
	p.mu.Unlock()
	if !known || !p.run.dirty && sameIntent(p.saved, in) {
		return
	}
	if err := p.records.save(record{Intent: in, Run: p.run, Staged: p.staged}); err != nil {
		p.log.Warn("a restarted agent will know less of the port", "err", err)
	}
	p.saved, p.run.dirty = in, false
}

// sameIntent compares what a record is for.
func sameIntent(a, b vnet.Intent) bool {
	next := func(i vnet.Intent) vnet.Epoch {
		if i.Next == nil {
			return 0
		}
		return i.Next.Epoch
	}
	return a.Current.Epoch == b.Current.Epoch && next(a) == next(b) && a.ID == b.ID
}

// over reports whether the worker has nothing left to do, ever.
func (p *port) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = p.gone && p.removed
	return p.ended
}

func (p *port) closeLink() {
	if p.link != nil {
		_ = p.link.Close()
		p.link = nil
	}
}
