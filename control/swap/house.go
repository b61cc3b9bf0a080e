package swap

import (
	"context"
	"errors"
	"slices"
	"time"

	"replug/directory/store"
)

// A tomb is an ended swap whose record is still kept.
type tomb struct {
	id, request, tenant string
	ended               time.Time
}

// How often records are looked at, and how many go in one transaction: etcd
// refuses one of more than 128 writes.
const (
	sweepEvery = time.Minute
	sweepMost  = 50
)

// bury notes an ended swap. The lock is held.
func (e *Engine) bury(r *Record) {
	e.ended = append(e.ended, tomb{r.ID, r.RequestID, r.Tenant, r.Ended})
}

// keepHouse removes records that have been kept long enough, and takes over swaps
// that nobody drives, until ctx ends.
func (e *Engine) keepHouse(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for e.sweep(ctx) {
		}
		e.findLost(ctx)
	}
}

// sweep removes some expired records, and reports whether there may be more.
func (e *Engine) sweep(ctx context.Context) bool {
	e.mu.Lock()
	old := e.expired()
	e.mu.Unlock()
	if len(old) == 0 {
		return false
	}
	var txn store.Txn
	for _, t := range old {
		txn.Delete(store.Swaps + t.id)
		if !e.aged(t) {
			continue // its request goes with its lease: it must not lead to another swap
		}
		if err := e.forgetRequest(ctx, t, &txn); err != nil {
			e.Log.Warn("expired swaps can't be removed, trying again later", "error", err)
			return false
		}
	}
	if _, err := e.Store.Commit(ctx, &txn); err != nil {
		e.Log.Warn("expired swaps can't be removed, trying again later", "error", err)
		if errors.Is(err, store.ErrFenced) {
			e.end(err)
		}
		return false
	}
	e.mu.Lock()
	e.ended = slices.DeleteFunc(e.ended, func(t tomb) bool { return slices.Contains(old, t) })
	e.mu.Unlock()
	return true
}

// forgetRequest adds that what led to an old swap is forgotten, unless the id has led
// to another one since.
func (e *Engine) forgetRequest(ctx context.Context, t tomb, txn *store.Txn) error {
	key := store.Requests + t.request
	row, err := store.Get[Operation](ctx, e.Store, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	case row.Value.ID == t.id:
		txn.Unchanged(key, row.Revision).Delete(key)
	}
	return nil
}

func (e *Engine) aged(t tomb) bool { return e.now().Sub(t.ended) > e.KeptFor }

// expired returns some of the records that are kept no longer, those of a day ago
// first. Where there are still too many, the tenant with most of them loses its
// oldest: it pushes out no other's. The lock is held.
func (e *Engine) expired() []tomb {
	var old []tomb
	of := map[string][]tomb{}
	for _, t := range e.ended {
		if e.aged(t) {
			old = append(old, t)
			continue
		}
		of[t.tenant] = append(of[t.tenant], t)
	}
	for over := len(e.ended) - len(old) - e.Kept; over > 0 && len(old) < sweepMost; over-- {
		most := ""
		for tenant, its := range of {
			if len(its) > len(of[most]) {
				most = tenant
			}
		}
		old, of[most] = append(old, of[most][0]), of[most][1:]
	}
	return old[:min(len(old), sweepMost)]
}

// findLost takes over live swaps without a driver: reservations that reached the
// store after their caller and their driver had given up on it.
func (e *Engine) findLost(ctx context.Context) {
	rows, _, err := store.List[string](ctx, e.Store, store.Live)
	if err != nil {
		return
	}
	for _, live := range rows {
		e.mu.Lock()
		known := e.byID[live.Value] != nil
		e.mu.Unlock()
		if known {
			continue
		}
		row, err := store.Get[Record](ctx, e.Store, store.Swaps+live.Value)
		if err != nil || row.Value.Phase.Ended() {
			continue
		}
		e.mu.Lock()
		if e.byPort[row.Value.Port] == nil {
			e.adopt(row)
		}
		e.mu.Unlock()
	}
}
