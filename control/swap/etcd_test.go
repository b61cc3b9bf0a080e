package swap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/etcd"
	"replug/directory/store"
	"replug/directory/vnet"
)

// disk is an embedded etcd that can be closed and opened again.
type disk struct {
	t   testing.TB
	dir string
	e   *etcd.Etcd
}

func newDisk(t testing.TB) *disk {
	d := &disk{t: t, dir: t.TempDir()}
	d.open()
	t.Cleanup(func() { _ = d.e.Close() })
	return d
}

func (d *disk) open() {
	e, err := etcd.Open(context.Background(), etcd.Config{DataDir: d.dir, Name: "swap-test"})
	if err != nil {
		d.t.Fatal(err)
	}
	d.e = e
}

// world is a fresh one, with a leader.
func (d *disk) world(t testing.TB) *world {
	for _, under := range []string{store.Swaps, store.Live, store.Requests, store.Intents, store.Mappings, store.CAs, store.Ports, store.Statuses, store.Counters} {
		if _, err := d.e.Client().Delete(context.Background(), under, clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, store.New(d.e.Client()), nil)
	w.settle = func() {}
	w.lead()
	t.Cleanup(func() { _ = w.stop() })
	return w
}

// eventually waits for the world to be as a scenario wants it: the engine tells of
// each change of the swap's record, which comes after all else that a write holds.
func (w *world) eventually(want string, view func(string) string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	as := func() bool { return view(w.says()) == view(want) }
	reached := errors.New("as wanted")
	if w.id != "" && !as() {
		err := w.engine.Watch(ctx, w.id, func(Record) error {
			if as() {
				return reached
			}
			return nil
		})
		if err != nil && !errors.Is(err, reached) && ctx.Err() == nil {
			return err
		}
	}
	if !as() {
		return fmt.Errorf("got:\n%swant:\n%s", view(w.says()), view(want))
	}
	return w.check()
}

// TestScenariosOnEtcd plays the files that need no clock on the real store: it holds
// the store in memory to the real one. Then again with the server killed, and with
// the store itself closed and opened, after each command.
func TestScenariosOnEtcd(t *testing.T) {
	d := newDisk(t)
	same := func(s string) string { return s }
	played := 0
	for _, s := range readScenarios(t) {
		all := strings.Join(s.lines, " ") + " "
		if strings.Contains(all, "wait ") || strings.Contains(all, "store ") {
			continue
		}
		if t.Failed() {
			return // each of them waits long for what does not come
		}
		played++
		t.Run(s.name, func(t *testing.T) { s.play(t, d, same, func(int, *world) {}) })
		t.Run(s.name+"/server killed", func(t *testing.T) {
			s.play(t, d, end, func(_ int, w *world) { w.crashServer() })
		})
	}
	if played < 10 {
		t.Errorf("only %d files were played", played)
	}
	for _, s := range readScenarios(t) {
		if s.name == "good_guest" || s.name == "cancel_after_switch" {
			t.Run(s.name+"/store closed", func(t *testing.T) {
				s.play(t, d, end, func(_ int, w *world) { d.restart(w) })
			})
		}
	}
}

// restart ends server and store together, as when one process dies.
func (d *disk) restart(w *world) {
	if err := w.stop(); err != nil {
		d.t.Fatal(err)
	}
	if err := d.e.Close(); err != nil {
		d.t.Fatal(err)
	}
	d.open()
	w.store = store.New(d.e.Client())
	w.eyes, w.objects.store = w.store, w.store
	w.lead()
	w.retell()
}

func (s *scenario) play(t *testing.T, d *disk, view func(string) string, between func(int, *world)) {
	w := d.world(t)
	for i, line := range s.lines {
		w.do(line)
		want := s.wants[i]
		// A killed leader forgets what is only in memory until it is told again.
		if err := w.eventually(want, view); err != nil {
			t.Fatalf("%s\n%v", line, err)
		}
		between(i, w)
	}
	if err := w.eventually(s.wants[len(s.wants)-1], view); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkSwap is what the server and its store cost a swap, with a host that
// answers at once.
func BenchmarkSwap(b *testing.B) {
	d := newDisk(b)
	w := d.world(b)
	told := func(p Phase, s vnet.StatusPhase) {
		w.status(s)
		for {
			rec, changed := w.engine.driver(w.id).look()
			if rec.Phase >= p {
				return
			}
			<-changed
		}
	}
	before := w.store.Txns()
	var start, staged, committed time.Duration
	for i := 0; b.Loop(); i++ {
		q := w.request([]vnet.Moniker{"blue", "red"}[i%2], fmt.Sprintf("10.0.%d.%d", 1+i/200%250, 20+i%200))
		at := time.Now()
		for _, err := w.start(q); err != nil; _, err = w.start(q) {
			if !errors.Is(err, ErrBusy) { // the last one is just being forgotten
				b.Fatal(err)
			}
		}
		start += time.Since(at)
		at = time.Now()
		told(Switched, vnet.StatusPrepared)
		staged += time.Since(at)
		at = time.Now()
		d := w.engine.driver(w.id)
		w.status(vnet.StatusLeased)
		if _, err := d.until(context.Background(), func(*Record) bool { return false }); err != nil {
			b.Fatal(err)
		}
		committed += time.Since(at)
	}
	n := float64(b.N)
	b.ReportMetric(float64(w.store.Txns()-before)/n, "txns/op")
	b.ReportMetric(float64(start.Microseconds())/n, "us-reserve/op")
	b.ReportMetric(float64(staged.Microseconds())/n, "us-prepared-to-switched/op")
	b.ReportMetric(float64(committed.Microseconds())/n, "us-leased-to-committed/op")
}
