package swap

import (
	"context"
	"errors"
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

// S64: five durable writes, and what each of them holds; the host is told to switch
// when all else is done.
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
		pass(9 * time.Millisecond)
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
			{"address taken", errTaken, func(q *Request) { q.Network, q.CAs = "red", []vnet.CA{testCA("10.0.0.10")} }},
			{"no request id", ErrInvalid, func(q *Request) { q.ID = "" }},
			{"unknown proof", ErrInvalid, func(q *Request) { q.Confirm = "hope" }},
			{"unknown fate of connections", ErrInvalid, func(q *Request) { q.OldConnections = "burn" }},
			{"a time to drain without draining", ErrInvalid, func(q *Request) { q.Drain = time.Second }},
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

// Connections drain before the host is prepared: the stage has that much longer.
func TestDrain(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		q := w.request("blue", "10.0.0.20")
		q.OldConnections, q.Drain, q.Budgets.Lease = vnet.DrainConnections, 7*time.Second, 11*time.Second
		q.Budgets.Stage = 3 * time.Second
		r, err := w.engine.Plan(t.Context(), q)
		if err != nil || r.Budgets.Stage != 10*time.Second || r.Budgets.Lease != 11*time.Second || r.After.OldConnections != vnet.DrainConnections || r.After.Drain != 7*time.Second {
			t.Errorf("budgets %+v, after %s %s, %v", r.Budgets, r.After.OldConnections, r.After.Drain, err)
		}
		if home := r.at(r.Before, 9, true); home.OldConnections != vnet.ResetConnections || home.Drain != 0 {
			t.Errorf("the way back waits: %s %s", home.OldConnections, home.Drain)
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
		{"guest not seen", "lease", "", []vnet.StatusPhase{1, 3}, Switched, 25 * time.Second, Undoing, "not seen at blue 10.0.0.20"},
		{"guest silent", "guest", "", []vnet.StatusPhase{1, 4, 5}, Published, 30 * time.Second, Undoing, "did not report"},
		{"caller silent", "caller", "", []vnet.StatusPhase{1, 4}, Leased, 30 * time.Second, Undoing, "caller did not confirm"},
		{"claimed guest not seen", "guest", "cl-7", []vnet.StatusPhase{1, 3}, Switched, 25 * time.Second, Failed, "not seen at"},
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
				pass(c.budget - time.Millisecond)
				w.wantPhase(c.waits)
				pass(2 * time.Millisecond)
				w.wantPhase(c.then)
				if r := w.record(); !strings.Contains(r.Error, c.says) {
					t.Errorf("error %q, want %q in it", r.Error, c.says)
				}
			})
		})
	}
}

// The host's ladder goes by the time that the leader waits.
func TestHostHearsTheLeaseBudget(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for asked, want := range map[time.Duration]time.Duration{0: 25 * time.Second, 11 * time.Second: 11 * time.Second} {
			q := w.request("blue", "10.0.0.20")
			q.Budgets.Lease = asked
			r, err := w.engine.Plan(t.Context(), q)
			if err != nil || r.After.LeaseBudget != want {
				t.Errorf("asked for %s: the host hears %s, %v", asked, r.After.LeaseBudget, err)
			}
			if home := r.at(r.After, 9, true); home.LeaseBudget != 30*time.Second {
				t.Errorf("on the way back it hears %s", home.LeaseBudget)
			}
		}
	})
}

// A host drains before it is prepared: the time for it is the stage's, not the lease's.
func TestDrainIsStaged(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		q := w.request("blue", "10.0.0.20")
		q.OldConnections, q.Drain = vnet.DrainConnections, 40*time.Second
		w.mustStart(q)
		pass(44 * time.Second)
		w.wantPhase(Reserved)
		w.status(vnet.StatusPrepared)
		synctest.Wait()
		w.wantPhase(Switched)
		pass(26 * time.Second)
		w.wantPhase(Undoing)
	})
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
		pass(after(30 * time.Second))
		w.wantPhase(Degraded)
		if r := w.record(); !strings.Contains(r.Alarm, "old address red 10.0.0.10") || r.Error != "host h2: no rung worked" {
			t.Errorf("alarm %q, error %q", r.Alarm, r.Error)
		}
		pass(time.Hour)
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
		pass(after(25 * time.Second))
		w.wantPhase(Undoing)
		pass(after(30 * time.Second))
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
