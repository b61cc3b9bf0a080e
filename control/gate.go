package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A gate is closed after a restore from a backup until every known host has been
// there: what was given out after the backup was made is known to the hosts only,
// and they take down what the restored store does not know when they come. Until
// then nothing new is given out.
type gate struct {
	mu      sync.Mutex
	missing map[string]bool // hosts; nil: open
}

// eraKey is where the last era stands in which all hosts have been there.
const eraKey = store.Counters + "era"

func (r *reign) openGate(ctx context.Context) error {
	row, err := store.Get[uint16](ctx, r.store, eraKey)
	if err == nil && row.Value == r.cfg.Era {
		return nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err == nil {
		r.gate.missing = make(map[string]bool)
		hosts, _, err := store.List[vnet.HostInfo](ctx, r.store, store.Hosts)
		if err != nil {
			return err
		}
		for _, h := range hosts {
			r.gate.missing[h.Value.Name] = true
		}
		r.log.Warn("restored from a backup: nothing new is given out until all hosts have been here", "hosts", len(hosts))
	}
	return r.openIfComplete(ctx)
}

// watchGate opens the gate when the last missing host has come, or was deleted by
// an operator who knows that it won't.
func (r *reign) watchGate(ctx context.Context, _ []string, _ bool) (time.Time, error) {
	r.gate.mu.Lock()
	closed := r.gate.missing != nil
	for h := range r.gate.missing {
		if _, err := store.Get[vnet.HostInfo](ctx, r.store, store.Hosts+h); errors.Is(err, store.ErrNotFound) || r.connected(h) {
			delete(r.gate.missing, h)
		}
	}
	r.gate.mu.Unlock()
	if !closed {
		return time.Time{}, nil
	}
	return time.Time{}, r.openIfComplete(ctx)
}

func (r *reign) openIfComplete(ctx context.Context) error {
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	if len(r.gate.missing) > 0 {
		return nil
	}
	if err := r.commit(ctx, (&store.Txn{}).Put(eraKey, r.cfg.Era)); err != nil {
		return err
	}
	r.gate.missing = nil
	return nil
}

// mayAllocate returns why nothing new can be given out now, or nil.
func (r *reign) mayAllocate() error {
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	for h := range r.gate.missing {
		return fmt.Errorf("%w: the store was restored from a backup and %d hosts have not been here since, among them %s: "+
			"start them, or delete those that won't come back", ErrNotSo, len(r.gate.missing), h)
	}
	return nil
}
