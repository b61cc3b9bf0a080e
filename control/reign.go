package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"replug/control/compute"
	"replug/control/group"
	"replug/control/network"
	"replug/control/pool"
	"replug/control/resource"
	"replug/control/service"
	"replug/control/storage"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A reign is the time that one server leads: the managers over the fenced store,
// the swaps, and the loops that make the world what the rows say. Nothing of it
// outlives the leadership; a new leader reads all it needs from the store.
type reign struct {
	s        *Server
	cfg      *Config
	log      *slog.Logger
	store    *store.Store
	networks *network.Manager
	groups   *group.Manager
	services *service.Manager
	vms      *compute.Manager
	disks    *storage.Manager
	pools    *pool.Manager
	tenants  *resource.Manager
	swaps    *swap.Engine
	board    *board
	healths  healths
	began    time.Time
	requests requests
	gate     gate

	// alloc lets those who choose something free (a name, a number, an address)
	// compose and commit one after another, so that they don't lose races against
	// each other. Correctness does not rest on it, the transactions' conditions do.
	alloc chan struct{} // has a token when nobody does

	takingMu sync.Mutex
	taking   map[string]bool // pooled VMs that a claim is about to reserve
}

func newReign(s *Server, fenced *store.Store) *reign {
	c := &s.cfg
	r := &reign{
		s: s, cfg: c, log: c.Log, store: fenced,
		networks: network.New(fenced, c.Era, c.VNIs),
		groups:   &group.Manager{Store: fenced},
		services: &service.Manager{Store: fenced},
		vms:      compute.New(fenced, c.Era),
		disks:    &storage.Manager{Store: fenced},
		tenants:  resource.New(fenced, c.Era),
		board:    newBoard(),
		began:    time.Now(),
		requests: requests{store: fenced},
		taking:   make(map[string]bool),
		alloc:    make(chan struct{}, 1),
	}
	r.alloc <- struct{}{}
	r.networks.Rest = c.Rest
	r.pools = pool.New(fenced, fleet{r})
	r.swaps = swap.New(swap.Options{
		Lease: r.requests.shared, Store: fenced, Objects: objects{r}, Connected: r.connected, Era: c.Era,
		OnEnd: r.swapEnded, Boot: c.BootBudget, Log: c.Log, Metrics: s.swaps,
	})
	return r
}

func (r *reign) connected(host string) bool {
	here, _ := r.s.up.get(host)
	return here
}

// settling is how long hosts have to come to a new leader before it counts on
// those that have.
const settling = 5 * time.Second

// settled reports whether the hosts that were there under the former leader may be
// expected to be here again.
func (r *reign) settled(ctx context.Context) (bool, error) {
	if time.Since(r.began) > r.cfg.Settle {
		return true, nil
	}
	hosts, _, err := store.List[vnet.HostInfo](ctx, r.store, store.Hosts)
	for _, h := range hosts {
		if !r.connected(h.Value.Name) {
			return false, err
		}
	}
	return true, err
}

// settle waits until it is settled which hosts are there.
func (r *reign) settle(ctx context.Context) error {
	l := r.s.feed.listen(store.Hosts)
	defer l.close()
	rest := time.NewTimer(time.Until(r.began.Add(r.cfg.Settle)))
	defer rest.Stop()
	for {
		if ok, err := r.settled(ctx); ok || err != nil {
			return err
		}
		select {
		case <-l.ready:
			l.take()
		case <-rest.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// prepare reads what must be known before the first call is answered.
func (r *reign) prepare(ctx context.Context) error {
	if err := r.complete(ctx); err != nil {
		return err
	}
	return r.openGate(ctx)
}

// run drives the loops until ctx ends or one of them finds that another server
// leads.
func (r *reign) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.swaps.Run(ctx) })
	g.Go(func() error { return r.follow(ctx, "statuses", r.observe, statusPrefix) })
	g.Go(func() error { return r.follow(ctx, "health", r.observeHealth, healthPrefix) })
	g.Go(func() error { return r.follow(ctx, "away", r.awayStep(), store.Hosts, store.Services) })
	g.Go(func() error { return r.follow(ctx, "vms", r.tidyVMs, store.VMs) })
	g.Go(func() error { return r.follow(ctx, "claims", r.serveClaims, store.Claims) })
	g.Go(func() error {
		return r.follow(ctx, "pools", r.fillPools, store.Pools, store.VMs, store.Hosts, store.Types)
	})
	g.Go(func() error { return r.follow(ctx, "addresses", r.sweeper(), store.CAs) })
	g.Go(func() error { return r.follow(ctx, "places", r.renewPlaces, store.Networks, store.Intents) })
	g.Go(func() error { return r.tidyStore(ctx) })
	g.Go(func() error { return r.follow(ctx, "era", r.watchGate, store.Hosts) })
	return g.Wait()
}

// tidyEvery is how often the store's size is looked at: in less time no cluster
// writes a part of the quota that matters.
const tidyEvery = time.Second

// tidyStore keeps the store small until ctx ends.
func (r *reign) tidyStore(ctx context.Context) error {
	said := ""
	for pause(ctx, tidyEvery) {
		err := r.cfg.Tidy(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			said = ""
		case err.Error() != said: // and not each second again
			said = err.Error()
			r.log.Error("the store can't be kept small; trying on", "error", err)
		}
	}
	return ctx.Err()
}

// A step does what the rows that changed ask for: keys, or all. It says when it
// wants to be called again if nothing changes before; zero: never.
type step func(ctx context.Context, keys []string, all bool) (time.Time, error)

// follow calls f at the start and after each change under prefixes. What fails is
// tried again for all rows after a moment, but that another server leads is final.
func (r *reign) follow(ctx context.Context, name string, f step, prefixes ...string) error {
	l := r.s.feed.listen(prefixes...)
	defer l.close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ready:
		case <-timer.C:
			l.everything()
			continue
		}
		keys, all := l.take()
		next, err := f(ctx, keys, all)
		switch {
		case errors.Is(err, store.ErrFenced):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			r.log.Warn("a step failed; trying again", "loop", name, "error", err)
			l.mark()
			next = time.Now().Add(retryPause)
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
	}
}

// commit applies txn and returns once it is durable.
func (r *reign) commit(ctx context.Context, txn *store.Txn) error {
	_, err := r.store.Commit(ctx, txn)
	return err
}

// alone runs f while nobody else runs through here, or fails when ctx ends before.
func (r *reign) alone(ctx context.Context, f func() error) error {
	select {
	case <-r.alloc:
	case <-ctx.Done():
		return fmt.Errorf("wait for other changes: %w: %w", store.ErrUnavailable, ctx.Err())
	}
	defer func() { r.alloc <- struct{}{} }()
	return f()
}

// retried composes and commits until no condition is hurt, at most a few times:
// who has lost a race reads anew.
func (r *reign) retried(ctx context.Context, compose func() (*store.Txn, error)) error {
	var err error
	for range maxAttempts {
		var txn *store.Txn
		if txn, err = compose(); err != nil || txn == nil || txn.Empty() {
			return err
		}
		if err = r.commit(ctx, txn); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return err
}

const maxAttempts = 10

// sweepPause lets several addresses that have rested go with one write.
const sweepPause = 10 * time.Second

// sweeper returns the step that lets addresses go that have rested. Of those that
// change it looks at no others: there may be very many.
func (r *reign) sweeper() step {
	var due time.Time // zero: none rests
	return func(ctx context.Context, keys []string, all bool) (time.Time, error) {
		next, err := r.nextRested(ctx, keys, all)
		switch {
		case err != nil:
			return due, err
		case all || due.IsZero() || !next.IsZero() && next.Before(due):
			due = next
		}
		if soonest := time.Now().Add(min(sweepPause, r.cfg.Rest)); !due.IsZero() && due.Before(soonest) {
			return soonest, nil
		}
		return due, nil
	}
}

// nextRested returns when the first of some addresses will have rested, zero if
// none rests; of all of them it lets those go that have.
func (r *reign) nextRested(ctx context.Context, keys []string, all bool) (next time.Time, err error) {
	if all {
		return r.networks.Sweep(ctx)
	}
	for _, k := range keys {
		until, err := r.networks.RestsUntil(ctx, k)
		if err != nil {
			return next, err
		}
		if !until.IsZero() && (next.IsZero() || until.Before(next)) {
			next = until
		}
	}
	return next, nil
}

func (r *reign) fillPools(ctx context.Context, _ []string, _ bool) (time.Time, error) {
	return r.pools.Fill(ctx)
}

// swapEnded looks again at what the swap has kept for itself: a guest that is back
// in its old place has reported there.
func (r *reign) swapEnded(rec swap.Record) {
	r.board.again(rec.Port)
	r.s.feed.touch(statusPrefix + rec.Port)
	r.s.feed.touch(compute.Key(rec.VM), network.PortKey(rec.Port))
}
