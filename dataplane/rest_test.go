package dataplane

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// resting is a VM whose pool holds it as a saved state.
func resting(w *world) (vnet.Intent, *guest) {
	in := intent()
	in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
	in.Machine.Personality = vnet.PersonalityCloudInit
	in.Current.Document.Tag, in.Current.Hold = vnet.TagPartial, vnet.HoldSnapshot
	g := w.guestAt(in, "")
	g.link = false // until it boots
	return in, g
}

// A pooled VM is saved once its guest waits and has had its answer; it goes on when
// its next place is made ready. The cut of its link that wakes it was made before it was
// saved, long enough for any guest; there the link only comes up.
func TestSnapshotPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := resting(w)
		g.notices = 1500 * time.Millisecond
		ps := w.begin()
		ps.set(in)
		settle(2 * time.Second)
		if w.saved["vm-23"] {
			t.Fatal("saved before the guest could have its answer")
		}
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); !w.saved["vm-23"] || s.Power != vnet.PowerSaved || s.Phase != vnet.StatusConfirmed {
			t.Fatalf("saved %t, last status %+v", w.saved["vm-23"], s)
		}
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		w.inOrder("start vm-23", "publish 23 3.7", "link 23 false", "save vm-23", "start vm-23")
		if got := w.phases(in.Next.Epoch); !slices.Equal(got, []vnet.StatusPhase{vnet.StatusPrepared}) || !w.running["vm-23"] {
			t.Fatalf("staged: %v, running %t", got, w.running["vm-23"])
		}
		in = switched(in)
		ps.set(in)
		settle(time.Minute)
		s := w.last(in.Current.Epoch)
		if s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 200ms" || s.Power != vnet.PowerOn || !w.slept[23] {
			t.Errorf("last status %+v, told that it slept: %t", s, w.slept[23])
		}
		at := map[string]time.Time{}
		for _, h := range s.Hops {
			at[h.Name] = h.At
		}
		if dark := at["link_up"].Sub(at["link_down"]); dark != 0 {
			t.Errorf("its link came up %s after the claim had it cut", dark)
		}
		if n := count(w.acts, "save vm-23"); n != 1 || g.cuts() != 1 {
			t.Errorf("saved %d times, cut %d times", n, g.cuts())
		}
		w.mu.Lock()
		g.notices = 150 * time.Millisecond
		w.mu.Unlock()
		in = w.move(ps, in) // its clock is right by now
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || w.slept[23] {
			t.Errorf("a later swap: last status %+v, told that it slept: %t", s, w.slept[23])
		}
	})
}

// A swap that was released lets the VM rest again; an agent that starts leaves one
// that rests alone; one whose machine died while it rested is not started.
func TestSnapshotPoolRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, _ := resting(w)
		ps := w.begin()
		ps.set(in)
		settle(time.Minute)
		ps.set(prepared(in))
		settle(time.Second)
		ps = w.begin() // which leaves the link as it is: the guest waits for it
		settle(time.Second)
		ps.set(prepared(in))
		settle(time.Second)
		ps.set(in)
		settle(time.Minute)
		if n := count(w.acts, "save vm-23"); n != 2 || !w.saved["vm-23"] {
			t.Errorf("after a swap that was released it was saved %d times, rests: %t", n, w.saved["vm-23"])
		}
		if n := count(w.acts, "link 23 false"); n != 1 || count(w.acts, "link 23 true") != 0 {
			t.Errorf("its link was cut %d times and put up %d times while it waited", n, count(w.acts, "link 23 true"))
		}
		starts := count(w.acts, "start vm-23")
		ps = w.begin()
		ps.set(in)
		settle(time.Minute)
		if n := count(w.acts, "start vm-23"); n != starts || w.last(in.Current.Epoch).Power != vnet.PowerSaved {
			t.Errorf("a new agent started it: %d starts, were %d; %+v", n, starts, w.last(in.Current.Epoch))
		}
		w.mu.Lock()
		w.saved["vm-23"] = false
		w.mu.Unlock()
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Power != vnet.PowerOff || w.running["vm-23"] {
			t.Errorf("its state is gone: %+v, running %t", s, w.running["vm-23"])
		}
	})
}

// A saved VM that has no state to go on from is no claim's: neither is it started, nor
// said to be prepared, whether the state was gone before or could not be read.
func TestSnapshotIsLost(t *testing.T) {
	for name, unreadable := range map[string]bool{"gone before": false, "can't be read": true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			in, _ := resting(w)
			ps := w.begin()
			ps.set(in)
			settle(time.Minute)
			w.mu.Lock()
			starts := count(w.acts, "start vm-23")
			w.saved["vm-23"], w.unreadable = unreadable, unreadable
			w.mu.Unlock()
			in = prepared(in)
			ps.set(in)
			settle(2 * time.Second) // less than a leader waits
			if s := w.last(in.Next.Epoch); s.Phase != vnet.StatusRefused || !strings.Contains(s.Error, errLost.Error()) {
				t.Errorf("%s: %+v", name, s)
			}
			in.Next = nil
			ps.set(in)
			settle(time.Minute)
			s, n := w.last(in.Current.Epoch), count(w.acts, "start vm-23")
			if s.Power != vnet.PowerOff || w.running["vm-23"] || n != starts && !unreadable || n > starts+1 {
				t.Errorf("%s: started %d times more, %+v", name, n-starts, s)
			}
		})
	}
}

func count(acts []string, act string) (n int) {
	for _, a := range acts {
		if a == act {
			n++
		}
	}
	return n
}
