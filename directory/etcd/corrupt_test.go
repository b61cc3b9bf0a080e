package etcd

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replug/directory/store"
)

// filled is a data directory with rows in it, closed.
func filled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	e := open(t, dir)
	s := store.New(e.Client())
	for range 50 {
		if _, err := s.Commit(t.Context(), new(store.Txn).Put(store.Intents+"h7/p23", strings.Repeat("row ", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func overwrite(t *testing.T, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	garbage := make([]byte, n)
	for i := range garbage {
		garbage[i] = byte(i*7 + 13)
	}
	if _, err := f.WriteAt(garbage, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// fingerprint is every file of a directory but the lock.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" {
			return err
		}
		b, err := os.ReadFile(path)
		h.Write([]byte(path))
		h.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

func TestCorruptedDirectoryIsRefusedAndKept(t *testing.T) {
	const db = "member/snap/db"
	wal := func(dir string) string {
		found, err := filepath.Glob(filepath.Join(dir, "member/wal/*.wal"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no write-ahead log: %v, %v", found, err)
		}
		return found[0]
	}
	for _, c := range []struct {
		name   string
		damage func(dir string)
		want   string
	}{
		{"database cut off", func(d string) { _ = os.Truncate(filepath.Join(d, db), 40960) }, "cut off"},
		{"database cut to nothing", func(d string) { _ = os.Truncate(filepath.Join(d, db), 0) }, "cut off"},
		{"database missing", func(d string) { _ = os.Remove(filepath.Join(d, db)) }, "missing"},
		{"both heads of the database", func(d string) { overwrite(t, filepath.Join(d, db), 0, 8192) }, "invalid database"},
		{"pages of the database", func(d string) { overwrite(t, filepath.Join(d, db), 8192, 40960) }, "not readable"},
		{"log overwritten", func(d string) { overwrite(t, wal(d), 0, 65536) }, "write-ahead log"},
		{"log overwritten in the middle", func(d string) { overwrite(t, wal(d), 30000, 9000) }, "write-ahead log"},
		{"log without its newer half", func(d string) { _ = os.Truncate(wal(d), 100_000/4096*4096) }, "the database has seen"},
		{"log emptied", func(d string) { _ = os.Truncate(wal(d), 0) }, "write-ahead log"},
		{"log missing", func(d string) { _ = os.RemoveAll(filepath.Join(d, "member/wal")) }, "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filled(t)
			c.damage(dir)
			was := fingerprint(t, dir)
			e, err := Open(t.Context(), Config{DataDir: dir})
			if err == nil {
				_ = e.Close()
				t.Fatal("opened")
			}
			var corrupted *CorruptedError
			if !errors.As(err, &corrupted) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "restore") {
				t.Errorf("got %v, want a CorruptedError that says %q", err, c.want)
			}
			if fingerprint(t, dir) != was {
				t.Error("the directory was changed")
			}
		})
	}
}

// A record that was being written when the machine stopped is cut off by etcd:
// what was committed before it is there.
func TestTornLogIsNoCorruption(t *testing.T) {
	dir := filled(t)
	found, _ := filepath.Glob(filepath.Join(dir, "member/wal/*.wal"))
	fi, err := os.Stat(found[0])
	if err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(found[0])
	end := len(strings.TrimRight(string(b), "\x00"))
	// The length of a record that was to follow, and nothing of it.
	f, _ := os.OpenFile(found[0], os.O_WRONLY, 0)
	if _, err := f.WriteAt([]byte{0x48, 1}, int64((end+15)/8*8)); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	e := open(t, dir)
	defer func() { _ = e.Close() }()
	row, err := store.Get[string](t.Context(), store.New(e.Client()), store.Intents+"h7/p23")
	if err != nil || len(row.Value) != 4000 {
		t.Errorf("%d bytes, %v (log of %d)", len(row.Value), err, fi.Size())
	}
}

// Killed between making the database and the log, there is nothing to lose.
func TestKilledAtFirstStart(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "member/wal")); err != nil {
		t.Fatal(err)
	}
	_ = open(t, dir).Close()
}

func TestSecondServerIsRefused(t *testing.T) {
	dir := t.TempDir()
	e := open(t, dir)
	if _, err := Open(t.Context(), Config{DataDir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("second: %v, want %v", err, ErrLocked)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	_ = open(t, dir).Close()
}
