package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
)

const smallQuota = 16 << 20

func openSmall(t *testing.T, dir string) *Etcd {
	t.Helper()
	e, err := Open(t.Context(), Config{DataDir: dir, Quota: smallQuota})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

var long = strings.Repeat("x", 600<<10)

// write writes a long row, at one key again and again or at a new one.
func write(t *testing.T, e *Etcd, key string) error {
	t.Helper()
	_, err := store.New(e.Client()).Commit(t.Context(), new(store.Txn).Put(store.Intents+key, long))
	return err
}

// fill writes until the store takes no more, and returns how many rows that were.
func fill(t *testing.T, e *Etcd, key func(int) string) int {
	t.Helper()
	for i := range 1000 {
		switch err := write(t, e, key(i)); {
		case errors.Is(err, store.ErrNoSpace) && errors.Is(err, store.ErrUnavailable) && strings.Contains(err.Error(), "--store-quota"):
			return i
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Fatal("600 MiB fit into a store of 16")
	return 0
}

func same(int) string { return "h7/p23" }

// What is written over and over doesn't fill the store, whatever its size.
func TestTidyKeepsBelowTheQuota(t *testing.T) {
	e := openSmall(t, t.TempDir())
	largest := int64(0)
	for i := range 100 { // 60 MiB
		if err := write(t, e, same(i)); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		if err := e.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		u, err := e.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, u.Bytes)
	}
	t.Logf("the database was never larger than %d KiB", largest>>10)
}

// A full store takes writes again: that of a server which went on, of one that was
// restarted, and an etcd of somebody else.
func TestTidyMakesRoom(t *testing.T) {
	dir := t.TempDir()
	endpoint, _ := cluster(t, smallQuota)
	external, err := Open(t.Context(), Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer external.Close()
	for name, e := range map[string]*Etcd{"embedded": openSmall(t, dir), "external": external} {
		t.Run(name, func(t *testing.T) {
			fill(t, e, same)
			u, err := e.Usage(t.Context())
			if err != nil || !u.Full || u.Quota != smallQuota {
				t.Errorf("a full store says %+v, %v", u, err)
			}
			if _, err := store.New(e.Client()).Grant(t.Context(), 60); !errors.Is(err, store.ErrNoSpace) {
				t.Errorf("a lease of a full store: %v", err)
			}
			if got := figures(t, e); got["replug_store_full"] != 1 || got["replug_store_quota_bytes"] != smallQuota || got["replug_store_bytes"] != float64(u.Bytes) {
				t.Errorf("metrics %v of %+v", got, u)
			}
			if name == "embedded" { // the alarm outlives the server
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				e = openSmall(t, dir)
			}
			makesRoom(t, e)
			if u, err := e.Usage(t.Context()); err != nil || u.Full || u.Bytes > smallQuota/4 {
				t.Errorf("afterwards it says %+v, %v", u, err)
			}
			if err := write(t, e, same(0)); err != nil {
				t.Errorf("a write afterwards: %v", err)
			}
		})
	}
}

// makesRoom tidies again and again, as a leader does: etcd learns what is live after a
// compaction with its next commit, a tenth of a second later (batch interval).
func makesRoom(t *testing.T, e *Etcd) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := e.Tidy(ctx)
	for errors.Is(err, store.ErrNoSpace) && ctx.Err() == nil {
		err = e.Tidy(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func figures(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range all {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	return got
}

// When what is live fills the store, it says so and stays readable; what is deleted
// makes room.
func TestTidyOfWhatIsLive(t *testing.T) {
	e := openSmall(t, t.TempDir())
	n, room := 0, true
	for round := 0; room; round++ { // pages that the commits have freed meanwhile are room, too
		if round == 100 {
			t.Fatalf("after %d long rows there is room again and again", n)
		}
		n += fill(t, e, func(i int) string { return fmt.Sprint("h7/p", n+i) })
		for range 2 { // how much is live is known with the next commit
			err := e.Tidy(t.Context())
			if room = err == nil; !room && !errors.Is(err, store.ErrNoSpace) {
				t.Fatalf("a store with %d long rows: %v", n, err)
			}
		}
	}
	if rows, _, err := store.List[string](t.Context(), store.New(e.Client()), store.Intents); err != nil || len(rows) != n {
		t.Errorf("%d rows of %d, %v", len(rows), n, err)
	}
	if _, err := e.Client().Delete(t.Context(), store.Intents, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	makesRoom(t, e)
	if err := write(t, e, same(0)); err != nil {
		t.Errorf("a write afterwards: %v", err)
	}
}

// A slow writer takes a backup while the history would be compacted.
type slowly struct {
	bytes.Buffer
	first func()
}

func (s *slowly) Write(b []byte) (int, error) {
	if s.first != nil {
		s.first()
		s.first = nil
	}
	return s.Buffer.Write(b)
}

// A backup is whole although the store is tidied meanwhile, and restored as it was.
func TestBackupOfATidiedStore(t *testing.T) {
	e := openSmall(t, t.TempDir())
	s := store.New(e.Client())
	const rows = pageSize + 7
	for i := range rows {
		if _, err := s.Commit(t.Context(), new(store.Txn).Put(fmt.Sprintf("%sh7/p%d", store.Intents, i), i)); err != nil {
			t.Fatal(err)
		}
	}
	grow := func() {
		for range 4 {
			if err := write(t, e, "z"); err != nil {
				t.Error(err)
			}
		}
		if err := e.Tidy(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}
	grow()
	backup := &slowly{first: grow}
	if err := e.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := Restore(t.Context(), &backup.Buffer, dir, nil); err != nil {
		t.Fatal(err)
	}
	r := openSmall(t, dir)
	if err := r.Tidy(t.Context()); err != nil {
		t.Error(err)
	}
	if all, _, err := store.List[any](t.Context(), store.New(r.Client()), store.Intents); err != nil || len(all) != rows+1 {
		t.Errorf("%d rows of %d, %v", len(all), rows+1, err)
	}
}
