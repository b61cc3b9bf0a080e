package dataplane

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// crash lets the agent die after its n-th act from now on.
func (w *world) crash(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countdown = n
}

// died reports whether it did, and lets the next one live.
func (w *world) died() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	dead := w.countdown < 0
	w.countdown = 0
	return dead
}

// atEveryCrash plays a scenario once for each of its acts, the agent killed
// right after that act and started again with the intent of then: at once, or
// after it had a second with nothing but its records.
func atEveryCrash(t *testing.T, setup func(*world) vnet.Intent, play func(vnet.Intent) vnet.Intent, check func(*world, vnet.Intent)) {
	for _, away := range []time.Duration{0, time.Second} {
		t.Run(fmt.Sprint("server away for ", away), func(t *testing.T) { crashEverywhere(t, away, setup, play, check) })
	}
}

func crashEverywhere(t *testing.T, away time.Duration, setup func(*world) vnet.Intent, play func(vnet.Intent) vnet.Intent, check func(*world, vnet.Intent)) {
	for n := 1; ; n++ {
		survived := false
		t.Run(fmt.Sprint("after act ", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in := setup(w)
				w.crash(n)
				in = play(in)
				w.agent.set(in)
				settle(20 * time.Second)
				survived = !w.died()
				if !survived {
					ps := w.begin()
					settle(away)
					ps.set(in)
					settle(20 * time.Second)
				}
				check(w, in)
			})
		})
		if survived {
			if n == 1 {
				t.Error("nothing was done at all")
			}
			return
		}
	}
}

// Killed after any act of staging or of the swap, a restarted agent ends in the
// same world, and does not bounce a guest that has followed (DESIGN section 7,
// invariants 1, 2 and 3).
func TestSwapCrashedAnywhere(t *testing.T) {
	atFirstPlace := func(w *world) vnet.Intent {
		in := intent()
		w.guestAt(in, "10.17.34.51")
		w.begin().set(in)
		settle(2 * time.Minute)
		return in
	}
	staged := func(w *world) vnet.Intent {
		in := prepared(atFirstPlace(w))
		w.agent.set(in)
		settle(time.Second)
		return in
	}
	t.Run("staging", func(t *testing.T) {
		atEveryCrash(t, atFirstPlace, prepared, func(w *world, in vnet.Intent) {
			// The word of a session that died may not have left the host.
			if s := w.last(in.Next.Epoch); s.Phase != vnet.StatusPrepared || s.Session != w.session {
				w.t.Errorf("staged: %+v, want it from session %d", s, w.session)
			}
			if row := w.rows[23]; row.Epoch != in.Current.Epoch || w.guests[23].bounced != 0 {
				w.t.Errorf("staging changed the row: %+v", row)
			}
			in = switched(in)
			w.agent.set(in)
			w.ends(in)
		})
	})
	t.Run("switched", func(t *testing.T) {
		atEveryCrash(t, staged, switched, func(w *world, in vnet.Intent) {
			w.ends(in)
			if n := hopCount(w.last(in.Current.Epoch))["stage"]; n != 1 {
				w.t.Errorf("%d stage hops", n)
			}
		})
	})
	t.Run("released", func(t *testing.T) {
		atEveryCrash(t, staged, func(in vnet.Intent) vnet.Intent { in.Next = nil; return in },
			func(w *world, in vnet.Intent) { w.ends(in) })
	})
}

// ends checks the world in which every scenario ends.
func (w *world) ends(in vnet.Intent) {
	w.t.Helper()
	settle(2 * time.Minute)
	g, row := w.guests[in.ID], w.rows[in.ID]
	if want := in.Current.Addrs[0].CA; g.ca != want || !g.link || row.first() != want {
		w.t.Errorf("guest at %s, row at %s, want %s; link up: %t", g.ca, row.CAs[0], want, g.link)
	}
	if row.Epoch != in.Current.Epoch || row.Tenant != tenantNumber(in.Current.Tenant) || row.Timed || w.published[in.ID] != in.Current.Epoch || w.docs[in.ID] == nil {
		w.t.Errorf("row %+v, published %s, want epoch %s", row, w.published[in.ID], in.Current.Epoch)
	}
	if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed {
		w.t.Errorf("last status %+v", s)
	}
	if g.cuts() > 2 {
		w.t.Errorf("bounced %d times", g.cuts())
	}
}

// The same, from the first intent on, for a machine.
func TestFirstPlaceCrashedAnywhere(t *testing.T) {
	atEveryCrash(t, func(w *world) vnet.Intent {
		in := intent()
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
		w.guestAt(in, "").link = false
		w.begin()
		return in
	}, func(in vnet.Intent) vnet.Intent { return in }, func(w *world, in vnet.Intent) { w.ends(in) })
}

// And to the end: nothing of a port that is gone is left (invariants 8 and 9).
func TestGoneCrashedAnywhere(t *testing.T) {
	atEveryCrash(t, func(w *world) vnet.Intent {
		in := intent()
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
		w.guestAt(in, "").link = false
		w.begin().set(in)
		settle(time.Minute)
		return in
	}, func(in vnet.Intent) vnet.Intent {
		in.Gone = true
		return in
	}, func(w *world, in vnet.Intent) {
		if len(w.rows)+len(w.attached)+len(w.taps)+len(w.running)+len(w.docs) != 0 {
			w.t.Errorf("left: rows %v, attached %v, taps %v, machines %v, documents %v", w.rows, w.attached, w.taps, w.running, w.docs)
		}
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusGone || s.Power != vnet.PowerAbsent {
			w.t.Errorf("last status %+v", s)
		}
		if recs, _ := w.agent.records.load(); len(recs) != 0 {
			w.t.Errorf("records left: %v", recs)
		}
		w.agent.gone(in.Port)
		settle(time.Second)
		if n := w.agent.count(); n != 0 {
			w.t.Errorf("%d workers left", n)
		}
	})
}

// A guest that followed while the agent was away is not bounced again, though
// nobody heard of its lease.
func TestRestartDoesNotBounceAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		g := w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		g.asks = 300 * time.Millisecond
		in = switched(in)
		ps.set(in)
		settle(100 * time.Millisecond) // flipped and bounced, no lease yet
		w.end()
		settle(time.Second) // the lease is nobody's to see
		g.ca = in.Current.Addrs[0].CA
		w.begin().set(in)
		settle(500 * time.Millisecond)
		s := w.last(in.Current.Epoch)
		if g.cuts() != 1 || s.Phase != vnet.StatusConfirmed {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
		names := hopCount(s)
		if names["stage"] != 1 || names["link_down"] != 1 || names["flip"] != 1 || names["seen"] != 1 {
			t.Errorf("hops of the earlier session are lost or doubled: %v", names)
		}
	})
}

func hopCount(s vnet.Status) map[string]int {
	names := map[string]int{}
	for _, h := range s.Hops {
		names[h.Name]++
	}
	return names
}

// An agent that died while the link was down leaves the guest without one: the
// next puts it up at once.
func TestRestartInTheDark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		g := w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(7 * time.Millisecond)
		w.end()
		if g.link {
			t.Fatal("not in the dark")
		}
		settle(time.Second)
		w.begin().set(in)
		settle(200 * time.Millisecond)
		if s := w.last(in.Current.Epoch); g.cuts() != 1 || s.Phase != vnet.StatusConfirmed {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
}

// Killed after any act of a swap, an agent that finds no server leaves no guest without
// a link (invariant 6): the one that cut it may have died before it wrote a word of that.
func TestSwapCrashedAnywhereWithoutServer(t *testing.T) {
	for n, survived := 1, false; !survived; n++ {
		t.Run(fmt.Sprint("after act ", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in := intent()
				g := w.guestAt(in, "10.17.34.51")
				w.begin().set(in)
				settle(2 * time.Minute)
				in = prepared(in)
				w.agent.set(in)
				settle(time.Second)
				w.crash(n)
				w.agent.set(switched(in))
				settle(20 * time.Second)
				if survived = !w.died(); survived {
					return
				}
				monitored := func(is bool) {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.unmonitored = !is
				}
				monitored(false) // for a while
				w.begin()
				settle(time.Second)
				monitored(true)
				settle(20 * time.Second)
				row := w.rows[23].Epoch
				place, _, _, ok := w.agent.get(23).inForce()
				if !g.link || !ok || place.Epoch != row || w.published[23] != row {
					t.Errorf("link up: %t; row of %s, in force: %t, published %s", g.link, row, ok, w.published[23])
				}
			})
		})
	}
}

// A machine that dies at once is started again, but not in a loop.
func TestMachineThatKeepsDying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
		w.guestAt(in, "").link = false
		w.dies = true
		w.begin().set(in)
		settle(2 * time.Minute)
		starts := 0
		for _, act := range w.acts {
			if act == "start vm-23" {
				starts++
			}
		}
		if starts < 3 || starts > 10 {
			t.Errorf("started %d times in two minutes", starts)
		}
	})
}

// Without a server a restarted agent keeps leases and documents going, and
// changes nothing (invariant 6). Not even what it was told before, since that
// may have been undone.
func TestRestartWithoutServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
		w.guestAt(in, "10.17.34.51")
		w.begin().set(in)
		settle(time.Minute)
		w.begin()
		settle(time.Minute)
		if w.docs[23] == nil {
			t.Error("no document")
		}
		if w.opened[23] != w.session {
			t.Errorf("the guest's agent was last dialled by session %d of %d", w.opened[23], w.session)
		}
		p := w.agent.get(23)
		if p == nil {
			t.Fatal("the port is not served")
		}
		if place, ifindex, mac, ok := p.inForce(); !ok || place.Epoch != in.Current.Epoch || ifindex != 723 || mac != in.MAC {
			t.Errorf("in force: %v, tap %d, %s, %t", place, ifindex, mac, ok)
		}
	})
}

// What is late, doubled or older than what is in force changes nothing.
func TestLateAndDuplicateIntents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := intent()
		w.guestAt(first, "10.17.34.51")
		ps := w.begin()
		ps.set(first)
		settle(time.Second)
		next := prepared(first)
		ps.set(next)
		settle(time.Second)
		now := switched(next)
		ps.set(now)
		settle(2 * time.Minute)
		acts := len(w.acts)
		for _, in := range []vnet.Intent{now, next, first, now, now} {
			ps.set(in)
			settle(time.Second)
		}
		if len(w.acts) != acts {
			t.Errorf("acts: %v", w.acts[acts:])
		}
		if w.rows[23].Epoch != now.Current.Epoch {
			t.Errorf("row went to %s", w.rows[23].Epoch)
		}
	})
}
