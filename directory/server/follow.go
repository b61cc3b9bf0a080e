package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Run keeps the view of the store until ctx ends, then closes all streams. A
// server that does not lead runs too, so that it knows everything when it does.
func (s *Server) Run(ctx context.Context) error {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leading, s.leader = false, "going down; another server"
		s.closeAll(s.notLeader())
	}()
	wait := backoff{}
	for ctx.Err() == nil {
		err := s.load(ctx)
		for err == nil {
			err = s.follow(ctx, &wait)
		}
		if ctx.Err() != nil {
			break
		}
		if !errors.Is(err, store.ErrCompacted) {
			s.log.Warn("the store can't be read: trying again", "error", err)
			wait.sleep(ctx)
		}
	}
	return nil
}

// load reads the view anew. It begins a little before the newest revision when
// the store's history allows it, and follows from there: so the ring is filled,
// and hosts of the server before this one can go on where they were.
func (s *Server) load(ctx context.Context) error {
	revision, err := s.store.Revision(ctx)
	if err != nil {
		return err
	}
	back := max(revision-int64(s.view.keep)/2, 1)
	rows, at, err := s.store.Snapshot(ctx, back, prefixes()...)
	if errors.Is(err, store.ErrCompacted) {
		rows, at, err = s.store.Snapshot(ctx, 0, prefixes()...)
	}
	if err != nil {
		return err
	}
	v := newView(s.view.keep)
	for _, c := range s.changes(rows) {
		v.set(&c)
	}
	v.revision, v.floor = at, at
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = v
	s.closeAll(status.Error(codes.Aborted, "the store's history has a gap: come again for everything"))
	return nil
}

// follow applies changes until the watch breaks. It returns nil when the same
// view can be followed on.
func (s *Server) follow(ctx context.Context, wait *backoff) error {
	newest, err := s.store.Revision(ctx)
	if err == nil {
		s.reached(newest)
		err = s.store.Watch(ctx, store.Root, s.view.revision+1, func(b store.Batch) error {
			wait.reset()
			s.take(b)
			s.reached(newest)
			return nil
		})
	}
	if errors.Is(err, store.ErrCompacted) || ctx.Err() != nil {
		return fmt.Errorf("follow the store: %w", err)
	}
	s.log.Warn("the watch broke: following on", "revision", s.view.revision, "error", err)
	wait.sleep(ctx)
	return nil
}

// reached opens the door once the view is as new as the store was when the watch began.
func (s *Server) reached(newest int64) {
	select {
	case <-s.ready:
	default:
		if s.view.revision >= newest {
			close(s.ready)
		}
	}
}

// take applies a batch, revision by revision, and tells the hosts.
func (s *Server) take(b store.Batch) {
	cs := s.changes(b.Events)
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(cs) > 0 {
		n := slices.IndexFunc(cs, func(c change) bool { return c.revision != cs[0].revision })
		if n < 0 {
			n = len(cs)
		}
		s.view.apply(cs[0].revision, cs[:n])
		s.fanOut(cs[:n])
		cs = cs[n:]
	}
	s.view.revision = max(s.view.revision, b.Revision)
	close(s.moved)
	s.moved = make(chan struct{})
}

// changes reads rows. One that can't be read is left as it was, and said.
func (s *Server) changes(rows []store.Event) []change {
	var cs []change
	for _, e := range rows {
		c, ok, err := parse(e)
		if err != nil {
			s.metrics.unreadable.Inc()
			s.log.Error("hosts don't get a row of the store", "error", err)
		}
		if ok {
			cs = append(cs, c)
		}
	}
	return cs
}

// fanOut tells each host that a revision concerns.
func (s *Server) fanOut(cs []change) {
	concerned := map[*stream]bool{}
	for i := range cs {
		switch c := &cs[i]; {
		case c.ofNetwork():
			for st := range s.subs[c.vni] {
				concerned[st] = true
			}
		case c.isIntent():
			if st := s.streams[c.key.host]; st != nil && st.networks != nil {
				concerned[st] = true
			}
			if c.gone() {
				s.forget(c.port)
			}
		default:
			for _, st := range s.streams {
				if st.networks != nil {
					concerned[st] = true
				}
			}
		}
	}
	for st := range concerned {
		items, after := s.view.batch(st.host.Name, st.networks, cs)
		st.push(append(items, synced(s.view.revision)), true)
		st.told = s.view.revision
		s.subscribe(st, after)
	}
	if s.view.fresh > s.view.keep/8 {
		s.view.fresh = 0
		s.keepAbreast()
	}
}

// keepAbreast moves quiet hosts' revision on before the ring forgets it.
func (s *Server) keepAbreast() {
	middle := s.view.ring[len(s.view.ring)/2].revision
	for _, st := range s.streams {
		if st.networks != nil && st.told < middle {
			st.push([]item{synced(s.view.revision)}, true)
			st.told = s.view.revision
		}
	}
}

// subscribe makes networks the ones whose changes the stream gets.
func (s *Server) subscribe(st *stream, networks map[vnet.VNI]bool) {
	for v := range st.networks {
		if !networks[v] {
			delete(s.subs[v], st)
			if len(s.subs[v]) == 0 {
				delete(s.subs, v)
			}
		}
	}
	for v := range networks {
		if s.subs[v] == nil {
			s.subs[v] = map[*stream]bool{}
		}
		s.subs[v][st] = true
	}
	st.networks = networks
}

// current waits until the view is as new as the store is now, so that a new
// leader does not take a host's newer knowledge for an error. It does not wait
// long: other writers of an external etcd may be ahead for ever.
func (s *Server) current(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	newest, err := s.store.Revision(ctx)
	for err == nil {
		s.mu.RLock()
		revision, moved := s.view.revision, s.moved
		s.mu.RUnlock()
		if revision >= newest {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
}

// A backoff waits longer each time.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

func (b *backoff) sleep(ctx context.Context) {
	b.next = min(max(2*b.next, 20*time.Millisecond), 2*time.Second)
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
