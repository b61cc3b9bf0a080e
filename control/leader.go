package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"replug/directory/store"
)

// election is the prefix that etcd's election makes its keys under.
var election = strings.TrimSuffix(store.Leader, "/")

// stand stands for election, leads, and stands again, until ctx ends.
func (s *Server) stand(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := s.term(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("not leading", "error", err)
			pause(ctx, retryPause)
		}
	}
	return ctx.Err()
}

// term is one candidacy and, when it is won, the time of leading.
func (s *Server) term(ctx context.Context) error {
	if s.cfg.Alone {
		s.bury(ctx)
	}
	lease, err := s.cfg.Store.Grant(ctx, int64(s.cfg.Session.Seconds()))
	if errors.Is(err, store.ErrNoSpace) { // nobody can be elected, so nobody else makes room
		err = errors.Join(err, s.cfg.Tidy(ctx))
	}
	if err != nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	// The session outlives ctx: closing it revokes the lease, so that the others
	// need not wait for its end when this server is told to stop.
	session, err := concurrency.NewSession(s.cfg.Store.Client(), concurrency.WithLease(lease),
		concurrency.WithTTL(int(s.cfg.Session.Seconds())), concurrency.WithContext(context.WithoutCancel(ctx)))
	if err != nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	defer session.Close()
	e := concurrency.NewElection(session, election)
	standing, stop := context.WithCancel(ctx)
	defer stop()
	go s.watchLeader(standing)
	if err := e.Campaign(standing, s.self()); err != nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	stop()
	return s.lead(ctx, session, e.Key())
}

func (s *Server) self() string { return s.cfg.Name + " at " + s.cfg.Address }

// bury ends the lease of a former life of this server, which can't come back: the
// store is its own, and it was killed before it could do so itself.
func (s *Server) bury(ctx context.Context) {
	r, err := s.cfg.Store.Client().Get(ctx, store.Leader, clientv3.WithPrefix())
	if err != nil {
		return // the campaign meets the same error, or waits for the lease's end
	}
	for _, kv := range r.Kvs {
		if _, err := s.cfg.Store.Client().Revoke(ctx, clientv3.LeaseID(kv.Lease)); err != nil {
			s.cfg.Log.Warn("a former life's election key stays until its time is up", "error", err)
		}
	}
}

// watchLeader keeps who leads in memory, for the errors of a standby.
func (s *Server) watchLeader(ctx context.Context) {
	l := s.feed.listen(store.Leader)
	defer l.close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.ready:
		}
		l.take()
		r, err := s.cfg.Store.Client().Get(ctx, store.Leader, clientv3.WithFirstCreate()...)
		if err != nil || len(r.Kvs) == 0 {
			continue
		}
		name := string(r.Kvs[0].Value)
		s.leader.Store(&name)
		if name != s.self() {
			s.dir.SetLeader(false, name)
		}
	}
}

// standby is the error of a call that only the leader answers.
func (s *Server) standby() error {
	if name := s.leader.Load(); name != nil && *name != s.self() {
		return fmt.Errorf("%w: the leader is %s; call it", ErrStandby, *name)
	}
	return fmt.Errorf("%w: no leader is elected yet; try again in a moment", ErrStandby)
}

// lead drives everything until ctx ends or the leadership is lost.
func (s *Server) lead(ctx context.Context, session *concurrency.Session, key string) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r := newReign(s, s.cfg.Store.Fenced(key))
	if err := r.prepare(ctx); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	// No call and no status may come before the swap that it is about is known.
	select {
	case <-r.swaps.Ready():
	case err := <-done:
		return err
	}
	self := s.self()
	s.leader.Store(&self)
	s.reign.Store(r)
	defer func() {
		s.reign.Store(nil)
		s.cfg.OnLead(false)
		s.dir.SetLeader(false, "")
	}()
	s.dir.SetLeader(true, self)
	s.cfg.OnLead(true)
	s.cfg.Log.Info("leading", "server", s.cfg.Name, "era", s.cfg.Era)
	var lost error
	select {
	case <-session.Done():
		lost = fmt.Errorf("the session with the store has ended: %w", store.ErrFenced)
		stop(lost)
		<-done
	case lost = <-done:
	}
	return lost
}
