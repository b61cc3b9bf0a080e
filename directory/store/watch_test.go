package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"replug/directory/etcd"
	"replug/directory/store"
)

func openStore(t *testing.T) (*etcd.Etcd, *store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	e, err := etcd.Open(ctx, etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e, store.New(e.Client())
}

// Invariant 5: a watch that catches up can be broken after any batch and resumed
// at the batch's revision plus one without missing a change.
func TestWatchResumed(t *testing.T) {
	_, s := openStore(t)
	const n = 2300 // etcd sends history in pieces of 1,000 revisions
	var last int64
	for i := range n {
		var err error
		if last, err = s.Commit(t.Context(), new(store.Txn).Put(fmt.Sprintf("%sh7/p%d", store.Intents, i), i)); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	seen, from, batches := 0, int64(1), 0
	for from <= last {
		err := s.Watch(t.Context(), store.Root, from, func(b store.Batch) error {
			seen += len(b.Events)
			from = b.Revision + 1
			return enough
		})
		if !errors.Is(err, enough) {
			t.Fatal(err)
		}
		batches++
	}
	if seen != n || batches < 2 {
		t.Errorf("saw %d changes of %d in %d batches", seen, n, batches)
	}
}

func TestWatchCompacted(t *testing.T) {
	e, s := openStore(t)
	var last int64
	for i := range 3 {
		last, _ = s.Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/p23", i))
	}
	if _, err := e.Client().Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	err := s.Watch(t.Context(), store.Root, last-1, func(store.Batch) error { return nil })
	if !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch: %v, want %v", err, store.ErrCompacted)
	}
	if _, _, err := s.Snapshot(t.Context(), last-1, store.Intents); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("snapshot: %v, want %v", err, store.ErrCompacted)
	}
}

func TestSnapshot(t *testing.T) {
	_, s := openStore(t)
	if _, err := s.Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/p23", 5).Put(store.Hosts+"h7", 6)); err != nil {
		t.Fatal(err)
	}
	was, err := s.Commit(t.Context(), new(store.Txn).Put(store.Tenants+"acme", 7).Put(store.Intents+"h7/p45", 8))
	if err != nil {
		t.Fatal(err)
	}
	now, err := s.Commit(t.Context(), new(store.Txn).Delete(store.Intents+"h7/p23"))
	if err != nil {
		t.Fatal(err)
	}
	for rev, want := range map[int64]int{was: 3, 0: 2} {
		rows, at, err := s.Snapshot(t.Context(), rev, store.Hosts, store.Intents)
		if err != nil || len(rows) != want || (rev == 0 && at != now) || (rev != 0 && at != rev) {
			t.Errorf("at %d: %d rows of revision %d, %v; want %d", rev, len(rows), at, err, want)
		}
	}
}
