package swap

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Start reserves a swap and begins to drive it. It returns once the reservation is
// durable. The same request again returns the same swap, as it is by then
// (invariant 4). Errors: [ErrBusy], [ErrRequest], [ErrInvalid], [ErrStopped], those
// of Objects.Reserve and of the store. After [store.ErrUnavailable] it is not known
// whether the swap runs: ask again with the same request.
func (e *Engine) Start(ctx context.Context, q Request) (Record, error) {
	if err := q.complete(); err != nil {
		return Record{}, err
	}
	for try := 0; ; try++ {
		if rec, ok, err := e.done(ctx, &q); ok || err != nil {
			return rec, err
		}
		rec, err := e.reserve(ctx, &q)
		if errors.Is(err, store.ErrConflict) && try < 8 {
			continue
		}
		if err == nil || errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			return rec, err
		}
		// What stood in the way may be this very request, sent twice at once.
		if rec, ok, _ := e.done(ctx, &q); ok {
			return rec, nil
		}
		return rec, err
	}
}

// Plan returns the record that Start would reserve, and changes nothing.
func (e *Engine) Plan(ctx context.Context, q Request) (Record, error) {
	q.ID = orElse(q.ID, "plan")
	if err := q.complete(); err != nil {
		return Record{}, err
	}
	c, err := e.plan(ctx, &q)
	if err != nil {
		return Record{}, err
	}
	return c.record, nil
}

// complete checks q and fills what was left out.
func (q *Request) complete() error {
	q.Budgets = q.Budgets.orDefault()
	if q.Trigger == "" {
		q.Trigger = vnet.TriggerBounce
	}
	if q.OldConnections == "" {
		q.OldConnections = vnet.ResetConnections
	}
	switch {
	case q.ID == "":
		return fmt.Errorf("a request id is needed: %w", ErrInvalid)
	case q.Trigger != vnet.TriggerBounce && q.Trigger != vnet.TriggerNone:
		return fmt.Errorf("trigger %q is neither bounce nor none: %w", q.Trigger, ErrInvalid)
	case q.Confirm != "" && q.Confirm != vnet.ConfirmLease && q.Confirm != vnet.ConfirmGuest && q.Confirm != vnet.ConfirmCaller:
		return fmt.Errorf("confirm %q is none of lease, guest, caller: %w", q.Confirm, ErrInvalid)
	}
	return q.completeOld()
}

// completeOld does so for what becomes of old connections.
func (q *Request) completeOld() error {
	switch q.OldConnections {
	case vnet.ResetConnections, vnet.SilenceConnections:
		if q.Drain != 0 {
			return fmt.Errorf("old connections: a time to drain is given, but they are to be met with %s: %w", q.OldConnections, ErrInvalid)
		}
		return nil
	case vnet.DrainConnections:
		if q.Drain < 0 {
			return fmt.Errorf("old connections: %s is no time to drain: %w", q.Drain, ErrInvalid)
		}
		if q.Drain == 0 {
			q.Drain = DefaultDrain
		}
		return nil
	}
	return fmt.Errorf("old connections: %q is none of reset, drain, silence: %w", q.OldConnections, ErrInvalid)
}

// digest is of all that was asked.
func (q *Request) digest() string {
	b, _ := json.Marshal(q) // plain strings and numbers
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// done returns the swap that q has led to, if it has.
func (e *Engine) done(ctx context.Context, q *Request) (Record, bool, error) {
	row, err := store.Get[Operation](ctx, e.Store, store.Requests+q.ID)
	if errors.Is(err, store.ErrNotFound) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	if row.Value.Kind != Kind || row.Value.Digest != q.digest() {
		return Record{}, false, fmt.Errorf("request id %s: %w; use a new one", q.ID, ErrRequest)
	}
	rec, err := e.Get(ctx, row.Value.ID)
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("request id %s has led to swap %s, which has ended and whose record is kept no longer: look where the port is: %w", q.ID, row.Value.ID, err)
	}
	return rec, err == nil, err
}

// plan makes the record, the intent and the transaction of a reservation.
func (e *Engine) plan(ctx context.Context, q *Request) (*change, error) {
	c := new(change)
	r, err := e.Objects.Reserve(ctx, *q, &c.txn)
	if err != nil {
		return nil, err
	}
	intent, err := store.Get[vnet.Intent](ctx, e.Store, store.IntentKey(r.Host, r.Port))
	if err != nil {
		return nil, fmt.Errorf("swap port %s: %w", r.Port, err)
	}
	last := intent.Value.Current.Epoch
	burned, err := store.Get[vnet.Epoch](ctx, e.Store, EpochKey(r.Port))
	if err == nil {
		last = max(last, burned.Value)
	} else if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	r.fill(q)
	r.Budgets.Boot = e.Boot
	r.Before = intent.Value.Current
	r.After = r.at(r.After, e.after(last), false)
	next := r.After
	r.Started = e.now().UTC().Round(0)
	r.enter(Reserved, "", r.Started)
	r.brief()
	c.record = *r
	c.intent = &intent.Value
	c.intent.Next = &next
	c.txn.Unchanged(intent.Key, intent.Revision).Put(intent.Key, c.intent)
	c.txn.Unchanged(EpochKey(r.Port), burned.Revision)
	return c, nil
}

// fill takes over what the request says and Reserve did not decide.
func (r *Record) fill(q *Request) {
	r.ID, r.RequestID = "sw-"+rand.Text()[:12], q.ID
	r.Confirm = vnet.Confirm(orElse(string(q.Confirm), orElse(string(r.Confirm), string(vnet.ConfirmLease))))
	r.Trigger, r.Budgets, r.Claim = q.Trigger, q.Budgets, q.Claim
	r.OldConnections, r.Drain = q.OldConnections, q.Drain
	r.Budgets.Stage += q.Drain // the host drains before it is prepared: afterwards nobody knows the way to the port
	r.Services, r.Left = q.Services, nil
	r.Back, r.Error, r.Timeline, r.Writes = nil, "", nil, 1
}

// reserve writes the reservation. The driver is known before it is written, since
// a host may answer it before the store does.
func (e *Engine) reserve(ctx context.Context, q *Request) (Record, error) {
	c, err := e.plan(ctx, q)
	if err != nil {
		return Record{}, err
	}
	lease, err := e.Lease(ctx)
	if err != nil {
		return Record{}, err
	}
	r := &c.record
	c.txn.Absent(r.key()).Put(r.key(), r)
	c.txn.Absent(store.Live+r.Port).Put(store.Live+r.Port, r.ID)
	c.txn.Absent(store.Requests+q.ID).PutLeased(store.Requests+q.ID, Operation{Kind: Kind, ID: r.ID, Digest: q.digest()}, lease)
	d := e.newDriver(*r)
	if err := e.enlist(ctx, d); err != nil {
		return Record{}, err
	}
	defer close(d.made)
	rev, err := e.Store.Commit(ctx, &c.txn)
	switch {
	case err == nil:
		d.rev = rev
		d.intent = store.Row[vnet.Intent]{Key: store.IntentKey(r.Host, r.Port), Value: *c.intent, Revision: rev}
		e.Metrics.reached(r)
		d.log.Info("swap reserved", "from", r.Before.String(), "to", r.After.String(), "epoch", r.After.Epoch)
	case errors.Is(err, store.ErrConflict):
		e.unlist(d)
		return Record{}, e.conflict(ctx, r, err)
	case errors.Is(err, store.ErrFenced):
		e.unlist(d)
		e.end(err)
		return Record{}, err
	default:
		d.unsure = true // the driver finds out
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil {
		return *r, errors.Join(err, fmt.Errorf("swap %s: %w", r.ID, ErrStopped))
	}
	e.drive(d)
	return *r, err
}

// enlist makes d the port's driver. While another reservation of the port is being
// written it waits to see how that ends, and asks for another try.
func (e *Engine) enlist(ctx context.Context, d *driver) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil {
		return ErrStopped
	}
	other := e.byPort[d.port]
	if other == nil {
		e.byID[d.id], e.byPort[d.port] = d, d
		return nil
	}
	select {
	case <-other.made:
		return fmt.Errorf("port %s: %w: %s; wait for it or cancel it", d.port, ErrBusy, other.id)
	default:
	}
	e.mu.Unlock()
	defer e.mu.Lock()
	select {
	case <-other.made:
		return fmt.Errorf("port %s was being reserved: %w", d.port, store.ErrConflict)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *Engine) unlist(d *driver) {
	e.mu.Lock()
	e.remove(d)
	e.mu.Unlock()
}

// end makes Run return err.
func (e *Engine) end(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx != nil {
		e.fail(err)
	}
}

// conflict says what stood in the way of a reservation, when it is a live swap.
func (e *Engine) conflict(ctx context.Context, r *Record, err error) error {
	live, lerr := store.Get[string](ctx, e.Store, store.Live+r.Port)
	if lerr == nil {
		return fmt.Errorf("port %s: %w: %s; wait for it or cancel it", r.Port, ErrBusy, live.Value)
	}
	return err
}
