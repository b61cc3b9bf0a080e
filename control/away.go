package control

import (
	"context"
	"errors"
	"time"

	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// awayAfter is how long a host may be gone before it counts as away: an agent that
// is started again, or replaced, is back long before.
const awayAfter = 30 * time.Second

// awayStep returns the step that takes new flows away from backends that have a
// check and whose host nobody has heard of for a while: no host speaks for another
// one's, so its last word would stand for ever. They are drained and not dead, since
// their host may only have lost its way to this server. A service that would have
// no backend left keeps those it has.
func (r *reign) awayStep() step {
	some := true // of the former leader's words it is not known
	return func(ctx context.Context, _ []string, _ bool) (time.Time, error) {
		gone, next, err := r.gone(ctx)
		if err != nil || len(gone) == 0 && !some {
			return next, err
		}
		some, err = r.markAway(ctx, gone)
		return next, err
	}
}

// gone returns the hosts that are away, and when the next one will be if it stays so.
func (r *reign) gone(ctx context.Context) (map[string]bool, time.Time, error) {
	hosts, _, err := store.List[vnet.HostInfo](ctx, r.store, store.Hosts)
	all, next := make(map[string]bool), time.Time{}
	for _, h := range hosts {
		here, since := r.s.up.get(h.Value.Name)
		if here {
			continue
		}
		if since.Before(r.began) { // it could not have come to this leader before
			since = r.began
		}
		at := since.Add(r.cfg.Away)
		if all[h.Value.Name] = time.Now().After(at); !all[h.Value.Name] && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return all, next, err
}

// markAway writes which backends are away, and returns whether any is.
func (r *reign) markAway(ctx context.Context, gone map[string]bool) (some bool, err error) {
	rows, _, err := store.List[vnet.Service](ctx, r.store, store.Services)
	if err != nil {
		return true, err
	}
	var failed error
	for _, row := range rows {
		err := r.retried(ctx, func() (*store.Txn, error) {
			txn, any, err := r.composeAway(ctx, row.Key, gone)
			some = some || any
			return txn, err
		})
		failed = errors.Join(failed, err)
	}
	return some || failed != nil, failed
}

func (r *reign) composeAway(ctx context.Context, key string, gone map[string]bool) (txn *store.Txn, some bool, err error) {
	row, err := store.Get[vnet.Service](ctx, r.store, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	away := make([]bool, len(row.Value.Backends))
	left := false
	for i, b := range row.Value.Backends {
		port, err := r.networks.GetPort(ctx, b.Member)
		if err != nil && !errors.Is(err, network.ErrNotFound) {
			return nil, false, err
		}
		away[i] = row.Value.Check != nil && gone[port.Value.Host]
		left = left || !away[i] && !b.Dead && !b.Draining && b.Weight > 0
	}
	changed := false
	for i := range row.Value.Backends {
		b := &row.Value.Backends[i]
		if is := away[i] && left; b.Away != is {
			b.Away, changed = is, true
			r.log.Info("backend", "service", row.Value.Name, "vni", row.Value.VNI, "port", b.Member, "away", b.Away)
		}
		some = some || b.Away
	}
	if !changed {
		return nil, some, nil
	}
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).Put(row.Key, row.Value), some, nil
}
