// Package store keeps the cluster's objects: rows of JSON under keys, changed in
// transactions that compare revisions. It knows etcd's client and nothing of the
// objects. Whoever writes composes one [Txn] for one change of the world, so
// that a crash leaves all of it or none.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors of this package.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("changed by somebody else in the meantime")
	ErrFenced      = errors.New("not the leader any more")
	ErrUnavailable = errors.New("the store does not answer")
	ErrTooLarge    = errors.New("more than the store takes in one transaction: change less at once, or, if it is an etcd of your own, start that with --max-txn-ops 1024")
	ErrNoSpace     = error(noSpace{})
	ErrCompacted   = errors.New("the store's history begins after the revision asked for")
)

// noSpace is a kind of [ErrUnavailable]: whoever tries that again tries this again.
type noSpace struct{}

// Error says what to do.
func (noSpace) Error() string {
	return "the store is full: nothing is written until there is room; the leader makes some within seconds if that is possible, " +
		"else raise the quota (replug-server --store-quota, or --quota-backend-bytes of an etcd of your own) and restart"
}

// Is makes it what it is a kind of.
func (noSpace) Is(target error) bool { return target == ErrUnavailable }

// A Store reads and writes rows. It is safe for concurrent use.
type Store struct {
	client *clientv3.Client
	fence  string        // key that must exist for a commit, "" for none
	txns   *atomic.Int64 // durable transactions committed, shared by all copies
}

// New makes a store of a client of either kind of etcd, embedded or external.
func New(c *clientv3.Client) *Store { return &Store{client: c, txns: new(atomic.Int64)} }

// Client returns the etcd client, for elections and maintenance.
func (s *Store) Client() *clientv3.Client { return s.client }

// Fenced returns a store whose commits fail with [ErrFenced] once key is gone:
// the leader's election key makes it the one writer.
func (s *Store) Fenced(key string) *Store {
	f := *s
	f.fence = key
	return &f
}

// Txns returns how many durable transactions were committed through s and its
// copies since New.
func (s *Store) Txns() int64 { return s.txns.Load() }

// A Row is a value with its key and the revision that last changed it.
type Row[T any] struct {
	Key      string
	Value    T
	Revision int64
}

// Get reads one row; it returns [ErrNotFound] when there is none.
func Get[T any](ctx context.Context, s *Store, key string) (Row[T], error) {
	r, err := s.client.Get(ctx, key)
	if err != nil {
		return Row[T]{}, fmt.Errorf("read %s: %w", key, unavailable(err))
	}
	if len(r.Kvs) == 0 {
		return Row[T]{}, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return decode[T](string(r.Kvs[0].Key), r.Kvs[0].Value, r.Kvs[0].ModRevision)
}

// List reads all rows under a prefix, in key order, and the revision at which
// all of them were read.
func List[T any](ctx context.Context, s *Store, prefix string) ([]Row[T], int64, error) {
	r, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, unavailable(err))
	}
	rows := make([]Row[T], 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		row, err := decode[T](string(kv.Key), kv.Value, kv.ModRevision)
		if err != nil {
			return nil, 0, err
		}
		rows = append(rows, row)
	}
	return rows, r.Header.Revision, nil
}

// Keys reads the keys of all rows under a prefix, without the prefix.
func Keys(ctx context.Context, s *Store, prefix string) (map[string]bool, error) {
	r, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, unavailable(err))
	}
	keys := make(map[string]bool, len(r.Kvs))
	for _, kv := range r.Kvs {
		keys[string(kv.Key[len(prefix):])] = true
	}
	return keys, nil
}

func decode[T any](key string, value []byte, rev int64) (Row[T], error) {
	row := Row[T]{Key: key, Revision: rev}
	if err := json.Unmarshal(value, &row.Value); err != nil {
		return row, fmt.Errorf("row %s is not readable: %w", key, err)
	}
	return row, nil
}

// Commit applies t: all of it, or none. It returns the revision at which the
// change was made; [ErrConflict] when a condition does not hold, [ErrFenced] when
// the fence is gone, [ErrTooLarge] when it never could be, [ErrUnavailable] when it
// can't be known.
func (s *Store) Commit(ctx context.Context, t *Txn) (int64, error) {
	if t.err != nil {
		return 0, t.err
	}
	conds := t.conds
	if s.fence != "" {
		conds = append(conds[:len(conds):len(conds)], clientv3.Compare(clientv3.CreateRevision(s.fence), ">", 0))
	}
	r, err := s.client.Txn(ctx).If(conds...).Then(t.ops...).Else(t.fenceCheck(s.fence)...).Commit()
	if errors.Is(err, rpctypes.ErrTooManyOps) || errors.Is(err, rpctypes.ErrRequestTooLarge) {
		return 0, fmt.Errorf("commit %d rows: %w (%w)", len(t.keys), ErrTooLarge, err)
	}
	if err != nil {
		return 0, fmt.Errorf("commit %s: %w", t.what(), unavailable(err))
	}
	if !r.Succeeded {
		if s.fence != "" && r.Responses[0].GetResponseRange().Count == 0 {
			return 0, ErrFenced
		}
		return 0, fmt.Errorf("commit %s: %w", t.what(), ErrConflict)
	}
	s.txns.Add(1)
	return r.Header.Revision, nil
}

// Grant makes a lease of some seconds, for rows that go with it.
func (s *Store) Grant(ctx context.Context, seconds int64) (clientv3.LeaseID, error) {
	l, err := s.client.Grant(ctx, seconds)
	if err != nil {
		return clientv3.NoLease, fmt.Errorf("make a lease: %w", unavailable(err))
	}
	return l.ID, nil
}

// A Txn is one change of the world: conditions and writes. The zero value is an
// empty one. Methods return t, for chains; an error waits for [Store.Commit].
type Txn struct {
	conds []clientv3.Cmp
	ops   []clientv3.Op
	keys  []string
	bytes int
	err   error
}

// Absent asks that there is no row at key.
func (t *Txn) Absent(key string) *Txn {
	t.conds = append(t.conds, clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
	return t
}

// Exists asks that there is a row at key.
func (t *Txn) Exists(key string) *Txn {
	t.conds = append(t.conds, clientv3.Compare(clientv3.CreateRevision(key), ">", 0))
	return t
}

// Unchanged asks that the row at key still is of revision rev; 0: absent.
func (t *Txn) Unchanged(key string, rev int64) *Txn {
	t.conds = append(t.conds, clientv3.Compare(clientv3.ModRevision(key), "=", rev))
	return t
}

// UnchangedUnder asks that no row under prefix was made or changed after revision
// rev: a decision that rests on a list of them still stands. Deleted rows don't
// count.
func (t *Txn) UnchangedUnder(prefix string, rev int64) *Txn {
	t.conds = append(t.conds, clientv3.Compare(clientv3.ModRevision(prefix), "<", rev+1).WithPrefix())
	return t
}

// Put writes v at key.
func (t *Txn) Put(key string, v any) *Txn { return t.put(key, v) }

// PutLeased writes v at key; the row goes when the lease ends.
func (t *Txn) PutLeased(key string, v any, lease clientv3.LeaseID) *Txn {
	return t.put(key, v, clientv3.WithLease(lease))
}

func (t *Txn) put(key string, v any, opts ...clientv3.OpOption) *Txn {
	b, err := json.Marshal(v)
	if err != nil && t.err == nil {
		t.err = fmt.Errorf("encode %s: %w", key, err)
	}
	t.ops = append(t.ops, clientv3.OpPut(key, string(b), opts...))
	t.keys = append(t.keys, key)
	t.bytes += len(key) + len(b)
	return t
}

// Delete removes the row at key, if any.
func (t *Txn) Delete(key string) *Txn {
	t.ops = append(t.ops, clientv3.OpDelete(key))
	t.keys = append(t.keys, key)
	return t
}

// DeleteUnder removes all rows under prefix.
func (t *Txn) DeleteUnder(prefix string) *Txn {
	t.ops = append(t.ops, clientv3.OpDelete(prefix, clientv3.WithPrefix()))
	t.keys = append(t.keys, prefix)
	return t
}

// Add takes over the conditions and writes of others into t.
func (t *Txn) Add(others ...*Txn) *Txn {
	for _, o := range others {
		t.conds = append(t.conds, o.conds...)
		t.ops = append(t.ops, o.ops...)
		t.keys = append(t.keys, o.keys...)
		t.bytes += o.bytes
		t.err = errors.Join(t.err, o.err)
	}
	return t
}

// Bytes returns about how much t would write; etcd takes 1.5 MiB.
func (t *Txn) Bytes() int { return t.bytes }

// Empty reports whether t would write nothing.
func (t *Txn) Empty() bool { return len(t.ops) == 0 }

func (t *Txn) fenceCheck(fence string) []clientv3.Op {
	if fence == "" {
		return nil
	}
	return []clientv3.Op{clientv3.OpGet(fence, clientv3.WithCountOnly())}
}

func (t *Txn) what() string { return strings.Join(t.keys, ", ") }

func unavailable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
