package dataplane

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// A guest that speaks both families and follows with one only has not followed.
func TestBothFamiliesAreProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := dualSwap(w, func(_ *vnet.Intent, g *guest) { g.deaf6 = true })
		settle(30 * time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFailed || g.cuts() < 2 {
			t.Fatalf("after %d cuts: last status %+v", g.cuts(), s)
		}
		if got := strings.Count(w.heard(), blueRouter); got < 2*2 {
			t.Errorf("told %d times: after each cut it is told anew", got)
		}
		w.mu.Lock()
		g.deaf6 = false
		w.mu.Unlock()
		settle(2 * time.Minute)
		s := w.last(in.Current.Epoch)
		if s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 6.5s" {
			t.Errorf("last status %+v", s)
		}
		for _, hop := range []string{"dhcp", "dhcpv6"} {
			if !slices.ContainsFunc(s.Hops, func(h vnet.Hop) bool { return h.Name == hop }) {
				t.Errorf("no %s in %+v", hop, s.Hops)
			}
		}
	})
}

// A client that has leased may look for others with its address for seconds before
// it uses it, and for the other family's only then. It isn't thrown back meanwhile; after
// that one that has leased for one family only is cut off for long. One that stirs has
// three seconds more, but not for ever if it comes to nothing.
func TestGuestSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := dualSwap(w, func(_ *vnet.Intent, g *guest) { g.checks = 8 * time.Second })
		settle(10 * time.Second)
		if s := w.last(in.Current.Epoch); g.cuts() != 1 || s.Phase != vnet.StatusConfirmed {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, g := dualSwap(w, func(_ *vnet.Intent, g *guest) { g.checks, g.deaf6 = 8*time.Second, true })
		settle(6 * time.Second)
		if g.cuts() != 1 {
			t.Errorf("bounced %d times", g.cuts())
		}
		settle(4 * time.Second)
		if g.cuts() != 2 || g.link {
			t.Errorf("bounced %d times, link is %t: it is to be dark for long", g.cuts(), g.link)
		}
	})
}

// A client that has leased for one family and still works at the other has heard its
// link: another cut would throw it back in both, and what is left of the leader's 25 s
// is too short for a dhcpcd to begin anew.
func TestGuestAtWorkIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := dualSwap(w, func(in *vnet.Intent, g *guest) {
			g.deaf6 = true
			next := in.Next.Epoch
			for i := range 18 { // from a second after the switch on
				time.AfterFunc(time.Duration(i+2)*time.Second, func() { w.stir(in.ID, next) })
			}
			time.AfterFunc(20*time.Second, func() {
				w.mu.Lock()
				p := w.agent.get(in.ID)
				g.deaf6 = false
				w.mu.Unlock()
				g.ask6(p)
			})
		})
		settle(19 * time.Second)
		if s := w.last(in.Current.Epoch); g.cuts() != 1 || s.Phase != vnet.StatusConfirmed {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
}

// TestAFrameIsNoProofOfIPv6: the datapath's stopwatch doesn't tell a frame of the new
// address from one of the guest's link-local address, or of the other family.
func TestAFrameIsNoProofOfIPv6(t *testing.T) {
	for name, want := range map[string]vnet.StatusPhase{"IPv4": vnet.StatusPublished, "IPv6": vnet.StatusFlipped, "both": vnet.StatusFlipped} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			next := intent().Current.Epoch + 1
			in, _ := dualSwap(w, func(in *vnet.Intent, g *guest) {
				in.Next.Addrs = map[string][]vnet.Addr{"IPv4": in.Next.Addrs[:1], "IPv6": in.Next.Addrs[1:], "both": in.Next.Addrs}[name]
				g.deaf, in.Next.Trigger = true, vnet.TriggerNone
				time.AfterFunc(1500*time.Millisecond, func() {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.times = Times{Epoch: next, Seen: time.Now()}
				})
			})
			settle(time.Second)
			if s := w.last(in.Current.Epoch); s.Phase != want {
				t.Errorf("%s: %s, want %s", name, s.Phase, want)
			}
		})
	}
}

// A guest that follows without a cut has done so by the router's word only if it has its
// IPv6 address from it, or by it.
func TestRungWithoutTrigger(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*vnet.Intent)
		asks6  bool
		want   string
	}{
		"both addresses by hand": {nothing, false, "none"},
		"IPv6 by DHCPv6":         {nothing, true, "ra"},
		"IPv6 of the prefix":     {func(in *vnet.Intent) { in.Next.Addrs[1].SLAAC = true }, false, "ra"},
		"IPv4 only":              {func(in *vnet.Intent) { in.Next.Addrs = in.Next.Addrs[:1] }, false, "none"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			in, g := dualSwap(w, func(in *vnet.Intent, g *guest) {
				in.Next.Trigger = vnet.TriggerNone
				c.change(in)
				next := in.Next.Addrs
				time.AfterFunc(1500*time.Millisecond, func() {
					w.mu.Lock()
					g.ca, g.notices6 = next[0].CA, 0
					if len(next) > 1 && !c.asks6 {
						g.ca6 = next[1].CA
					}
					p := w.agent.get(in.ID)
					w.mu.Unlock()
					if c.asks6 {
						g.ask6(p)
					}
				})
			})
			settle(10 * time.Second)
			if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != c.want || g.cuts() != 0 {
				t.Errorf("%s: %d cuts, last status %+v", name, g.cuts(), s)
			}
		})
	}
}

// stir lets a guest look for a router.
func (w *world) stir(id vnet.PortID, e vnet.Epoch) {
	w.mu.Lock()
	agent := w.agent
	w.mu.Unlock()
	if agent != nil {
		agent.get(id).stirs(e)
	}
}

func TestGuestStirs(t *testing.T) {
	for stirs, cutAgain := range map[int]time.Duration{0: 6, 3: 7, 30: 15} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			_, g := dualSwap(w, func(in *vnet.Intent, g *guest) {
				g.deaf = true
				next := in.Next.Epoch
				for i := range stirs { // from two seconds after the switch on
					time.AfterFunc(time.Duration(i+3)*time.Second, func() { w.stir(in.ID, next) })
				}
			})
			settle((cutAgain-2)*time.Second - 100*time.Millisecond)
			before := g.cuts()
			settle(time.Second)
			if got := []int{before, g.cuts()}; !slices.Equal(got, []int{1, 2}) {
				t.Errorf("stirs %d times: cut %d times before %d s, then %d", stirs, before, cutAgain, got[1])
			}
		})
	}
}

// IPv6 takes its time: a guest that needs nearly six seconds is not bounced again.
func TestPatienceForIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, g := dualSwap(w, func(_ *vnet.Intent, g *guest) { g.asks = 5900 * time.Millisecond })
		settle(6 * time.Second)
		if g.cuts() != 1 {
			t.Errorf("bounced %d times", g.cuts())
		}
	})
}

// A guest that makes its address itself leases nothing.
func TestProofBySLAAC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := dualSwap(w, func(in *vnet.Intent, g *guest) {
			in.Next.Addrs = in.Next.Addrs[1:]
			in.Next.Addrs[0].SLAAC = true
			g.deaf, g.ca6 = true, in.Next.Addrs[0].CA
		})
		if s := w.last(in.Current.Epoch); s.Phase < vnet.StatusLeased || s.Phase == vnet.StatusFailed || g.cuts() != 1 {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
}
