package swap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A driver takes one swap from phase to phase. Only its goroutine changes the
// record and writes; others leave facts and wake it.
type driver struct {
	engine *Engine
	id     string // of the swap
	port   string
	log    *slog.Logger
	wake   chan struct{}
	made   chan struct{} // closed when it is known whether the reservation was written

	// Of the driver's goroutine alone.
	rev    int64                  // of the record's row
	intent store.Row[vnet.Intent] // Key "" when it has to be read
	timer  *time.Timer
	due    time.Time  // when the budget is spent; zero: never
	bootBy time.Time  // until then a guest that was reset may boot
	booted vnet.Epoch // in which that was
	unsure bool       // the rows may have changed under us: read before writing
	tries  int        // failures in a row
	known  facts      // as of the last look at the table

	mu      sync.Mutex
	rec     Record        // written by the driver's goroutine, which reads it without the lock
	facts   facts         // written by all
	home    vnet.Epoch    // of the way back, as soon as a host may be told of it; before, no host can speak of it
	changed chan struct{} // closed and replaced with each visible change
}

func (e *Engine) newDriver(rec Record) *driver {
	return &driver{
		engine: e, id: rec.ID, port: rec.Port, rec: rec,
		log:     e.Log.With("swap", rec.ID, "vm", rec.VM, "port", rec.Port, "host", rec.Host),
		wake:    make(chan struct{}, 1),
		made:    make(chan struct{}),
		changed: make(chan struct{}),
		facts:   facts{heard: vnet.Status{Epoch: rec.After.Epoch}},
	}
}

// run drives the swap until it has ended, or ctx has, or the leader is fenced.
func (d *driver) run(ctx context.Context) error {
	d.timer = time.NewTimer(time.Hour)
	defer d.timer.Stop()
	d.grant()
	for {
		to, why := d.next()
		if d.rec.Phase.Ended() {
			return nil
		}
		var err error
		if to == d.rec.Phase && !d.unsure {
			if d.calm() {
				continue // decide again: its alarm is over
			}
			err = d.wait(ctx, 0)
		} else if err = d.step(ctx, to, why); err != nil && !errors.Is(err, store.ErrFenced) && !errors.Is(err, errVanished) && ctx.Err() == nil {
			err = d.wait(ctx, d.failed(to, err))
		}
		if err != nil {
			return err
		}
	}
}

// How long a failed write rests before the next try.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = time.Second
)

// next asks the table, with all that is known now.
func (d *driver) next() (Phase, string) {
	online := d.engine.Connected(d.rec.Host)
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.known.heard
	d.allowBoot()
	d.facts.online = online
	d.facts.late = !d.due.IsZero() && !time.Now().Before(d.due)
	d.unsure = d.unsure || d.facts.stale
	d.facts.stale = false
	d.known = d.facts
	a := alarm(&d.rec, d.known)
	if a != d.rec.Alarm || d.known.heard.Newer(&before) {
		rec := d.rec.with(func(r *Record) { r.Alarm = a; r.hear(&d.known.heard) })
		d.show(rec)
	}
	return decide(&d.rec, d.known)
}

// allowBoot gives a guest that was reset on its way, or on its way back, the time of
// a boot from when this leader hears of it, once. The lock is held.
func (d *driver) allowBoot() {
	if d.booted == d.facts.heard.Epoch || !d.facts.reset() {
		return
	}
	d.booted, d.bootBy = d.facts.heard.Epoch, time.Now().Add(d.rec.Budgets.Boot)
	d.log.Info("guest was reset in mid-swap, and has the time of a boot", "budget", d.rec.Budgets.Boot)
	if !d.due.IsZero() && d.bootBy.After(d.due) {
		d.due = d.bootBy
	}
}

// wait returns when there may be something new to decide, or pause is over.
func (d *driver) wait(ctx context.Context, pause time.Duration) error {
	wake := d.wake
	switch {
	case pause > 0:
		d.timer.Reset(pause)
		wake = nil // else a talkative host would make a busy loop of a store that is down
	case d.due.IsZero() || d.known.late:
		d.timer.Reset(time.Hour)
	default:
		d.timer.Reset(time.Until(d.due))
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake:
	case <-d.timer.C:
	}
	return nil
}

// step reaches a phase: in memory, or by its transaction.
func (d *driver) step(ctx context.Context, to Phase, why string) error {
	ctx, cancel := context.WithTimeout(ctx, d.engine.patience)
	defer cancel()
	if d.unsure || transitions[to].write && d.intent.Key == "" {
		if err := d.read(ctx); err != nil {
			return err
		}
		return nil // decide again
	}
	if !transitions[to].write {
		d.reach(d.rec.with(func(r *Record) { r.enter(to, why, d.engine.now()) }))
		return nil
	}
	c, err := d.compose(ctx, to, why)
	if err != nil {
		return err
	}
	if b := c.record.Back; b != nil {
		d.headFor(b.Epoch)
	}
	rev, err := d.engine.Store.Commit(ctx, &c.txn)
	if errors.Is(err, store.ErrTooLarge) {
		err = &refusal{err}
	}
	if err != nil {
		d.unsure = true
		return err
	}
	d.rev, d.tries = rev, 0
	if c.intent != nil {
		d.intent.Value, d.intent.Revision = *c.intent, rev
	}
	d.mu.Lock()
	d.facts.trouble = ""
	d.mu.Unlock()
	d.reach(c.record)
	return nil
}

// calm notes that nothing is to be written, and reports whether a write had failed
// often enough for an alarm. Reading alone is no success: what is refused for what it
// is would be tried again without a rest, and in silence.
func (d *driver) calm() bool {
	d.tries = 0
	d.mu.Lock()
	defer d.mu.Unlock()
	had := d.facts.trouble != ""
	d.facts.trouble = ""
	return had
}

// headFor makes the driver listen to what the host says of the way back.
func (d *driver) headFor(e vnet.Epoch) {
	d.mu.Lock()
	d.home = e
	d.mu.Unlock()
}

// errVanished says that a reservation of which it was not known whether it was
// written, was not.
var errVanished = errors.New("the swap was never reserved")

// read takes the rows as they are. A record of another revision is somebody's
// who deletes the port, or our own write whose answer was lost.
func (d *driver) read(ctx context.Context) error {
	row, err := store.Get[Record](ctx, d.engine.Store, d.rec.key())
	if errors.Is(err, store.ErrNotFound) {
		return errVanished
	}
	if err != nil {
		return err
	}
	intent, err := store.Get[vnet.Intent](ctx, d.engine.Store, store.IntentKey(d.rec.Host, d.rec.Port))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	d.mu.Lock()
	d.facts.gone = err != nil || intent.Value.Gone
	d.mu.Unlock()
	d.intent, d.unsure = intent, false
	d.intent.Key = store.IntentKey(d.rec.Host, d.rec.Port)
	if row.Revision != d.rev {
		d.rev = row.Revision
		if b := row.Value.Back; b != nil {
			d.headFor(b.Epoch)
		}
		d.reach(row.Value)
	}
	return nil
}

// reach makes rec the record, with its phase's budget.
func (d *driver) reach(rec Record) {
	if rec.Phase != d.rec.Phase {
		d.engine.Metrics.reached(&rec)
		d.log.Info("swap "+rec.Phase.String(), "epoch", rec.After.Epoch, "error", rec.Error)
	}
	phase := d.rec.Phase
	d.mu.Lock()
	d.show(rec)
	d.mu.Unlock()
	if rec.Phase != phase {
		d.grant()
	}
}

// grant starts the budget of the phase, if it has one of its own.
func (d *driver) grant() {
	budget := transitions[d.rec.Phase].budget
	if budget == nil {
		if d.due.IsZero() && d.rec.Phase == Staged { // a new leader has no running one
			budget = stageBudget
		} else {
			return
		}
	}
	d.due = time.Time{}
	if b := budget(d.rec.Budgets); b > 0 {
		d.due = time.Now().Add(b)
		if d.booted == d.rec.bound() && d.bootBy.After(d.due) {
			d.due = d.bootBy
		}
	}
}

// show makes rec visible. The lock is held.
func (d *driver) show(rec Record) {
	d.engine.Metrics.alarm(d.rec.Alarm, rec.Alarm)
	d.rec = rec
	close(d.changed)
	d.changed = make(chan struct{})
}

// failed notes why a step did not succeed, and returns how long to rest.
func (d *driver) failed(to Phase, err error) time.Duration {
	d.engine.Metrics.retry()
	d.log.Warn("swap step failed, trying again", "to", to, "error", err)
	pause := min(firstRetry<<min(d.tries, 20), lastRetry)
	d.tries++
	d.mu.Lock()
	defer d.mu.Unlock()
	if no := new(refusal); errors.As(err, &no) {
		d.facts.stop = no.Error() // on the way back nobody asks for it: that is tried on, under an alarm
	}
	if d.tries > 2 { // a conflict or two is how things go
		d.facts.trouble = err.Error()
	}
	return pause
}

// tell changes the facts and wakes the driver.
func (d *driver) tell(f func(*facts)) {
	d.mu.Lock()
	f(&d.facts)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// status takes a status of the port, and reports whether it is about this swap.
func (d *driver) status(s vnet.Status) bool {
	d.mu.Lock()
	mine := s.Host == d.rec.Host && (s.Epoch == d.rec.After.Epoch || s.Epoch == d.home) && !d.rec.Phase.Ended()
	d.mu.Unlock()
	if mine {
		d.tell(func(f *facts) { f.hear(s) })
	}
	return mine
}

// look returns the record and a channel that is closed when it has changed.
func (d *driver) look() (Record, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rec, d.changed
}

// until waits for the record to be as wanted or to have ended.
func (d *driver) until(ctx context.Context, wanted func(*Record) bool) (Record, error) {
	for {
		rec, changed := d.look()
		if wanted(&rec) || rec.Phase.Ended() {
			return rec, nil
		}
		select {
		case <-changed:
		case <-d.engine.stopped():
			return rec, fmt.Errorf("swap %s: %w", rec.ID, ErrStopped)
		case <-ctx.Done():
			return rec, fmt.Errorf("swap %s is %s: %w", rec.ID, rec.Phase, ctx.Err())
		}
	}
}
