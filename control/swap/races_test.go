package swap

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// rival is a second engine on the same store that nobody has fenced.
func (w *world) rival() *Engine {
	first, stop := w.engine, w.stop
	w.lead()
	second, stop2 := w.engine, w.stop
	w.engine = first
	w.stop = func() error { return errors.Join(stop(), stop2()) }
	return second
}

func (w *world) commit(txn *store.Txn) error {
	_, err := w.store.Commit(context.Background(), txn)
	return err
}

// Two leaders at once write each step once: the record's revision decides.
func TestTwoLeaders(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.memory.commits = nil
		w.mustStart(w.request("blue", "10.0.0.20"))
		other := w.rival()
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		other.OnStatus(*w.told)
		pass(time.Second)
		w.status(vnet.StatusLeased)
		w.wantPhase(Committed)
		other.OnStatus(*w.told)
		pass(time.Second)
		if n := len(w.memory.commits); n != 5 {
			t.Errorf("%d transactions, want 5:\n%s", n, strings.Join(w.memory.commits, "\n"))
		}
		if _, ok := other.Of(testPort); ok {
			t.Error("the other one still drives a swap that has ended")
		}
	})
}

// What the other leader has decided is found at the next write, and followed.
func TestOtherLeaderUndoes(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		other := w.rival()
		if _, err := other.Cancel(context.Background(), w.id, ""); err != nil {
			t.Fatal(err)
		}
		e := w.record().After.Epoch
		w.status(vnet.StatusLeased, func(s *vnet.Status) { s.Epoch = e }) // it has not heard yet
		pass(time.Second)
		w.wantPhase(Undoing)
		w.status(vnet.StatusLeased)
		pass(time.Second)
		w.wantPhase(Undone)
	})
}

// The live lock is in the store, not in a leader's memory.
func TestTwoLeadersStartTwoSwaps(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		other := w.rival()
		w.mustStart(w.request("blue", "10.0.0.20"))
		if _, err := other.Start(context.Background(), w.request("pool", "10.0.0.30")); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), w.id) {
			t.Errorf("got %v, want ErrBusy that names %s", err, w.id)
		}
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
	})
}

// A swap that nobody drives is found: reserved by who was leader for a moment, or
// by a transaction that arrived after its caller and its driver had given up on it.
func TestLostSwapIsFound(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		first, stop := w.engine, w.stop
		w.lead()
		w.mustStart(w.request("blue", "10.0.0.20"))
		_ = w.stop()
		w.engine, w.stop = first, stop
		if w.status(vnet.StatusPrepared) {
			t.Fatal("a status of a swap was taken by a leader that does not know it")
		}
		pass(after(sweepEvery))
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
	})
}

// A reservation that did not reach the store leaves nothing behind.
func TestStartWithoutStoreLeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.memory.refuse = 1
		q := w.request("blue", "10.0.0.20")
		if _, err := w.start(q); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("start: %v", err)
		}
		synctest.Wait()
		if r, ok := w.engine.Of(testPort); ok {
			t.Errorf("swap %s of a port is %s, and was never reserved", r.ID, r.Phase)
		}
		w.mustStart(q)
	})
}

// What others change in the intent meanwhile is kept.
func TestIntentChangedInMidSwap(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		in := w.intent()
		in.Machine = &vnet.Machine{ID: "vm-31", Power: vnet.PowerOff}
		if err := w.commit(new(store.Txn).Put(store.IntentKey("h2", testPort), in)); err != nil {
			t.Fatal(err)
		}
		w.status(vnet.StatusPrepared)
		pass(time.Second)
		w.wantPhase(Switched)
		if in := w.intent(); in.Machine == nil || in.Machine.Power != vnet.PowerOff || in.Current.Network != "blue" {
			t.Errorf("intent %+v", in)
		}
	})
}

// Somebody else's mapping is never replaced (invariant 2): the swap ends, unswitched.
func TestMappingOfAnother(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		ca := testCA("10.0.0.20")
		key := store.MappingKey(testNetworks["blue"], ca)
		stranger := vnet.Mapping{VNI: testNetworks["blue"], CA: ca, Port: "p-99", Epoch: vnet.NewEpoch(2, 77), PA: vnet.PA{Addr: netip.MustParseAddr("100.64.9.9")}}
		if err := w.commit(new(store.Txn).Put(key, stranger)); err != nil {
			t.Fatal(err)
		}
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		w.wantPhase(Staged)
		w.crash() // the next leader's patience is as bounded
		pass(after(6 * time.Second))
		w.wantPhase(Undone)
		if r := w.record(); !strings.Contains(r.Error, "could not be written") || r.Back != nil {
			t.Errorf("error %q, back %v", r.Error, r.Back)
		}
		if got, err := store.Get[vnet.Mapping](context.Background(), w.eyes, key); err != nil || got.Value.Port != "p-99" {
			t.Errorf("mapping is %+v (%v)", got.Value, err)
		}
		if err := w.commit(new(store.Txn).Delete(key)); err != nil {
			t.Fatal(err)
		}
	})
}

// A port whose intent is gone has no swap, even if who deleted it did not say so.
func TestIntentGoneInMidSwap(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		if err := w.commit(new(store.Txn).Delete(store.IntentKey("h2", testPort))); err != nil {
			t.Fatal(err)
		}
		w.status(vnet.StatusPrepared, func(s *vnet.Status) { s.Epoch = w.record().After.Epoch })
		pass(time.Second)
		w.wantPhase(Abandoned)
		if m := listed[vnet.Mapping](w, store.Mappings); len(m) != 0 {
			t.Errorf("mappings of a port that is gone: %v", m)
		}
	})
}

// Deleting a port and its swap's next step can't both be made.
func TestAbandonMeetsTheNextStep(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var early store.Txn
		if r, _, err := w.engine.Abandon(context.Background(), testPort, "", &early); r != nil || err != nil {
			t.Fatalf("abandon without a swap: %v %v", r, err)
		}
		w.mustStart(w.request("blue", "10.0.0.20"))
		if err := w.commit(early.Delete(store.Ports + testPort)); !errors.Is(err, store.ErrConflict) {
			t.Errorf("deleted a port while a swap began: %v", err)
		}
		var late store.Txn
		_, done, err := w.engine.Abandon(context.Background(), testPort, "", &late)
		if err != nil {
			t.Fatal(err)
		}
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		if err := w.commit(&late); !errors.Is(err, store.ErrConflict) {
			t.Errorf("abandoned a swap that has gone on: %v", err)
		}
		done()
		w.wantPhase(Switched)
	})
}

// Nothing is kept of a port that is deleted (invariant 8).
func TestAbandonForgetsTheEpochs(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		if _, err := w.engine.Cancel(context.Background(), w.id, ""); err != nil {
			t.Fatal(err)
		}
		if n := len(listed[vnet.Epoch](w, store.Counters+"epochs/")); n != 1 {
			t.Fatalf("%d burned epochs, want 1", n)
		}
		var txn store.Txn
		r, done, err := w.engine.Abandon(context.Background(), testPort, "", &txn)
		if r != nil || err != nil {
			t.Fatalf("abandon without a live swap: %v %v", r, err)
		}
		defer done()
		if err := w.commit(&txn); err != nil {
			t.Fatal(err)
		}
		if n := len(listed[vnet.Epoch](w, store.Counters+"epochs/")); n != 0 {
			t.Errorf("%d burned epochs of a port that is gone", n)
		}
	})
}

// After a restore the epochs of a live swap are of an older era: it goes home.
func TestRestoredInMidSwap(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.mustStart(w.request("blue", "10.0.0.20"))
		w.status(vnet.StatusPrepared)
		w.wantPhase(Switched)
		_ = w.stop()
		w.era = 3
		w.lead()
		w.wantPhase(Undoing)
		if e := w.record().Back.Epoch; e != vnet.NewEpoch(3, 8) {
			t.Errorf("back to epoch %s, want 3.8", e)
		}
		w.status(vnet.StatusLeased)
		w.wantPhase(Undone)
		w.mustStart(w.request("blue", "10.0.0.21"))
		if e := w.record().After.Epoch; e != vnet.NewEpoch(3, 9) {
			t.Errorf("next swap has epoch %s, want 3.9", e)
		}
	})
}
