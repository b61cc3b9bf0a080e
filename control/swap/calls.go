package swap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Get returns a swap: a live one as it is in memory, an ended one from the store.
// It returns [store.ErrNotFound] for an id that is unknown, or expired.
func (e *Engine) Get(ctx context.Context, id string) (Record, error) {
	if d := e.driver(id); d != nil {
		rec, _ := d.look()
		return rec, nil
	}
	if id == "" || strings.Contains(id, "/") {
		return Record{}, fmt.Errorf("swap %q: %w", id, store.ErrNotFound)
	}
	row, err := store.Get[Record](ctx, e.Store, store.Swaps+id)
	return row.Value, err
}

// driver returns the driver of a live swap, or nil: also of one of which it is not
// yet known whether it was reserved.
func (e *Engine) driver(id string) *driver {
	e.mu.Lock()
	d := e.byID[id]
	e.mu.Unlock()
	if d == nil {
		return nil
	}
	select {
	case <-d.made:
		return d
	default:
		return nil
	}
}

// List returns all swaps that are kept, the newest first.
func (e *Engine) List(ctx context.Context) ([]Record, error) {
	rows, _, err := store.List[Record](ctx, e.Store, store.Swaps)
	if err != nil {
		return nil, err
	}
	all := make([]Record, 0, len(rows))
	for _, row := range rows {
		if d := e.driver(row.Value.ID); d != nil {
			row.Value, _ = d.look()
		}
		all = append(all, row.Value)
	}
	slices.SortStableFunc(all, func(a, b Record) int { return b.Started.Compare(a.Started) })
	return all, nil
}

// Live returns the swaps that run, as they are in memory.
func (e *Engine) Live() []Record {
	e.mu.Lock()
	drivers := slices.Collect(maps.Values(e.byID))
	e.mu.Unlock()
	all := make([]Record, 0, len(drivers))
	for _, d := range drivers {
		rec, _ := d.look()
		all = append(all, rec)
	}
	return all
}

// Watch calls f with the swap as it is now and after each change, until it has
// ended, f fails or ctx ends. Changes that come faster than f returns are seen as
// one; the timeline misses none.
func (e *Engine) Watch(ctx context.Context, id string, f func(Record) error) error {
	d := e.driver(id)
	if d == nil {
		rec, err := e.Get(ctx, id)
		if err != nil {
			return err
		}
		return f(rec)
	}
	for {
		rec, changed := d.look()
		if err := f(rec); err != nil || rec.Phase.Ended() {
			return err
		}
		select {
		case <-changed:
		case <-e.stopped():
			return fmt.Errorf("swap %s: %w", id, ErrStopped)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Confirm is the caller's word that the swap has succeeded. It returns once that
// is durable, which needs the guest to be seen first. Errors: [ErrNotAsked] when
// the swap has another proof, [ErrEnded] when it was given up before.
func (e *Engine) Confirm(ctx context.Context, id string) (Record, error) {
	d := e.driver(id)
	if d == nil {
		rec, err := e.Get(ctx, id)
		return rec, errors.Join(err, confirmError(&rec, err))
	}
	rec, _ := d.look()
	if rec.Confirm != vnet.ConfirmCaller {
		return rec, confirmError(&rec, nil)
	}
	d.tell(func(f *facts) { f.said = true })
	rec, err := d.until(ctx, func(r *Record) bool { return r.Phase == Confirmed || r.Phase == Undoing || r.Phase == Degraded })
	return rec, errors.Join(err, confirmError(&rec, err))
}

func confirmError(r *Record, err error) error {
	switch {
	case err != nil:
		return nil
	case r.Confirm != vnet.ConfirmCaller:
		return fmt.Errorf("swap %s is confirmed by %s: %w", r.ID, r.Confirm, ErrNotAsked)
	case r.Phase == Confirmed || r.Phase == Committed:
		return nil
	}
	return fmt.Errorf("swap %s is %s (%s): %w", r.ID, r.Phase, r.Error, ErrEnded)
}

// Cancel gives a swap up, which is possible until it is committed. It returns once
// that is durable; the way back is then on. Why is told to whoever reads the record.
// It returns [ErrEnded] when the swap was committed before.
func (e *Engine) Cancel(ctx context.Context, id, why string) (Record, error) {
	rec, err := e.Get(ctx, id)
	if d := e.driver(id); d != nil {
		d.tell(func(f *facts) {
			if f.stop == "" {
				f.stop = orElse(why, "cancelled")
			}
		})
		rec, err = d.until(ctx, func(r *Record) bool { return r.Phase == Undoing || r.Phase == Degraded })
	}
	if err == nil && rec.Phase == Committed {
		return rec, fmt.Errorf("swap %s is committed: %w; swap back instead", id, ErrEnded)
	}
	return rec, err
}

// Abandon adds to txn the end of the port's live swap, if it has one, for whoever
// deletes the port: the record ends as abandoned in the same transaction, with the
// live lock and the mappings of all its places removed. The rest is the caller's:
// intent, addresses and holds of both places. When there is no live swap the record
// is nil, and the mappings are the caller's too. What is kept of the port's epochs
// ([EpochKey]) goes either way. Done is to be called after the commit, however it
// ended.
func (e *Engine) Abandon(ctx context.Context, port, why string, txn *store.Txn) (r *Record, done func(), err error) {
	done = func() {}
	live, err := store.Get[string](ctx, e.Store, store.Live+port)
	if errors.Is(err, store.ErrNotFound) {
		txn.Absent(store.Live + port).Delete(EpochKey(port))
		return nil, done, nil
	}
	if err != nil {
		return nil, done, err
	}
	row, err := store.Get[Record](ctx, e.Store, store.Swaps+live.Value)
	if err != nil {
		return nil, done, fmt.Errorf("live swap of port %s: %w", port, err)
	}
	rec := row.Value.with(func(r *Record) {
		r.enter(Abandoned, orElse(why, "the port was deleted in mid-swap"), e.now())
		r.Writes++
	})
	rec.forget(txn)
	txn.Delete(store.Live+port).Unchanged(row.Key, row.Revision).Put(row.Key, rec)
	return &rec, func() { e.reread(rec.ID) }, nil
}

// reread makes a driver look at its rows again.
func (e *Engine) reread(id string) {
	if d := e.driver(id); d != nil {
		d.tell(func(f *facts) { f.stale = true })
	}
}
