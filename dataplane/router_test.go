package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
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

// isCorrected gives the place another name server, and wants that told.
func (w *world) isCorrected(in vnet.Intent) {
	w.t.Helper()
	in.Current.DHCP.DNS = []netip.Addr{netip.MustParseAddr("fd53:6a7b::8c9d")}
	w.agent.set(in)
	settle(time.Second)
	if got := w.heard(); got != corrected {
		w.t.Errorf("another name server is told as %s", got)
	}
}

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
		w.isCorrected(in)
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
		w.isCorrected(in)
	})
}
