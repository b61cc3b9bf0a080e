package dataplane

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// atRed begins with a guest in a place of these addresses' families that has no
// IPv6 client, and none of its addresses, and returns the world's agent.
func (w *world) atRed(in vnet.Intent) (*ports, *guest) {
	g := w.guestAt(in, "10.17.34.51")
	g.deaf6 = true
	ps := w.begin()
	ps.set(in)
	settle(10 * time.Second)
	return ps, g
}

// goes takes the guest to its next place, which has both families.
func goes(ps *ports, in vnet.Intent) vnet.Intent {
	in = prepared(in)
	dual(in.Next, "fd28:394a::62")
	ps.set(in)
	settle(time.Second)
	in = switched(in)
	ps.set(in)
	return in
}

// A guest without IPv6 in a network that has both families is in its place, says what
// it has to say, and follows at once: in one that it has left, it showed IPv4 only.
func TestGuestWithoutIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		dual(&in.Current, "fd17:2839::51")
		ps, g := w.atRed(in)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || !has(s, "no proof of IPv6") {
			t.Fatalf("first place: %+v", s)
		}
		in = goes(ps, in)
		settle(time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != "bounce 20ms" || g.cuts() != 1 || has(s, "no proof of IPv6") {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
}

// Of a guest that comes from a network without IPv6 nobody knows whether it has any:
// it is waited for, but the guest isn't thrown back for it.
func TestIPv6IsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		ps, g := w.atRed(in)
		in = goes(ps, in)
		settle(companion - 100*time.Millisecond)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFlipped {
			t.Errorf("not waited for: %+v", s)
		}
		settle(time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || g.cuts() != 1 || !has(s, "no proof of IPv6") {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
}

// A guest that got IPv6 after it was taken for one without has to show it again:
// before each flip it is asked anew.
func TestIPv6CameLater(t *testing.T) {
	for name, leases := range map[string]bool{"by DHCPv6": true, "by a prefix": false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			in := intent()
			dual(&in.Current, "fd17:2839::51")
			ps, g := w.atRed(in)
			if leases {
				ps.get(in.ID).acked(ipv6, in.Current.Epoch)
			} else {
				w.mu.Lock()
				g.ca6 = in.Current.Addrs[1].CA
				w.mu.Unlock()
			}
			in = goes(ps, in)
			settle(30 * time.Second)
			if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFailed {
				t.Errorf("%s: last status %+v", name, s)
			}
		})
	}
}

// What a guest speaks outlives the host's agent.
func TestSpeechIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		dual(&in.Current, "fd17:2839::51")
		_, g := w.atRed(in)
		ps := w.begin()
		ps.set(in)
		settle(10 * time.Second)
		in = goes(ps, in)
		settle(time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || g.cuts() != 1 {
			t.Errorf("bounced %d times, last status %+v", g.cuts(), s)
		}
	})
}

func has(s vnet.Status, hop string) bool {
	return slices.ContainsFunc(s.Hops, func(h vnet.Hop) bool { return h.Name == hop })
}
