package control

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/control/swap"
	"replug/directory/store"
)

// Request ids are remembered for at least requestKept. They hang on a lease that
// many share: a lease of its own would be another durable write for each call.
const (
	requestKept = 24 * time.Hour
	leaseShared = time.Hour
)

var requestForm = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// requests remembers what request ids have led to (invariant 4).
type requests struct {
	store *store.Store
	mu    sync.Mutex
	lease clientv3.LeaseID
	until time.Time // new ones may hang on the lease
}

// requestKey is where a caller's request id is remembered: two callers may choose
// the same id, and none learns what another one asked for.
func requestKey(caller, id string) string { return store.Requests + caller + "/" + id }

func checkRequest(id string) error {
	if !requestForm.MatchString(id) {
		return fmt.Errorf("%w request id %q: give 1 to 128 letters, digits and ._:-, a new one for each change, "+
			"and the same one to repeat a call whose answer was lost", ErrInvalid, id)
	}
	return nil
}

// shared returns the lease for rows that go after [requestKept].
func (q *requests) shared(ctx context.Context) (clientv3.LeaseID, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Now().Before(q.until) {
		return q.lease, nil
	}
	l, err := q.store.Grant(ctx, int64((requestKept + leaseShared).Seconds()))
	if err != nil {
		return 0, fmt.Errorf("remember the request: %w", err)
	}
	q.lease, q.until = l, time.Now().Add(leaseShared)
	return q.lease, nil
}

// A call is a change that the API was asked for.
type call struct {
	caller string // who asks
	id     string // request id
	kind   string // of the operation
	digest string // of the request
}

// do makes the change of a call once, whoever repeats it and however often, at the
// same time too: compose says what it is and what it leads to. It returns that, or
// what the first call with this id has led to.
func (r *reign) do(ctx context.Context, c call, compose func(*store.Txn) (string, error)) (string, error) {
	if err := checkRequest(c.id); err != nil {
		return "", err
	}
	lease, err := r.requests.shared(ctx)
	if err != nil {
		return "", err
	}
	key, result := requestKey(c.caller, c.id), ""
	once := func() (*store.Txn, error) {
		former, err := store.Get[swap.Operation](ctx, r.store, key)
		if err == nil {
			result = former.Value.ID
			return nil, c.repeats(former.Value)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		txn := &store.Txn{}
		if result, err = compose(txn); err != nil {
			return nil, err
		}
		return txn.Absent(key).PutLeased(key, swap.Operation{Kind: c.kind, ID: result, Digest: c.digest}, lease), nil
	}
	err = r.alone(ctx, func() error { return r.retried(ctx, once) })
	return result, err
}

// repeats returns [ErrRequest] unless c is the call that led to o.
func (c call) repeats(o swap.Operation) error {
	if o.Kind != c.kind || o.Digest != c.digest {
		return fmt.Errorf("%w: %s was a %s with other content: give a new id to a new request", ErrRequest, c.id, o.Kind)
	}
	return nil
}
