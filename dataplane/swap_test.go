package dataplane

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

func machine(power vnet.Power) *vnet.Machine {
	return &vnet.Machine{ID: "vm-23", Image: "tiny", CPUs: 1, Memory: 96, Power: power}
}

// inOrder fails unless the world saw these acts, in this order.
func (w *world) inOrder(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := w.acts
	for _, act := range want {
		i := slices.Index(rest, act)
		if i < 0 {
			w.t.Fatalf("no %q in its place, in:\n%s", act, strings.Join(w.acts, "\n"))
		}
		rest = rest[i+1:]
	}
}

// settle lets everything happen that happens within d.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// A VM boots with its tap, its row and its document there before it runs.
func TestFirstPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
		w.guestAt(in, "").link = false
		w.begin().set(in)
		settle(time.Second)

		w.inOrder("tap 23", "attach 23", "row 23 3.7 vni 0xabcdef", "publish 23 3.7", "start vm-23")
		want := []vnet.StatusPhase{vnet.StatusFlipped, vnet.StatusFlipped, vnet.StatusLeased, vnet.StatusPublished, vnet.StatusConfirmed}
		if got := w.phases(in.Current.Epoch); !slices.Equal(got, want) {
			t.Errorf("reported %v, want %v", got, want)
		}
		if s := w.last(in.Current.Epoch); s.Power != vnet.PowerOn || s.Guest == nil || s.Rung != "" {
			t.Errorf("last status %+v", s)
		}
	})
}

// S65, S66, S69, S71, S73, S74: the four steps of a swap, in order, and what is
// reported of them.
func TestSwap(t *testing.T) {
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
		if got := w.phases(in.Next.Epoch); !slices.Equal(got, []vnet.StatusPhase{vnet.StatusPrepared}) {
			t.Fatalf("staged: %v", got)
		}
		if w.rows[23].Epoch != in.Current.Epoch || !g.link {
			t.Fatal("staging touched the guest")
		}
		in = switched(in)
		ps.set(in)
		settle(time.Second)

		w.inOrder("timed 23 true", "link 23 false", "row 23 3.8 vni 0x123457", "link 23 true", "publish 23 3.8")
		s := w.last(in.Current.Epoch)
		if s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 20ms" || g.ca != in.Current.Addrs[0].CA {
			t.Errorf("guest at %s, last status %+v", g.ca, s)
		}
		var hops []string
		for _, h := range s.Hops {
			hops = append(hops, h.Name)
		}
		if got := strings.Join(hops, " "); got != "stage link_down flip link_up dhcp seen publish report" {
			t.Errorf("hops: %s", got)
		}
		if up, down := s.Hops[3].At, s.Hops[1].At; up.Sub(down) != 20*time.Millisecond {
			t.Errorf("link was down for %s", up.Sub(down))
		}
		settle(2 * time.Minute)
		if w.rows[23].Timed {
			t.Error("the stopwatch runs for ever")
		}
	})
}

// A guest that has the new address already is asked at once, and not bounced.
func TestSwapWithoutTrigger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		g := w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		in.Next.Trigger = vnet.TriggerNone
		ps.set(in)
		settle(time.Second)
		w.mu.Lock()
		g.ca = in.Next.Addrs[0].CA
		w.mu.Unlock()
		in = switched(in)
		begun := time.Now()
		ps.set(in)
		settle(500 * time.Millisecond)
		s := w.last(in.Current.Epoch)
		if s.Phase != vnet.StatusConfirmed || s.Rung != "none" || g.cuts() != 0 {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
		for _, h := range s.Hops {
			if h.Name == "publish" && h.At.Sub(begun) > time.Millisecond {
				t.Errorf("published after %s", h.At.Sub(begun))
			}
		}
	})
}

// The ladder is climbed until the guest notices, and what worked is tried first
// for the next guest of the image.
func TestLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Machine = machine(vnet.PowerOn)
		g := w.guestAt(in, "10.17.34.51")
		w.running["vm-23"] = true
		g.notices = 1100 * time.Millisecond
		ps := w.begin()
		for _, want := range []int{3, 1} {
			g.bounced = 0
			ps.set(in)
			settle(time.Minute)
			in = prepared(in)
			ps.set(in)
			settle(time.Minute)
			in = switched(in)
			ps.set(in)
			settle(12 * time.Second)
			s := w.last(in.Current.Epoch)
			if g.cuts() != want || s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 6.5s" {
				t.Errorf("bounced %d times, want %d; last status %+v", g.cuts(), want, s)
			}
		}
	})
}

// A guest that never follows is failed, and bounced less and less often.
func TestLadderEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		g := w.guestAt(in, "10.17.34.51")
		g.deaf = true
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(21 * time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFailed || s.Error == "" || g.cuts() != 4 {
			t.Errorf("after the ladder: bounced %d times, %+v", g.cuts(), s)
		}
		settle(10 * time.Minute)
		if g.cuts() < 10 || g.cuts() > 20 {
			t.Errorf("bounced %d times in ten minutes", g.cuts())
		}
		w.mu.Lock()
		g.deaf = false
		w.mu.Unlock()
		settle(2 * time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Error != "" {
			t.Errorf("heard at last: %+v", s)
		}
	})
}

// A swap is undone by a higher epoch, also while the ladder is being climbed;
// being seen at the old address is proof enough.
func TestUndo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		g := w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		w.mu.Lock()
		g.deaf = true
		w.mu.Unlock()
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(1500 * time.Millisecond)
		if len(w.released) != 0 {
			t.Errorf("the rules that an undo goes back to have no room any more in %v", w.released)
		}
		in.Current = place("red", red, "10.17.34.51", 9)
		in.Current.Swap, in.Current.Undo, in.Current.Trigger = "s-5", true, vnet.TriggerBounce
		ps.set(in)
		settle(100 * time.Millisecond)
		s := w.last(in.Current.Epoch)
		if s.Phase != vnet.StatusConfirmed || !g.link || w.rows[23].VNI != red || w.published[23] != in.Current.Epoch {
			t.Errorf("link %t, row %+v, published %s, last status %+v", g.link, w.rows[23], w.published[23], s)
		}
		if want := []vnet.Epoch{in.Current.Epoch}; !slices.Equal(w.released, want) {
			t.Errorf("room for the way back was given up in %v, want %v", w.released, want)
		}
	})
}

// Room for the way back is kept for as long as the swap may be undone, whatever the
// guest has done, and not a moment longer: also by an agent that starts meanwhile,
// and by one that starts when all is over.
func TestRoomForTheWayBack(t *testing.T) {
	for name, reports := range map[string]bool{"the guest reports": true, "nobody reports": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in := intent()
				w.guestAt(in, "10.17.34.51").reports = reports
				ps := w.begin()
				restart := func() {
					w.end()
					ps = w.begin()
					settle(time.Minute) // before a server speaks
					ps.set(in)
					settle(time.Minute)
				}
				kept := func(when string) {
					t.Helper()
					if len(w.released) != 0 {
						t.Errorf("%s: given up in %v", when, w.released)
					}
				}
				given := func(when string) {
					t.Helper()
					if want := []vnet.Epoch{in.Current.Epoch}; !slices.Equal(w.released, want) {
						t.Errorf("%s: given up in %v, want %v", when, w.released, want)
					}
					w.released = nil
				}
				ps.set(in)
				settle(time.Second)
				in = prepared(in)
				ps.set(in)
				settle(time.Second)
				kept("prepared")
				in = switched(in)
				ps.set(in)
				settle(time.Hour)
				kept("the caller takes its time")
				ps.set(intent())
				settle(time.Second)
				ps.set(in)
				kept("what was, comes late")
				restart()
				kept("and the agent starts anew")
				in.Current.Undoable = false
				ps.set(in)
				settle(time.Second)
				given("committed")
				ps.set(in)
				settle(time.Hour)
				kept("for the second time")
				restart()
				given("an agent that knows of no swap")
			})
		})
	}
}

// A stopped VM is flipped without a proof, and proves itself when it boots.
func TestSwapOfAStoppedMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOff)
		g := w.guestAt(in, "")
		g.link = false
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFlipped || s.Power != vnet.PowerOff || g.cuts() != 0 {
			t.Errorf("stopped: %+v", s)
		}
		w.mu.Lock()
		g.asks = 40 * time.Second // to boot
		w.mu.Unlock()
		in.Machine = machine(vnet.PowerOn)
		ps.set(in)
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Power != vnet.PowerOn || g.cuts() != 0 {
			t.Errorf("booted, and bounced %d times: %+v", g.cuts(), s)
		}
		in.Machine = machine(vnet.PowerOff)
		ps.set(in)
		settle(time.Second)
		if s := w.last(in.Current.Epoch); s.Power != vnet.PowerOff || w.running["vm-23"] {
			t.Errorf("stopped again: %+v", s)
		}
	})
}

// After a reboot of the host nothing is in force: machines boot where they were
// last, which a swap led to, and are not bounced while they do.
func TestHostRebooted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := switched(prepared(intent()))
		in.Tap, in.Monitor, in.Machine = "", "", machine(vnet.PowerOn)
		g := w.guestAt(in, "")
		g.link, g.asks = false, 40*time.Second
		w.begin().set(in)
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || g.cuts() != 0 {
			t.Errorf("bounced %d times: %+v", g.cuts(), s)
		}
		for _, s := range w.statuses {
			if s.Phase == vnet.StatusFailed {
				t.Errorf("failed while it booted: %+v", s)
			}
		}
	})
}

// Invariant 11: a partial report is not the success of a final document, nor the
// other way round.
func TestPartialIsNotFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name, tag, kind string
			ok              bool
			want            vnet.StatusPhase
		}{
			{"pooled", vnet.TagPartial, vnet.ReportPartial, true, vnet.StatusConfirmed},
			{"final", "", vnet.ReportFinal, true, vnet.StatusConfirmed},
			{"partial of a final document", "", vnet.ReportPartial, true, vnet.StatusPublished},
			{"final of a partial document", vnet.TagPartial, vnet.ReportFinal, true, vnet.StatusPublished},
			{"final failure", "", vnet.ReportFinal, false, vnet.StatusPublished},
		} {
			w := newWorld(t)
			in := intent()
			in.Current.Document.Tag = c.tag
			w.guestAt(in, "10.17.34.51").reports = false
			ps := w.begin()
			ps.set(in)
			settle(time.Second)
			r := vnet.GuestReport{Epoch: in.Current.Epoch, Kind: c.kind, OK: c.ok, At: time.Now()}
			if err := ps.get(23).offer(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			if s := w.last(in.Current.Epoch); s.Phase != c.want || s.Guest == nil || s.Guest.Kind != c.kind {
				t.Errorf("%s: %+v", c.name, s)
			}
			r.Error = "command app: exit status 3" // that ran after the report
			if err := ps.get(23).offer(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			if s := w.last(in.Current.Epoch); s.Phase != c.want || s.Guest.Error != r.Error {
				t.Errorf("%s, with a later report: %+v", c.name, s)
			}
			w.end()
		}
	})
}
