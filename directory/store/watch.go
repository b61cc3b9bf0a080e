package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// An Event is one row's change. Value is nil when the row was deleted.
type Event struct {
	Key      string
	Value    json.RawMessage
	Revision int64
}

// A Batch is every change of one or more whole revisions, in order. Revision is
// the last of them: a watch resumed at Revision+1 misses nothing. A batch without
// events says that nothing else has happened up to Revision.
type Batch struct {
	Revision int64
	Events   []Event
}

// Watch calls f with each batch of changes under prefix, beginning at revision
// from, until ctx ends or f fails. It returns [ErrCompacted] when the history no
// longer reaches back to from: the caller must list again. There is no gap and no
// reorder per key (invariant 5).
func (s *Store) Watch(ctx context.Context, prefix string, from int64, f func(Batch) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watch := s.client.Watch(clientv3.WithRequireLeader(ctx), prefix,
		clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithProgressNotify())
	for r := range watch {
		if errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision > 0 {
			return ErrCompacted
		}
		if err := r.Err(); err != nil {
			return fmt.Errorf("watch %s: %w", prefix, unavailable(err))
		}
		if err := f(batchOf(&r)); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("watch %s ended: %w", prefix, ErrUnavailable)
}

func batchOf(r *clientv3.WatchResponse) Batch {
	b := Batch{Revision: r.Header.Revision, Events: make([]Event, 0, len(r.Events))}
	for _, e := range r.Events {
		ev := Event{Key: string(e.Kv.Key), Revision: e.Kv.ModRevision}
		if e.Type == clientv3.EventTypePut {
			ev.Value = e.Kv.Value
		}
		b.Events = append(b.Events, ev)
	}
	if n := len(b.Events); n > 0 {
		// A watch that catches up gets its history in pieces, and the header of each
		// piece carries the newest revision of the store.
		b.Revision = b.Events[n-1].Revision
	}
	return b
}

// Snapshot reads all rows under some prefixes as they were at one revision; 0
// means now, and it returns which one that is. [ErrCompacted] when the history no
// longer reaches back to rev.
func (s *Store) Snapshot(ctx context.Context, rev int64, prefixes ...string) ([]Event, int64, error) {
	gets := make([]clientv3.Op, len(prefixes))
	for i, p := range prefixes {
		gets[i] = clientv3.OpGet(p, clientv3.WithPrefix(), clientv3.WithRev(rev))
	}
	r, err := s.client.Txn(ctx).Then(gets...).Commit()
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil, 0, ErrCompacted
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read %v: %w", prefixes, unavailable(err))
	}
	if rev == 0 {
		rev = r.Header.Revision
	}
	var rows []Event
	for _, one := range r.Responses {
		for _, kv := range one.GetResponseRange().Kvs {
			rows = append(rows, Event{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
		}
	}
	return rows, rev, nil
}

// Revision returns the newest revision of the store, as a majority knows it.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	r, err := s.client.Get(ctx, Cluster, clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("ask for the revision: %w", unavailable(err))
	}
	return r.Header.Revision, nil
}
