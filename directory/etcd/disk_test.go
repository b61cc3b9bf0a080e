package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replug/directory/store"
)

// smallDisk is a directory on a disk of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("replug-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small disk (needs root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// Invariant 6: a full disk refuses changes at once, and reading goes on.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, "300m")
	e := open(t, filepath.Join(dir, "data"))
	defer func() { _ = e.Close() }()
	s := store.New(e.Client())
	put := func() error {
		_, err := s.Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/p23", "row"))
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 120<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := put(); !errors.Is(err, ErrDiskFull) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("on a full disk: %v, want %v", err, ErrDiskFull)
	}
	if row, err := store.Get[string](t.Context(), s, store.Intents+"h7/p23"); err != nil || row.Value != "row" {
		t.Errorf("reading on a full disk: %+v, %v", row, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := put(); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// When the disk fills up behind the guard's back, the member gives up: that is an
// error, not the end of the process.
func TestDiskFullBehindTheGuard(t *testing.T) {
	dir := smallDisk(t, "150m")
	e, err := Open(t.Context(), Config{DataDir: filepath.Join(dir, "data"), MinFree: -1, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	_ = os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 150<<20), 0o600)
	s := store.New(e.Client())
	big := strings.Repeat("row ", 250_000)
	for n := range 200 {
		_, err := s.Commit(t.Context(), new(store.Txn).Put(fmt.Sprintf("%sh7/p%d", store.Intents, n), big))
		if err == nil {
			continue
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("got %v, want %v", err, store.ErrUnavailable)
		}
		select {
		case <-e.Failed():
		case <-time.After(10 * time.Second):
			t.Fatalf("the member goes on after %v", err)
		}
		if _, err = s.Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/p23", "row")); !errors.Is(err, ErrFailed) {
			t.Errorf("after that: %v, want %v", err, ErrFailed)
		}
		return
	}
	t.Error("200 MB fit a disk of 150")
}

// What etcd would end the process for becomes an error, and calls fail at once.
func TestMemberThatGivesUp(t *testing.T) {
	e := open(t, t.TempDir())
	e.fail(errors.New("failed to save entries"))
	<-e.Failed()
	_, err := store.New(e.Client()).Commit(context.Background(), new(store.Txn).Put(store.Intents+"h7/p23", "row"))
	if !errors.Is(err, ErrFailed) { // and not that time was up
		t.Errorf("got %v, want %v", err, ErrFailed)
	}
	if !strings.Contains(e.Err().Error(), "failed to save entries") {
		t.Errorf("Err() = %v", e.Err())
	}
}
