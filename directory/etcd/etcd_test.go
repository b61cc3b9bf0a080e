package etcd

import (
	"context"
	"testing"
	"time"

	"replug/directory/store"
)

func open(t testing.TB, dir string) *Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := Open(ctx, Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// BenchmarkCommit is one durable transaction.
func BenchmarkCommit(b *testing.B) {
	e := open(b, b.TempDir())
	defer func() { _ = e.Close() }()
	s := store.New(e.Client())
	for b.Loop() {
		if _, err := s.Commit(b.Context(), new(store.Txn).Put(store.Intents+"h7/p23", "row")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is a restart on an existing data directory.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		e := open(b, dir)
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
