package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replug/directory/store"
)

// Invariant 5: a restored store is of another era, and its revision is ahead of
// any that a host has seen.
func TestRestore(t *testing.T) {
	e := open(t, t.TempDir())
	defer func() { _ = e.Close() }()
	s := store.New(e.Client())
	const rows = 1234 // more than two pages, no multiple of a batch
	for i := range rows {
		if _, err := s.Commit(t.Context(), new(store.Txn).Put(fmt.Sprintf("%sh7/p%d", store.Intents, i), map[string]int{"n": i})); err != nil {
			t.Fatal(err)
		}
	}
	lease, err := e.Client().Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), new(store.Txn).PutLeased(store.Leader+"s3", "s3", lease.ID)); err != nil {
		t.Fatal(err)
	}
	before, err := e.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var backup bytes.Buffer
	if err := e.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	// After the backup the lost store went on.
	last, err := s.Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/late", "late"))
	if err != nil {
		t.Fatal(err)
	}

	dir := filepath.Join(t.TempDir(), "new")
	id, err := Restore(t.Context(), bytes.NewReader(backup.Bytes()), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	got, err := r.Identity(t.Context())
	if err != nil || got != id || got.ID != before.ID || got.Era != before.Era+1 {
		t.Errorf("identity %+v, %v after %+v", got, err, before)
	}
	all, revision, err := store.List[map[string]int](t.Context(), store.New(r.Client()), store.Intents)
	if err != nil || len(all) != rows {
		t.Fatalf("%d rows, %v, want %d", len(all), err, rows)
	}
	if revision <= last {
		t.Errorf("revision %d, the lost store had %d", revision, last)
	}
	for _, row := range all {
		if row.Key != fmt.Sprintf("%sh7/p%d", store.Intents, row.Value["n"]) {
			t.Errorf("row %s holds %v", row.Key, row.Value)
		}
	}
	if n, _, _ := store.List[string](t.Context(), store.New(r.Client()), store.Leader); len(n) != 0 {
		t.Errorf("the leader's row came along: %v", n)
	}
	restartAndWrite(t, r, dir, revision)
}

// restartAndWrite proves that the file is a sound database, not only readable once.
func restartAndWrite(t *testing.T, e *Etcd, dir string, revision int64) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dir)
	defer func() { _ = e.Close() }()
	next, err := store.New(e.Client()).Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/p5", "changed"))
	if err != nil || next != revision+1 {
		t.Errorf("a write after the restart: revision %d, %v, want %d", next, err, revision+1)
	}
	if _, err := Restore(t.Context(), strings.NewReader(""), dir, nil); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("restore over a store: %v, want %v", err, ErrNotEmpty)
	}
}

func TestRestoreRefusesDamage(t *testing.T) {
	e := open(t, t.TempDir())
	defer func() { _ = e.Close() }()
	if _, err := store.New(e.Client()).Commit(t.Context(), new(store.Txn).
		Put(store.Intents+"h7/p23", "seven").Put(store.Intents+"h7/p45", "eleven")); err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if err := e.Backup(t.Context(), &whole); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(whole.String(), "\n")
	for name, damaged := range map[string]string{
		"empty":             "",
		"another file":      "# a shell script\n",
		"cut off":           strings.Join(lines[:2], ""),
		"cut in a row":      whole.String()[:len(lines[0])+9],
		"a changed value":   strings.Replace(whole.String(), "seven", "eight", 1),
		"a row left out":    lines[0] + lines[2] + lines[3],
		"something follows": whole.String() + "\n",
	} {
		dir := filepath.Join(t.TempDir(), "new")
		if _, err := Restore(t.Context(), strings.NewReader(damaged), dir, nil); !errors.Is(err, ErrBackup) {
			t.Errorf("%s: got %v, want %v", name, err, ErrBackup)
		}
		if found, _ := filepath.Glob(dir + "*"); len(found) != 0 {
			t.Errorf("%s: left %v behind", name, found)
		}
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "x"), whole.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
