package swap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Options are what an engine needs.
type Options struct {
	Store     *store.Store           // fenced by the leader's key
	Objects   Objects                // the other managers
	Connected func(host string) bool // whether the host has a stream now
	Era       uint16                 // of the cluster: new epochs are of it
	OnEnd     func(Record)           // after the last write, also for two swaps at once; a hint only: not called again after a crash
	Log       *slog.Logger
	Metrics   *Metrics      // nil: none
	Boot      time.Duration // what a guest that is reset in mid-swap has to boot; 0: as in [DefaultBudgets]
	Kept      int           // ended records kept at most, of all tenants together; 0: 1000
	KeptFor   time.Duration // and how long; 0: 24 h
	// Lease is what request ids hang on, for at least KeptFor, be the record pushed out
	// meanwhile or not. nil: none, they go with a record that is old enough.
	Lease func(context.Context) (clientv3.LeaseID, error)
}

// An Engine drives all swaps of the cluster, on its one leader. It is safe for
// concurrent use.
type Engine struct {
	Options
	patience time.Duration // of one step with the store
	ready    chan struct{}

	mu      sync.Mutex
	ctx     context.Context         // of Run; nil: not running
	quit    chan struct{}           // closed when Run ends
	fail    context.CancelCauseFunc // ends Run, with why
	drivers sync.WaitGroup
	byID    map[string]*driver
	byPort  map[string]*driver
	ended   []tomb
}

// New makes an engine. It does nothing before [Engine.Run].
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Connected == nil {
		o.Connected = func(string) bool { return true }
	}
	if o.Boot == 0 {
		o.Boot = DefaultBudgets.Boot
	}
	if o.Lease == nil {
		o.Lease = func(context.Context) (clientv3.LeaseID, error) { return clientv3.NoLease, nil }
	}
	if o.Kept == 0 {
		o.Kept = 1000
	}
	if o.KeptFor == 0 {
		o.KeptFor = 24 * time.Hour
	}
	return &Engine{Options: o, patience: 5 * time.Second, ready: make(chan struct{}), quit: make(chan struct{}),
		byID: map[string]*driver{}, byPort: map[string]*driver{}}
}

// Ready is closed once Run has loaded the live swaps. A server takes hosts'
// streams after that, so that no status comes before its swap is known.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Run loads the live swaps, grants each a fresh budget, and drives them and those
// started later until ctx ends. It returns [store.ErrFenced] when this server is
// not the leader any more. It runs once: a new term needs a new engine.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := e.load(ctx, cancel)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrUnavailable) || !sleep(ctx, pause) {
			close(e.quit)
			return fmt.Errorf("load the live swaps: %w", err)
		}
	}
	close(e.ready)
	e.keepHouse(ctx)
	e.mu.Lock()
	e.ctx = nil
	close(e.quit)
	e.mu.Unlock()
	e.drivers.Wait()
	if err := context.Cause(ctx); errors.Is(err, store.ErrFenced) {
		return err
	}
	return nil
}

// load reads all records and starts a driver for each live one.
func (e *Engine) load(ctx context.Context, fail context.CancelCauseFunc) error {
	rows, _, err := store.List[Record](ctx, e.Store, store.Swaps)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ctx = ctx
	e.fail = fail
	for _, row := range rows {
		if row.Value.Phase.Ended() {
			e.bury(&row.Value)
			continue
		}
		e.adopt(row)
	}
	slices.SortFunc(e.ended, func(a, b tomb) int { return a.ended.Compare(b.ended) })
	return nil
}

// adopt starts driving a swap as the store has it. The lock is held.
func (e *Engine) adopt(row store.Row[Record]) {
	row.Value.Alarm = ""
	d := e.newDriver(row.Value)
	d.rev = row.Revision
	if row.Value.After.Epoch.Era() < e.Era {
		d.facts.stop = "the store was restored from a backup in mid-swap"
	}
	d.log.Info("swap taken over", "phase", row.Value.Phase)
	if row.Value.Back != nil {
		d.home = row.Value.Back.Epoch
	}
	close(d.made)
	e.byID[row.Value.ID], e.byPort[row.Value.Port] = d, d
	e.drive(d)
}

// drive starts d's goroutine. The lock is held, and Run is on.
func (e *Engine) drive(d *driver) {
	e.drivers.Add(1)
	e.Metrics.live(1)
	ctx, fail := e.ctx, e.fail
	go func() {
		defer e.drivers.Done()
		err := d.run(ctx)
		e.Metrics.live(-1)
		e.Metrics.alarm(d.rec.Alarm, "")
		switch {
		case err == nil || errors.Is(err, errVanished):
			e.forget(d, err == nil)
		case ctx.Err() == nil:
			d.log.Error("swap is not driven any more", "error", err)
			fail(err)
		}
	}()
}

// forget ends the life of a driver whose swap has ended, or never was.
func (e *Engine) forget(d *driver, ended bool) {
	e.mu.Lock()
	e.remove(d)
	if ended {
		e.bury(&d.rec)
	}
	e.mu.Unlock()
	if !ended {
		d.mu.Lock()
		d.show(d.rec.with(func(r *Record) { r.enter(Undone, "the reservation did not reach the store", e.now()) }))
		d.mu.Unlock()
		return
	}
	e.Metrics.ended(&d.rec)
	if e.OnEnd != nil {
		e.OnEnd(d.rec)
	}
}

// remove takes d out of the indexes. The lock is held.
func (e *Engine) remove(d *driver) {
	delete(e.byID, d.id)
	if e.byPort[d.port] == d {
		delete(e.byPort, d.port)
	}
}

// Of returns the live swap of a port, or false.
func (e *Engine) Of(port string) (Record, bool) {
	e.mu.Lock()
	d := e.byPort[port]
	e.mu.Unlock()
	if d == nil {
		return Record{}, false
	}
	rec, _ := d.look()
	return rec, true
}

// OnStatus takes a host's status, in memory. It reports whether a live swap is
// concerned: then the swap stores of it what must last, and nobody else has to.
// A late or duplicate status changes nothing.
func (e *Engine) OnStatus(s vnet.Status) bool {
	e.mu.Lock()
	d := e.byPort[s.Port]
	e.mu.Unlock()
	return d != nil && d.status(s)
}

// OnHost takes the news that a host's stream began or ended.
func (e *Engine) OnHost(host string, connected bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.byPort {
		if rec, _ := d.look(); rec.Host == host {
			d.log.Debug("host of the swap", "connected", connected)
			d.tell(func(*facts) {})
		}
	}
}

// now is the server's clock.
func (e *Engine) now() time.Time { return time.Now() }

// after returns the epoch that follows x, in the cluster's era.
func (e *Engine) after(x vnet.Epoch) vnet.Epoch {
	if x.Era() < e.Era {
		return vnet.NewEpoch(e.Era, x.Counter()+1)
	}
	return x.Next()
}

func (e *Engine) stopped() <-chan struct{} { return e.quit }

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
