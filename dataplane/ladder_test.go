package dataplane

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// A line is a guest that is swapped again and again.
type line struct {
	w  *world
	ps *ports
	in vnet.Intent
	g  *guest
}

// lineOf gives the world a VM of an image behind the port, at its first place.
func (w *world) lineOf(ps *ports, id vnet.PortID, image string, change func(*vnet.Intent)) *line {
	in := intent()
	in.ID, in.Port, in.VM = id, fmt.Sprintf("p-%d", id), fmt.Sprintf("vm-%d", id)
	in.Tap, in.Machine = fmt.Sprintf("tap%d", id), machine(vnet.PowerOn)
	in.Machine.ID, in.Machine.Image = in.VM, image
	change(&in)
	l := &line{w, ps, in, w.guestAt(in, "10.17.34.51")}
	w.mu.Lock()
	w.running[in.VM] = true
	w.mu.Unlock()
	ps.set(in)
	settle(10 * time.Second)
	return l
}

// swap moves the guest, and returns the rung on which it was seen and how often its
// link was cut before.
func (l *line) swap() string {
	before := l.g.cuts()
	l.begins(20 * time.Second)
	s := l.w.last(l.in.Current.Epoch)
	if s.Phase != vnet.StatusConfirmed {
		return fmt.Sprintf("%+v", s)
	}
	return fmt.Sprintf("%s after %d", s.Rung, l.g.cuts()-before)
}

func (l *line) notices(d time.Duration) {
	l.w.mu.Lock()
	l.g.notices = d
	l.w.mu.Unlock()
}

func (l *line) swaps(t *testing.T, what string, want ...string) {
	t.Helper()
	var got []string
	for range want {
		got = append(got, l.swap())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func nothing(*vnet.Intent) {}

// What one slow guest did to its image is over after some swaps: one in four begins a
// rung lower. Where the lower one really doesn't do, that is tried ever less often.
func TestLadderComesDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l := w.lineOf(w.begin(), 23, "tiny", nothing)
		l.notices(1100 * time.Millisecond)
		const long = "bounce 6.5s after 1"
		l.swaps(t, "needs a long cut", "bounce 6.5s after 3", long, long, long, "bounce 6.5s after 2",
			long, long, long, long, long, long, "bounce 6.5s after 2", long)
		l.notices(5 * time.Millisecond)
		var last []string
		for range 40 {
			last = append(last, l.swap())
		}
		i, j := slices.Index(last, "bounce 200ms after 1"), slices.Index(last, "bounce 20ms after 1")
		if i != 11 || j != i+4 || slices.ContainsFunc(last[j:], func(s string) bool { return s != last[j] }) {
			t.Errorf("from where a short one does: %q", last)
		}
	})
}

// A guest of which one client heard its link and the other didn't is given a long cut
// at once. That is no rung for others.
func TestJumpIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ps := w.begin()
		l := w.lineOf(ps, 23, "tiny", func(in *vnet.Intent) { dual(&in.Current, "fd17:2839::51") })
		l.g.ca6, l.g.notices6 = l.in.Current.Addrs[1].CA, 1100*time.Millisecond
		l.in = prepared(l.in)
		dual(l.in.Next, "fd28:394a::62")
		ps.set(l.in)
		settle(time.Second)
		l.in = switched(l.in)
		ps.set(l.in)
		settle(30 * time.Second)
		s := w.last(l.in.Current.Epoch)
		if s.Rung != "bounce 6.5s" || l.g.cuts() != 2 {
			t.Errorf("with one deaf client: %q after %d cuts: %+v", s.Rung, l.g.cuts(), s)
		}
		w.lineOf(ps, 24, "tiny", nothing).swaps(t, "the next of its image", "bounce 20ms after 1")
	})
}

// What the whole ladder did not do is no rung for others, whatever woke the guest then.
func TestLateGuestIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ps := w.begin()
		l := w.lineOf(ps, 23, "tiny", nothing)
		w.mu.Lock()
		l.g.deaf = true
		w.mu.Unlock()
		l.swap()
		w.mu.Lock()
		l.g.deaf = false
		w.mu.Unlock()
		settle(2 * time.Minute)
		if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 6.5s" {
			t.Errorf("heard at last: %+v", s)
		}
		w.lineOf(ps, 24, "tiny", nothing).swaps(t, "the next of its image", "bounce 20ms after 1")
	})
}

// A guest that is seen on its way back may never have gone: its rung says nothing.
func TestUndoIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ps := w.begin()
		l := w.lineOf(ps, 23, "tiny", nothing)
		l.notices(1100 * time.Millisecond)
		back := func() {
			for range 5 {
				l.in.Current.Epoch, l.in.Current.Undo = l.in.Current.Epoch+1, true
				ps.set(l.in)
				settle(20 * time.Second)
				if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 6.5s" {
					t.Errorf("way back: %+v", s)
				}
			}
		}
		l.swaps(t, "needs a long cut", "bounce 6.5s after 3", "bounce 6.5s after 1", "bounce 6.5s after 1")
		back()
		l.swaps(t, "ways back don't count", "bounce 6.5s after 1")
		back()
		l.swaps(t, "and are no tries", "bounce 6.5s after 2")
	})
}

// What is remembered is an image's: another VM of it profits, one of another image
// doesn't, and what was learned of owners' guests is not taken for those in the pool.
func TestRungIsOfAnImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ps := w.begin()
		pooled := func(in *vnet.Intent) { in.Current.Document.Tag = vnet.TagPartial }
		const first, next = "bounce 6.5s after 3", "bounce 6.5s after 1"
		for i, c := range []struct {
			name, image string
			change      func(*vnet.Intent)
			want        string
		}{
			{"the first", "tiny", nothing, first},
			{"another one of its image", "tiny", nothing, next},
			{"one of another image", "small", nothing, first},
			{"one that waits in the pool", "tiny", pooled, first},
			{"another one in the pool", "tiny", pooled, next},
			{"somebody else's", "", func(in *vnet.Intent) { in.Machine = nil }, first},
			{"another one of somebody else's", "", func(in *vnet.Intent) { in.Machine = nil }, first},
		} {
			l := w.lineOf(ps, vnet.PortID(31+i), c.image, c.change)
			l.notices(1100 * time.Millisecond)
			l.swaps(t, c.name, c.want)
		}
	})
}

// What is remembered of somebody else's VM ends with its port: the next one of that name
// may be another VM, and names come and go for ever.
func TestRungOfAPortEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ps := w.begin()
		attached := func(in *vnet.Intent) { in.Machine = nil }
		for range 2 {
			l := w.lineOf(ps, 23, "", attached)
			l.notices(1100 * time.Millisecond)
			l.swaps(t, "attached", "bounce 6.5s after 3", "bounce 6.5s after 1")
			l.in.Gone = true
			ps.set(l.in)
			settle(time.Second)
			if len(ps.rooms.rungs.has) != 0 {
				t.Errorf("remembered of ports that are gone: %v", ps.rooms.rungs.has)
			}
			ps.gone(l.in.Port)
			settle(time.Second)
		}
	})
}

// A guest that is known to follow slowly is not cut again while it does: what the last
// ones of its image took counts, until quicker ones have followed.
func TestSlowGuestGetsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ps := w.begin()
		l := w.lineOf(ps, 23, "tiny", nothing)
		asks := func(l *line, d time.Duration) {
			w.mu.Lock()
			l.g.asks = d
			w.mu.Unlock()
		}
		const once, twice = "bounce 20ms after 1", "bounce 200ms after 2"
		asks(l, 1800*time.Millisecond)
		l.swaps(t, "slow", once)
		asks(l, 2400*time.Millisecond)
		l.swaps(t, "a little slower", once, once)
		other := w.lineOf(ps, 24, "small", nothing)
		asks(other, 2400*time.Millisecond)
		other.swaps(t, "one of another image", twice)
		asks(l, time.Millisecond)
		for range 12 {
			l.swaps(t, "quick", once)
		}
		asks(l, 2400*time.Millisecond)
		l.swaps(t, "slow again", twice)
	})
}

// What slow guests of an image get doesn't cost one of it that only a long cut wakes its
// swap, which has 25 s: it is seen by then, and where it was seen the next one begins.
func TestSlowOnesLeaveTheLongCutItsTime(t *testing.T) {
	for name, second := range map[string]func(*vnet.Place, string){"IPv4": func(*vnet.Place, string) {}, "both": dual} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				ps := w.begin()
				l := w.lineOf(ps, 23, "tiny", func(in *vnet.Intent) { second(&in.Current, "fd17:2839::51") })
				if _, ok := l.in.Current.V6(); ok {
					l.g.ca6 = l.in.Current.Addrs[1].CA
				}
				ps.rungs.remember(climber{image: "tiny"}, bounces, 0, 10*time.Second, false)
				l.notices(1100 * time.Millisecond)
				w.mu.Lock()
				l.g.asks = 3 * time.Second
				w.mu.Unlock()
				for _, cuts := range []int{2, 1} {
					l.in, l.g.bounced = prepared(l.in), 0
					second(l.in.Next, "fd28:394a::62")
					ps.set(l.in)
					settle(time.Second)
					l.in = switched(l.in)
					ps.set(l.in)
					settle(24 * time.Second)
					if s := w.last(l.in.Current.Epoch); s.Rung != "bounce 6.5s" || l.g.cuts() != cuts {
						t.Errorf("on %q after %d cuts, not %d: %+v", s.Rung, l.g.cuts(), cuts, s)
					}
				}
			})
		})
	}
}

// Who gives a guest longer than 25 s gets a ladder that goes on as long: the long cut
// again, as often as there is time for it.
func TestLadderGoesOnAsLongAsTheLeader(t *testing.T) {
	for _, c := range []struct {
		budget time.Duration
		failed bool
		cuts   int
	}{{0, true, 4}, {25 * time.Second, true, 4}, {time.Minute, false, 4}} {
		t.Run(c.budget.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				l := w.lineOf(w.begin(), 23, "tiny", nothing)
				w.mu.Lock()
				l.g.deaf = true
				w.mu.Unlock()
				l.in = prepared(l.in)
				l.in.Next.LeaseBudget = c.budget
				l.ps.set(l.in)
				settle(time.Second)
				l.in = switched(l.in)
				l.ps.set(l.in)
				settle(26 * time.Second)
				if s := w.last(l.in.Current.Epoch); (s.Phase == vnet.StatusFailed) != c.failed || l.g.cuts() != c.cuts {
					t.Errorf("after 26 s and %d cuts: %+v", l.g.cuts(), s)
				}
			})
		})
	}
}

// Guests that could not be seen within the patience of a lower rung make no try of it.
func TestNoTryOfSlowGuests(t *testing.T) {
	c := climber{image: "tiny"}
	for _, k := range []struct {
		slow, least time.Duration
		try         bool
	}{{1900 * time.Millisecond, 0, true}, {2100 * time.Millisecond, 0, false}, {2100 * time.Millisecond, patience6, true}, {14 * time.Second, patience6, false}} {
		r := newRungs()
		for range tryAfter + 1 {
			r.remember(c, bounces, 1, k.slow, false)
		}
		if n, try := r.try(c, bounces, k.least); try != k.try || n != map[bool]int{true: 0, false: 1}[k.try] {
			t.Errorf("slow by %s, at least %s: rung %d, a try: %t", k.slow, k.least, n, try)
		}
	}
}

// A try begins where a guest is cut, and of those that are swapped at once one makes it.
func TestTry(t *testing.T) {
	c := climber{image: "tiny"}
	for _, k := range []struct {
		l          ladder
		from, want int
	}{{bounces, 1, 0}, {bounces, 2, 1}, {pooledCloudInit, 2, 0}, {pooledSavable, 2, 0}, {polledCloudInit, 3, 1}, {polledCloudInit, 1, 0}} {
		r := newRungs()
		for range tryAfter + 1 {
			r.remember(c, k.l, k.from, 0, false)
		}
		if n, try := r.try(c, k.l, 0); n != k.want || !try {
			t.Errorf("after rung %d: %d, a try: %t", k.from, n, try)
		}
		if n, try := r.try(c, k.l, 0); n != k.from || try {
			t.Errorf("beside it: %d, a try: %t", n, try)
		}
	}
	r := newRungs()
	r.remember(c, bounces, 2, 0, false)
	for range 9 {
		r.remember(c, bounces, 2, 0, true)
	}
	if h := r.has[c]; h.after != tryAtMost {
		t.Errorf("a try after %d swaps, want %d", h.after, tryAtMost)
	}
}
