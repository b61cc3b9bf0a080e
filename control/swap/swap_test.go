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

// inBubble runs f in a world with a leader, under a clock that jumps.
func inBubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		w := newWorld(t, m.store(), m)
		w.lead()
		defer func() { _ = w.stop() }()
		f(t, w)
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

func (w *world) mustStart(q Request) {
	w.t.Helper()
	if _, err := w.start(q); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantPhase(p Phase) {
	w.t.Helper()
	synctest.Wait()
	if r := w.record(); r.Phase != p {
		w.t.Fatalf("swap is %s (%s), want %s", r.Phase, r.Error, p)
	}
}

// Five durable writes, and what each of them holds.
func TestGoodSwapIsFiveWrites(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.memory.commits = nil
		q := w.request("blue", "10.0.0.20")
		q.Confirm = vnet.ConfirmGuest
		w.mustStart(q)
		w.wantPhase(Reserved)
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		w.status(vnet.StatusFlipped)
		w.wantPhase(Switched)
		w.status(vnet.StatusLeased)
		w.wantPhase(Leased)
		w.status(vnet.StatusPublished)
		w.wantPhase(Published)
		time.Sleep(9 * time.Millisecond)
		if !w.status(vnet.StatusConfirmed, func(s *vnet.Status) {
			s.Rung, s.Blackout = "bounce 20ms", 23*time.Millisecond
			s.Hops = []vnet.Hop{{Name: "flip", At: time.Now().Add(-7 * time.Millisecond)}, {Name: "seen", At: time.Now().Add(-time.Millisecond)}}
			s.Guest = &vnet.GuestReport{Epoch: s.Epoch, Kind: vnet.ReportFinal, OK: true, BootID: "b-9"}
		}) {
			t.Error("the status was not taken")
		}
		w.wantPhase(Committed)
		r := w.record()
		if len(w.memory.commits) != 5 || r.Writes != 5 {
			t.Errorf("%d transactions, %d by the record, want 5:\n%s", len(w.memory.commits), r.Writes, strings.Join(w.memory.commits, "\n"))
		}
		if r.Rung != "bounce 20ms" || r.Blackout != 23*time.Millisecond || r.Guest == nil || r.Guest.BootID != "b-9" {
			t.Errorf("receipt: rung %q, blackout %v, guest %+v", r.Rung, r.Blackout, r.Guest)
		}
		var steps []string
		for _, s := range r.Timeline {
			steps = append(steps, s.Name)
		}
		want := "reserved staged switched leased published flip seen confirmed committed"
		if got := strings.Join(steps, " "); got != want {
			t.Errorf("timeline %q, want %q", got, want)
		}
		if r.After.Epoch != r.Before.Epoch.Next() || r.After.Document.Epoch != r.After.Epoch {
			t.Errorf("epochs %v -> %v, document %v", r.Before.Epoch, r.After.Epoch, r.After.Document.Epoch)
		}
		want = "intent blue 10.0.0.20 (2.7)\nport blue 10.0.0.20\nmapping blue 10.0.0.20 2.7\nca blue 10.0.0.20 used\nca red 10.0.0.10 resting\n"
		if got := w.describe(); got != want {
			t.Errorf("world:\n%swant:\n%s", got, want)
		}
		if len(w.ended) != 1 || w.ended[0].ID != r.ID {
			t.Errorf("OnEnd was called %d times", len(w.ended))
		}
	})
}

func TestRefusalsOfStart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		before := len(w.memory.commits)
		for _, c := range []struct {
			name   string
			err    error
			change func(*Request)
		}{
			{"unknown network", errUnknownNetwork, func(q *Request) { q.Network = "green" }},
			{"address taken", errTaken, func(q *Request) { a := testCA("10.0.0.10"); q.Network, q.CA = "red", &a }},
			{"no request id", ErrInvalid, func(q *Request) { q.ID = "" }},
			{"unknown proof", ErrInvalid, func(q *Request) { q.Confirm = "hope" }},
			{"unknown trigger", ErrInvalid, func(q *Request) { q.Trigger = "shout" }},
			{"unknown port", store.ErrNotFound, func(q *Request) { q.Port = "p-32" }},
		} {
			q := w.request("blue", "10.0.0.20")
			c.change(&q)
			if _, err := w.start(q); !errors.Is(err, c.err) {
				t.Errorf("%s: got %v, want %v", c.name, err, c.err)
			}
		}
		if n := len(w.memory.commits) - before; n != 0 {
			t.Errorf("refused requests wrote %d times", n)
		}
	})
}

// Invariant 4: the same request is the same swap; another one meets the live lock.
func TestStartIsIdempotent(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		q := w.request("blue", "10.0.0.20")
		results := make(chan Record, 3)
		for range 3 {
			go func() {
				r, err := w.engine.Start(context.Background(), q)
				if err != nil {
					t.Error(err)
				}
				results <- r
			}()
		}
		first := <-results
		for range 2 {
			if r := <-results; r.ID != first.ID {
				t.Errorf("one request, two swaps: %s and %s", first.ID, r.ID)
			}
		}
		if _, err := w.start(w.request("blue", "10.0.0.21")); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), first.ID) {
			t.Errorf("second swap: %v, want ErrBusy that names %s", err, first.ID)
		}
		other := q
		other.Hostname = "web-9"
		if _, err := w.start(other); !errors.Is(err, ErrRequest) {
			t.Errorf("request id used again: %v, want %v", err, ErrRequest)
		}
		w.id = first.ID
		w.status(vnet.StatusPrepared)
		w.status(vnet.StatusLeased)
		synctest.Wait()
		w.status(vnet.StatusLeased)
		w.wantPhase(Committed)
		if r, err := w.start(q); err != nil || r.ID != first.ID || r.Phase != Committed {
			t.Errorf("the request again after the end: %v %v", r.Phase, err)
		}
	})
}

// A budget ends what waits in vain, not earlier.
func TestBudgets(t *testing.T) {
	for _, c := range []struct {
		name    string
		confirm vnet.Confirm
		claim   string
		told    []vnet.StatusPhase
		waits   Phase
		budget  time.Duration
		then    Phase
		says    string
	}{
		{"host does not stage", "lease", "", nil, Reserved, 5 * time.Second, Undone, "did not stage"},
		{"guest not seen", "lease", "", []vnet.StatusPhase{1, 3}, Switched, 15 * time.Second, Undoing, "not seen at blue 10.0.0.20"},
		{"guest silent", "guest", "", []vnet.StatusPhase{1, 4, 5}, Published, 30 * time.Second, Undoing, "did not report"},
		{"caller silent", "caller", "", []vnet.StatusPhase{1, 4}, Leased, 30 * time.Second, Undoing, "caller did not confirm"},
		{"claimed guest not seen", "guest", "cl-7", []vnet.StatusPhase{1, 3}, Switched, 15 * time.Second, Failed, "not seen at"},
		{"claimed guest silent", "guest", "cl-7", []vnet.StatusPhase{1, 4, 5}, Published, 30 * time.Second, Failed, "did not report"},
		{"claim not staged", "guest", "cl-7", nil, Reserved, 5 * time.Second, Undone, "did not stage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				q := w.request("blue", "10.0.0.20")
				q.Confirm, q.Claim = c.confirm, c.claim
				w.mustStart(q)
				for _, p := range c.told {
					w.status(p)
					synctest.Wait()
				}
				w.wantPhase(c.waits)
				time.Sleep(c.budget - time.Millisecond)
				w.wantPhase(c.waits)
				time.Sleep(2 * time.Millisecond)
				w.wantPhase(c.then)
				if r := w.record(); !strings.Contains(r.Error, c.says) {
					t.Errorf("error %q, want %q in it", r.Error, c.says)
				}
			})
		})
	}
}

// The way back is not done before the guest is seen at home, and is never silent.
func TestUndoDegradesAndHeals(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		w.status(vnet.StatusFailed, func(s *vnet.Status) { s.Error = "no rung worked" })
		w.wantPhase(Undoing)
		r := w.record()
		if want := r.Before.Epoch.Next().Next(); r.Back.Epoch != want || !r.Back.Undo || r.Back.Document.Epoch != want {
			t.Errorf("back to %v (undo %v), want %v", r.Back.Epoch, r.Back.Undo, want)
		}
		w.status(vnet.StatusFlipped)
		time.Sleep(after(30 * time.Second))
		w.wantPhase(Degraded)
		if r := w.record(); !strings.Contains(r.Alarm, "old address red 10.0.0.10") || r.Error != "host h2: no rung worked" {
			t.Errorf("alarm %q, error %q", r.Alarm, r.Error)
		}
		time.Sleep(time.Hour)
		w.wantPhase(Degraded)
		w.status(vnet.StatusLeased)
		w.wantPhase(Undone)
		if r := w.record(); r.Alarm != "" {
			t.Errorf("alarm stays after the end: %s", r.Alarm)
		}
	})
}

// A host that is cut off after the switch can't be known to have flipped.
func TestCutOffHostAlarmsAndHeals(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		w.online = false
		w.engine.OnHost("h2", false)
		synctest.Wait()
		if r := w.record(); !strings.Contains(r.Alarm, "cut off") {
			t.Errorf("alarm %q", r.Alarm)
		}
		time.Sleep(after(15 * time.Second))
		w.wantPhase(Undoing)
		time.Sleep(after(30 * time.Second))
		w.wantPhase(Degraded)
		w.online = true
		w.engine.OnHost("h2", true)
		w.status(vnet.StatusLeased) // it never flipped, and is at home under the new epoch
		w.wantPhase(Undone)
	})
}

// A VM that is off has nobody to prove anything.
func TestStoppedVMSwapsWithoutProof(t *testing.T) {
	off := func(s *vnet.Status) { s.Power = vnet.PowerOff }
	inBubble(t, func(t *testing.T, w *world) {
		q := w.request("blue", "10.0.0.20")
		q.Confirm = vnet.ConfirmGuest
		w.mustStart(q)
		w.status(vnet.StatusPrepared, off)
		w.wantPhase(Switched)
		w.status(vnet.StatusFlipped, off)
		w.wantPhase(Committed)
		w.mustStart(w.request("pool", "10.0.0.30"))
		w.status(vnet.StatusPrepared, off)
		w.wantPhase(Switched)
		if _, err := w.engine.Cancel(context.Background(), w.id, "changed my mind"); err != nil {
			t.Error(err)
		}
		w.wantPhase(Undoing)
		w.status(vnet.StatusFlipped, off)
		w.wantPhase(Undone)
	})
}

// Epochs of a staging that was let go are burned: its late answer must not pass
// for an answer to the next swap of the port.
func TestLatePreparedOfAnEarlierSwap(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		first := w.record()
		if _, err := w.engine.Cancel(context.Background(), w.id, ""); err != nil {
			t.Fatal(err)
		}
		w.wantPhase(Undone)
		w.mustStart(w.request("pool", "10.0.0.30"))
		w.status(vnet.StatusPrepared, func(s *vnet.Status) { s.Epoch = first.After.Epoch })
		w.wantPhase(Reserved)
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
	})
}

func TestConfirmByCaller(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		q := w.request("blue", "10.0.0.20")
		q.Confirm = vnet.ConfirmCaller
		w.mustStart(q)
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		said := make(chan error, 1)
		go func() { _, err := w.engine.Confirm(context.Background(), w.id); said <- err }()
		w.wantPhase(Switched) // the caller's word alone is not enough
		w.status(vnet.StatusLeased)
		w.wantPhase(Committed)
		if err := <-said; err != nil {
			t.Error(err)
		}
		if _, err := w.engine.Confirm(context.Background(), w.id); err != nil {
			t.Errorf("confirm again: %v", err)
		}
		if _, err := w.engine.Cancel(context.Background(), w.id, ""); !errors.Is(err, ErrEnded) {
			t.Errorf("cancel after the end: %v, want %v", err, ErrEnded)
		}
	})
}

// Invariant 11: a partial report is not a final one.
func TestGuestsReport(t *testing.T) {
	report := func(kind string, shift int) func(*vnet.Status) {
		return func(s *vnet.Status) {
			s.Guest = &vnet.GuestReport{Epoch: s.Epoch + vnet.Epoch(shift), Kind: kind, Error: "user exists"}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*vnet.Status)
		then   Phase
	}{
		{"final and failed", report(vnet.ReportFinal, 0), Undoing},
		{"partial and failed", report(vnet.ReportPartial, 0), Published},
		{"of another epoch", report(vnet.ReportFinal, -1), Published},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				q := w.request("blue", "10.0.0.20")
				q.Confirm = vnet.ConfirmGuest
				w.mustStart(q)
				w.status(vnet.StatusPrepared)
				w.wantPhase(Switched)
				w.status(vnet.StatusPublished, c.change)
				w.wantPhase(c.then)
			})
		})
	}
}

// Invariant 6 for the one who changes: fast refusals, and going on afterwards.
func TestStoreDown(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.memory.setDown(true)
		w.status(vnet.StatusPrepared)
		time.Sleep(time.Second)
		w.wantPhase(Reserved)
		if r := w.record(); !strings.Contains(r.Alarm, "can't be written") {
			t.Errorf("alarm %q", r.Alarm)
		}
		begin := time.Now()
		if _, err := w.start(w.request("blue", "10.0.0.21")); !errors.Is(err, store.ErrUnavailable) || time.Since(begin) > time.Second {
			t.Errorf("start without a store: %v after %v", err, time.Since(begin))
		}
		w.memory.setDown(false)
		time.Sleep(2 * time.Second)
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
				time.Sleep(time.Second)
				w.status(vnet.StatusLeased)
				time.Sleep(time.Second)
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

// Invariant 8: records expire, by age and by number.
func TestRecordsExpire(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.engine.Kept = 2
		for i := range 4 {
			w.mustStart(w.request("blue", "10.0.0.2"+string(rune('1'+i))))
			if _, err := w.engine.Cancel(context.Background(), w.id, ""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * sweepEvery)
		if n := len(listed[Record](w, store.Swaps)); n != 2 {
			t.Errorf("%d records are kept, want 2", n)
		}
		w.crash()
		time.Sleep(24 * time.Hour)
		time.Sleep(2 * sweepEvery)
		if n, q := len(listed[Record](w, store.Swaps)), len(listed[Operation](w, store.Requests)); n != 0 || q != 0 {
			t.Errorf("after a day %d records and %d requests are left", n, q)
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
		time.Sleep(time.Second)
		w.wantPhase(Undone)
		if r := w.record(); !strings.Contains(r.Error, "frozen") || r.Back != nil {
			t.Errorf("error %q, back %v", r.Error, r.Back)
		}
		if got := w.describe(); got != before+"burned 2.7\n" {
			t.Errorf("world:\n%swant:\n%s", got, before)
		}
	})
}
