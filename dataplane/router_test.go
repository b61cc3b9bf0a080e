package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// A said6 is a Router Advertisement that a guest got.
type said6 struct {
	at      time.Time
	ifindex int
	link    bool   // the guest's was up
	router  string // its link-local address
	seconds uint16 // its lifetime
}

type worldRouter world

func (f *worldRouter) Tell(ifindex int, frame []byte) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	link := true
	for _, g := range w.guests {
		link = link && g.link
	}
	w.told = append(w.told, said6{time.Now(), ifindex, link, net.IP(frame[22:38]).String(), binary.BigEndian.Uint16(frame[60:])})
	return nil
}

// heard lists the routers that the guest heard of, those taken back with a minus,
// and forgets them.
func (w *world) heard() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, s := range w.told {
		name := s.router
		if s.seconds == 0 {
			name = "-" + name
		}
		if !s.link && !w.killed || s.ifindex != 723 {
			w.t.Errorf("%s told to device %d with link %t", name, s.ifindex, s.link)
		}
		if !s.link {
			continue // nobody heard it
		}
		list = append(list, name)
	}
	w.told = nil
	return strings.Join(list, " ")
}

// ask6 is the DHCPv6 client beside the DHCPv4 one.
func (g *guest) ask6(p *port) {
	place, _, _, ok := p.inForce()
	if !ok {
		return
	}
	if a, has := place.V6(); has && !g.deaf6 && g.dark >= g.notices6 {
		g.w.mu.Lock()
		g.ca6 = a.CA
		g.w.mu.Unlock()
		p.acked(ipv6, place.Epoch)
	}
}

// probe6 lets guests answer a Neighbour Solicitation. The world is locked.
func (w *world) probe6(place *vnet.Place) {
	a, ok := place.V6()
	for id, g := range w.guests {
		if ok && a.CA == g.ca6 && g.link && w.rows[id].Epoch == place.Epoch {
			agent, epoch := w.agent, place.Epoch
			time.AfterFunc(100*time.Microsecond, func() {
				if p := agent.get(id); p != nil {
					p.answered(ipv6, epoch)
				}
			})
		}
	}
}

const (
	redRouter  = "fe80::5250:4c00:ab:cdef"
	blueRouter = "fe80::5250:4c00:12:3457"
)

// dual gives a place an IPv6 address as well.
func dual(p *vnet.Place, ca string) {
	p.Addrs = append(p.Addrs, vnet.Addr{CA: vnet.CA{Addr: netip.MustParseAddr(ca)}, Bits: 64})
}

// dualSwap brings a guest to blue, both places with both families, and returns
// the intent and the guest once the swap has begun.
func dualSwap(w *world, change func(*vnet.Intent, *guest)) (vnet.Intent, *guest) {
	in := intent()
	dual(&in.Current, "fd17:2839::51")
	g := w.guestAt(in, "10.17.34.51")
	g.ca6 = in.Current.Addrs[1].CA
	ps := w.begin()
	ps.set(in)
	settle(10 * time.Second)
	w.heard()
	in = prepared(in)
	dual(in.Next, "fd28:394a::62")
	change(&in, g)
	ps.set(in)
	settle(time.Second)
	in = switched(in)
	ps.set(in)
	settle(2 * time.Second)
	return in, g
}

// What is told in the two seconds before a swap's guest is looked at, and in a second
// after the router itself has changed.
const (
	both      = "-" + redRouter + " " + blueRouter
	heardBy2s = both + " " + blueRouter + " " + blueRouter + " " + both
	all3      = both + " " + blueRouter // the router takes back in its own name what it has said before
	corrected = all3 + " " + blueRouter + " " + blueRouter + " " + all3
)

// times is what is told so often: at once, then after each of tellGaps.
func times(n int, what ...string) string {
	return strings.TrimSuffix(strings.Repeat(strings.Join(what, " ")+" ", n), " ")
}

// The former router is taken back before the new one is told, as soon as the link
// is up and often in the seconds after that; then the router is told again before it is forgotten, and
// the former one no longer once nobody can believe in it.
func TestRouterIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, _ := dualSwap(w, func(*vnet.Intent, *guest) {})
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 20ms" {
			t.Fatalf("last status %+v", s)
		}
		if got := w.heard(); got != heardBy2s {
			t.Errorf("at once: %s", got)
		}
		settle(8 * time.Second)
		if got := w.heard(); got != both {
			t.Errorf("in the first seconds: %s", got)
		}
		settle(tellLeast - 20*time.Second)
		if got := w.heard(); got != "" {
			t.Errorf("too early: %s", got)
		}
		settle(tellMost - tellLeast + 20*time.Second)
		if got := w.heard(); !strings.HasPrefix(got, both) {
			t.Errorf("while a guest may believe in the former: %s", got)
		}
		settle(time.Hour - tellMost)
		w.heard()
		var last time.Time
		for range 20 {
			settle(tellMost)
			w.mu.Lock()
			for _, s := range w.told {
				if !last.IsZero() && s.at.Sub(last) > tellMost {
					t.Errorf("silence of %s, the lifetime is %d s", s.at.Sub(last), s.seconds)
				}
				last = s.at
			}
			w.mu.Unlock()
			if got := w.heard(); got == "" || strings.Contains(got, "-") || strings.Contains(got, redRouter) {
				t.Errorf("an hour later: %q", got)
			}
		}
	})
}

// A guest that has asked for its router since its link is back has heard of both. It is
// told no more, until something changes or the lifetime wants it.
func TestRouterIsNotToldToOneThatAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var id vnet.PortID
		in, _ := dualSwap(w, func(in *vnet.Intent, _ *guest) { id = in.ID })
		if got := w.heard(); got != heardBy2s {
			t.Errorf("before it asks: %s", got)
		}
		w.agent.get(id).answeredRouter(in.Current.Epoch)
		settle(tellLeast - 10*time.Second)
		if got := w.heard(); got != "" {
			t.Errorf("after it has asked: %s", got)
		}
		settle(tellMost)
		if got := w.heard(); !strings.HasPrefix(got, both) {
			t.Errorf("before its lifetime is over: %s", got)
		}
		in.Current.DHCP.DNS = []netip.Addr{netip.MustParseAddr("fd28:394a::53")}
		w.agent.set(in)
		settle(time.Second)
		if got := w.heard(); got != corrected {
			t.Errorf("what it has not heard yet is told as %s", got)
		}
	})
}

// An agent that is killed at any of its acts of a swap takes the former router
// back all the same.
func TestRouterIsTakenBackByTheNextAgent(t *testing.T) {
	for kill := 1; kill < 14; kill++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			in := intent()
			dual(&in.Current, "fd17:2839::51")
			g := w.guestAt(in, "10.17.34.51")
			g.ca6 = in.Current.Addrs[1].CA
			ps := w.begin()
			ps.set(in)
			settle(10 * time.Second)
			in = prepared(in)
			dual(in.Next, "fd28:394a::62")
			ps.set(in)
			settle(time.Second)
			in = switched(in)
			w.mu.Lock()
			w.countdown = kill
			w.mu.Unlock()
			ps.set(in)
			settle(time.Second)
			w.mu.Lock()
			w.countdown, w.killed = 0, true
			w.mu.Unlock()
			w.heard()
			w.begin().set(in)
			settle(20 * time.Second)
			if got := w.heard(); !strings.Contains(got, "-"+redRouter+" "+blueRouter) {
				t.Errorf("killed at act %d: heard %s", kill, got)
			}
			if s := w.last(in.Current.Epoch); s.Phase < vnet.StatusLeased || s.Phase == vnet.StatusFailed {
				t.Errorf("killed at act %d: last status %+v", kill, s)
			}
		})
	}
}

// Leaving for a network without IPv6 takes the router back and tells of none; one
// without IPv6 before and after hears nothing at all.
func TestRouterOfNoIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, _ := dualSwap(w, func(in *vnet.Intent, _ *guest) { in.Next.Addrs = in.Next.Addrs[:1] })
		if got := w.heard(); got != times(4, "-"+redRouter) {
			t.Errorf("heard %s", got)
		}
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed {
			t.Errorf("last status %+v", s)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		w.guestAt(in, "10.17.34.51")
		w.begin().set(in)
		settle(time.Hour)
		if got := w.heard(); got != "" {
			t.Errorf("without IPv6: heard %s", got)
		}
	})
}

// A router that the guest has left more than once is taken back once.
func TestRouterIsTakenBackOnce(t *testing.T) {
	red, blue := intent().Current, *prepared(intent()).Next
	dual(&red, "fd17:2839::51")
	dual(&blue, "fd28:394a::62")
	var list []former
	for _, p := range []*vnet.Place{&red, &blue, &red, nil, &blue} {
		list = leave(list, p, 1450)
	}
	if len(list) != 2 || list[0].Router.VNI != red.VNI || list[1].Router.VNI != blue.VNI {
		t.Errorf("taken back: %+v", list)
	}
}

// A place that changes within its epoch is told at once.
func TestRouterOfAChangedPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, _ := dualSwap(w, func(*vnet.Intent, *guest) {})
		settle(10 * time.Second)
		w.heard()
		in.Current.Document = &vnet.Document{Instance: "vm-23", Hostname: "another"}
		w.agent.set(in)
		settle(time.Second)
		if got := w.heard(); got != "" {
			t.Errorf("a document was told as %s", got)
		}
		in.Current.DHCP.DNS = []netip.Addr{netip.MustParseAddr("fd53:6a7b::8c9d")}
		w.agent.set(in)
		settle(time.Second)
		if got := w.heard(); got != corrected {
			t.Errorf("heard %s", got)
		}
	})
}

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
