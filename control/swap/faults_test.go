package swap

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Invariant 6 for the one who changes: fast refusals, and going on afterwards.
func TestStoreDown(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.memory.setDown(true)
		w.status(vnet.StatusPrepared)
		pass(time.Second)
		w.wantPhase(Reserved)
		if r := w.record(); !strings.Contains(r.Alarm, "can't be written") {
			t.Errorf("alarm %q", r.Alarm)
		}
		begin := time.Now()
		if _, err := w.start(w.request("blue", "10.0.0.21")); !errors.Is(err, store.ErrUnavailable) || time.Since(begin) > time.Second {
			t.Errorf("start without a store: %v after %v", err, time.Since(begin))
		}
		w.memory.setDown(false)
		pass(2 * time.Second)
		w.wantPhase(Switched)
		if r := w.record(); r.Alarm != "" {
			t.Errorf("alarm stays: %s", r.Alarm)
		}
	})
}

// An answer that is lost is asked for, not guessed.
func TestLostAnswers(t *testing.T) {
	for _, at := range []Phase{Reserved, Staged, Switched, Confirmed, Committed} {
		t.Run(at.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				commits := 0
				w.memory.after = func() {
					commits++
					w.memory.lose = 0
					if commits == int(map[Phase]int{Staged: 1, Switched: 2, Confirmed: 3, Committed: 4}[at]) {
						w.memory.lose = 1
					}
				}
				q := w.request("blue", "10.0.0.20")
				if at == Reserved {
					w.memory.lose = 1
					if _, err := w.start(q); !errors.Is(err, store.ErrUnavailable) {
						t.Fatalf("start: %v", err)
					}
					commits++
				}
				w.mustStart(q)
				w.status(vnet.StatusPrepared)
				pass(time.Second)
				w.status(vnet.StatusLeased)
				pass(time.Second)
				w.wantPhase(Committed)
				if r := w.record(); r.Writes != 5 {
					t.Errorf("%d writes, want 5", r.Writes)
				}
			})
		})
	}
}

// A leader that is none any more stops at its next write.
func TestFenced(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_ = w.stop()
		free := w.store
		var txn store.Txn
		if _, err := free.Commit(context.Background(), txn.Put(store.Leader+"me", "s1")); err != nil {
			t.Fatal(err)
		}
		w.store = free.Fenced(store.Leader + "me")
		w.lead()
		w.mustStart(w.request("blue", "10.0.0.20"))
		txn = store.Txn{}
		if _, err := free.Commit(context.Background(), txn.Delete(store.Leader+"me")); err != nil {
			t.Fatal(err)
		}
		before := len(w.memory.commits)
		w.status(vnet.StatusPrepared)
		synctest.Wait()
		if err := w.stop(); !errors.Is(err, store.ErrFenced) {
			t.Errorf("Run returned %v, want %v", err, store.ErrFenced)
		}
		if len(w.memory.commits) != before {
			t.Error("it wrote after it was fenced")
		}
		if _, err := w.start(w.request("blue", "10.0.0.21")); !errors.Is(err, ErrStopped) {
			t.Errorf("start at a stopped engine: %v, want %v", err, ErrStopped)
		}
		w.store = free
		w.lead()
	})
}

// A write that the store will never take doesn't keep a swap for ever (invariant 3).
func TestTooMuchToWrite(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.memory.most, w.objects.joins = 30, 40
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		synctest.Wait()
		w.status(vnet.StatusLeased)
		pass(time.Second)
		rec := w.record()
		if rec.Phase != Undoing || !strings.Contains(rec.Error, store.ErrTooLarge.Error()) {
			t.Errorf("swap is %s (%s), want it undoing", rec.Phase, rec.Error)
		}
		w.status(vnet.StatusLeased)
		synctest.Wait()
		if rec := w.record(); rec.Phase != Undone {
			t.Errorf("swap is %s (%s)", rec.Phase, rec.Error)
		}
	})
}

// A way back that is more than the store takes is tried on, and not in silence.
func TestTooMuchToUndo(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		synctest.Wait()
		w.memory.most = 1
		soon, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if _, err := w.engine.Cancel(soon, w.id, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
		d := w.engine.byID[w.id]
		if rec, _ := d.look(); !strings.Contains(rec.Alarm, "can't be written") || !strings.Contains(rec.Alarm, store.ErrTooLarge.Error()) {
			t.Errorf("swap is %s, alarm %q", rec.Phase, rec.Alarm)
		}
		w.memory.most = 0
		pass(2 * time.Second)
		w.wantPhase(Undoing)
		if rec, _ := d.look(); rec.Alarm != "" {
			t.Errorf("written, the alarm stays: %q", rec.Alarm)
		}
	})
}

// What many swaps of one tenant push out is its own records (invariant 7), and no
// request id: asked again it leads to no second swap (invariant 4).
func TestOthersRecordsStay(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.engine.Kept = 3
		mine := w.request("blue", "10.0.0.20")
		all := []Request{mine}
		for i := range 4 {
			q := w.request("blue", "10.0.0.2"+string(rune('1'+i)))
			q.Tenant = "umbra"
			all = append(all, q)
		}
		ids := make([]string, len(all))
		for i, q := range all {
			w.mustStart(q)
			if _, err := w.engine.Cancel(context.Background(), w.id, ""); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			ids[i] = w.id
		}
		pass(2 * sweepEvery)
		before := len(w.memory.commits)
		if rec, err := w.engine.Start(context.Background(), mine); err != nil || rec.ID != ids[0] {
			t.Errorf("asked again: swap %q, %v, want %s", rec.ID, err, ids[0])
		}
		for i, q := range all[1:] {
			rec, err := w.engine.Start(context.Background(), q)
			switch pushed := i < 2; {
			case !pushed && (err != nil || rec.ID != ids[i+1]):
				t.Errorf("another tenant's %d. again: swap %q, %v", i+1, rec.ID, err)
			case pushed && (!errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), ids[i+1])):
				t.Errorf("one without a record again: %v, want %s named", err, ids[i+1])
			}
		}
		if n := len(w.memory.commits) - before; n != 0 {
			t.Errorf("requests asked again led to %d writes", n)
		}
	})
}

// A request id whose row went before the record did may lead to another swap: the end
// of the old record leaves that alone (invariant 4).
func TestOldRecordLeavesNewRequest(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.engine.KeptFor = time.Hour
		q := w.request("blue", "10.0.0.20")
		w.mustStart(q)
		pass(time.Minute) // nobody stages it
		old := w.id
		pass(30 * time.Minute)
		if err := w.commit((&store.Txn{}).Delete(store.Requests + q.ID)); err != nil {
			t.Fatal(err)
		}
		w.mustStart(q)
		pass(40 * time.Minute)
		if _, err := w.engine.Get(context.Background(), old); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the old record: %v", err)
		}
		rec, err := w.engine.Start(context.Background(), q)
		if err != nil || rec.ID != w.id || rec.ID == old {
			t.Errorf("asked again: swap %q, %v, want %s", rec.ID, err, w.id)
		}
	})
}

// Invariant 8: records expire, by age and by number.
func TestRecordsExpire(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.engine.Kept = 2
		for i := range 4 {
			w.mustStart(w.request("blue", "10.0.0.2"+string(rune('1'+i))))
			if _, err := w.engine.Cancel(context.Background(), w.id, ""); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the way back is on; it ends
		}
		pass(2 * sweepEvery)
		if n := len(listed[Record](w, store.Swaps)); n != 2 {
			t.Errorf("%d records are kept, want 2", n)
		}
		w.crash()
		pass(24 * time.Hour)
		pass(2 * sweepEvery)
		// The requests of the two that were pushed out hang on a lease, which this store has none of.
		if n, q := len(listed[Record](w, store.Swaps)), len(listed[Operation](w, store.Requests)); n != 0 || q != 2 {
			t.Errorf("after a day %d records and %d requests are left, want 0 and 2", n, q)
		}
	})
}

// A watcher sees every end, and no phase out of order.
func TestWatch(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		var seen []Phase
		done := make(chan error, 1)
		go func() {
			done <- w.engine.Watch(context.Background(), w.id, func(r Record) error { seen = append(seen, r.Phase); return nil })
		}()
		synctest.Wait()
		w.status(vnet.StatusPrepared)
		synctest.Wait()
		w.status(vnet.StatusLeased)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !slices.IsSorted(seen) || seen[0] != Reserved || seen[len(seen)-1] != Committed {
			t.Errorf("seen %v", seen)
		}
	})
}

// Deleting the port ends its swap in the same transaction, wherever it is.
func TestAbandon(t *testing.T) {
	for _, told := range [][]vnet.StatusPhase{nil, {1}, {1, 4}, {1, 7}} {
		inBubble(t, func(t *testing.T, w *world) {
			q := w.request("blue", "10.0.0.20")
			q.Confirm = vnet.ConfirmGuest
			w.mustStart(q)
			for _, p := range told {
				w.status(p)
				synctest.Wait()
			}
			if err := w.deletePort(w.engine); err != nil {
				t.Fatal(err)
			}
			w.wantPhase(Abandoned)
			if got := w.describe(); got != "intent  (0.0)\n" {
				t.Errorf("after %v the world is\n%s", told, got)
			}
			if w.status(vnet.StatusPrepared) {
				t.Error("a status of a deleted port was taken")
			}
		})
	}
}

// deletePort is what a manager does to delete a port in mid-swap.
func (w *world) deletePort(e *Engine) error {
	var txn store.Txn
	r, done, err := e.Abandon(context.Background(), testPort, "", &txn)
	if err != nil {
		return err
	}
	defer done()
	txn.Delete(store.IntentKey("h2", testPort)).Delete(store.Ports + testPort)
	if r != nil {
		txn.Delete(store.CAKey(r.Before.VNI, r.Before.Addrs[0].CA)).Delete(store.CAKey(r.After.VNI, r.After.Addrs[0].CA))
	}
	_, err = w.store.Commit(context.Background(), &txn)
	return err
}

// A manager's refusal of the switch lets everything go.
func TestSwitchRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.objects.refuse = errors.New("test: the network is frozen")
		before := w.describe()
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		pass(time.Second)
		w.wantPhase(Undone)
		if r := w.record(); !strings.Contains(r.Error, "frozen") || r.Back != nil {
			t.Errorf("error %q, back %v", r.Error, r.Back)
		}
		if got := w.describe(); got != before+"burned 2.7\n" {
			t.Errorf("world:\n%swant:\n%s", got, before)
		}
	})
}
