package dataplane

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// pooled is a guest that waits in the pool.
func (w *world) pooled(p vnet.Personality) (vnet.Intent, *guest) {
	in := intent()
	in.Machine = machine(vnet.PowerOn)
	in.Machine.Personality = p
	in.Current.Document.Tag = vnet.TagPartial
	w.running["vm-23"] = true
	return in, w.guestAt(in, "10.17.34.51")
}

// TestPersonalities claims a VM of each kind out of the pool, and moves it once more
// when it is its owner's: the first time it is cloud-init that has to be woken, the
// second time the guest's own client.
func TestPersonalities(t *testing.T) {
	for _, c := range []struct {
		personality vnet.Personality
		guest       func(*guest)
		rung        string
		acts        []string
		hops        []string
	}{
		{vnet.PersonalityAgent, func(*guest) {}, "bounce 20ms",
			[]string{"link 23 false", "row 23 3.8 vni 0x123457", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "link_down", "flip", "link_up", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInit, func(g *guest) { g.notices = 150 * time.Millisecond }, "bounce 200ms",
			[]string{"link 23 false", "row 23 3.8 vni 0x123457", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "link_down", "flip", "link_up", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInit, func(g *guest) { g.notices, g.asks, g.works = 150*time.Millisecond, 7*time.Second, true }, "bounce 200ms", // on a busy host
			[]string{"link 23 false", "row 23 3.8 vni 0x123457", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "link_down", "flip", "link_up", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInit, func(g *guest) { g.deaf, g.polls, g.heard = true, true, true }, "renew", // rebooted in the pool
			[]string{"row 23 3.8 vni 0x123457", "renew 23", "publish 23 3.8"},
			[]string{"stage", "flip", "renew", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInitSavable, func(g *guest) { g.deaf, g.plugs, g.polls, g.heard = true, true, true, true }, "renew",
			[]string{"row 23 3.8 vni 0x123457", "renew 23", "publish 23 3.8"},
			[]string{"stage", "flip", "renew", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInit, func(g *guest) { g.heard, g.notices = true, 150*time.Millisecond }, "bounce 200ms", // it polled, and does no longer
			[]string{"row 23 3.8 vni 0x123457", "link 23 false", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "flip", "renew", "no proof by renew", "link_down", "link_up", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInit, func(g *guest) { g.deaf, g.polls = true, true }, "renew", // and not heard by this agent
			[]string{"link 23 false", "row 23 3.8 vni 0x123457", "link 23 true", "renew 23", "publish 23 3.8"},
			[]string{"stage", "link_down", "flip", "link_up", "no proof by bounce 200ms", "renew", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityCloudInitSavable, func(g *guest) { g.deaf, g.plugs = true, true }, "replug 20ms",
			[]string{"plug 23 false", "row 23 3.8 vni 0x123457", "plug 23 true", "publish 23 3.8"},
			[]string{"stage", "link_down", "flip", "link_up", "dhcp", "seen", "publish", "report"}},
		{vnet.PersonalityPlain, func(g *guest) { g.reports = false }, "bounce 20ms",
			[]string{"link 23 false", "row 23 3.8 vni 0x123457", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "link_down", "flip", "link_up", "dhcp", "seen", "publish"}},
	} {
		t.Run(string(c.personality)+" "+c.rung, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in, g := w.pooled(c.personality)
				c.guest(g)
				ps := w.begin()
				in = w.move(ps, in)
				w.inOrder(c.acts...)
				s := w.last(in.Current.Epoch)
				var hops []string
				for _, h := range s.Hops {
					hops = append(hops, h.Name)
				}
				if s.Rung != c.rung || !slices.Equal(hops, c.hops) || g.ca != in.Current.Addrs[0].CA {
					t.Errorf("guest at %s by %q, hops %q, want %q", g.ca, s.Rung, hops, c.hops)
				}
				w.mu.Lock()
				g.notices, g.asks, g.deaf = 5*time.Millisecond, 20*time.Millisecond, false
				w.mu.Unlock()
				in = w.move(ps, in)
				if s := w.last(in.Current.Epoch); s.Rung != "bounce 20ms" {
					t.Errorf("as its owner's it was moved by %q", s.Rung)
				}
			})
		})
	}
}

// An agent beside cloud-init does not speak for it, whichever way its report comes.
func TestAgentBesideCloudInitIsNoProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Machine = machine(vnet.PowerOn)
		in.Machine.Personality = vnet.PersonalityCloudInit
		w.guestAt(in, "10.17.34.51").reports = false
		w.running["vm-23"] = true
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		r := vnet.GuestReport{Epoch: in.Current.Epoch, Kind: vnet.ReportFinal, OK: true, At: time.Now()}
		for _, c := range []struct {
			say  func(context.Context, vnet.PortID, vnet.GuestReport) error
			want vnet.StatusPhase
		}{{ps.agentReport, vnet.StatusPublished}, {ps.guestReport, vnet.StatusConfirmed}} {
			if err := c.say(t.Context(), 23, r); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			if s := w.last(in.Current.Epoch); s.Phase != c.want || (s.Guest != nil) != (c.want == vnet.StatusConfirmed) {
				t.Errorf("got %+v, want %s", s, c.want)
			}
		}
	})
}

// An agent beside a cloud-init that waits in the pool is not asked in place of a cut:
// cloud-init waits for its link, and would sleep on while the agent's lease proves it there.
func TestAgentBesideCloudInitInThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := w.pooled(vnet.PersonalityCloudInit)
		g.hears, g.notices = true, 150*time.Millisecond
		ps := w.begin()
		in = w.move(ps, in)
		if s := w.last(in.Current.Epoch); s.Rung != "bounce 200ms" || g.cuts() != 1 {
			t.Errorf("moved by %q with %d cuts", s.Rung, g.cuts())
		}
		w.mu.Lock()
		g.notices = 5 * time.Millisecond
		w.mu.Unlock()
		in = w.move(ps, in)
		if s := w.last(in.Current.Epoch); s.Rung != agentRung || g.cuts() != 1 {
			t.Errorf("as its owner's it was moved by %q with %d cuts", s.Rung, g.cuts())
		}
	})
}

// cloud-init in the pool has no way into a network without IPv4: it is not even tried.
func TestPooledIPv6Only(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Machine = machine(vnet.PowerOn)
		in.Machine.Personality = vnet.PersonalityCloudInit
		in.Current.Document.Tag = vnet.TagPartial
		w.guestAt(in, "10.17.34.51")
		w.running["vm-23"] = true
		ps := w.begin()
		ps.set(in)
		settle(time.Minute)
		in = prepared(in)
		in.Next.Addrs = []vnet.Addr{{CA: vnet.CA{Addr: netip.MustParseAddr("fd17:34::62")}, Bits: 64}}
		ps.set(in)
		settle(time.Second)
		if s := w.last(in.Next.Epoch); s.Phase != vnet.StatusRefused || !strings.Contains(s.Error, errOnlyIPv4.Error()) {
			t.Errorf("got %+v", s)
		}
	})
}

// move prepares and makes a swap to the next place.
func (w *world) move(ps *ports, in vnet.Intent) vnet.Intent {
	ps.set(in)
	settle(time.Minute)
	in = prepared(in)
	ps.set(in)
	settle(time.Second)
	in = switched(in)
	ps.set(in)
	settle(10 * time.Second)
	return in
}

// What was pulled out is put in again by an agent that starts in between.
func TestRestartWhileUnplugged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in, g := w.pooled(vnet.PersonalityCloudInitSavable)
		g.deaf, g.plugs = true, true
		ps := w.begin()
		ps.set(in)
		settle(time.Minute)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(time.Millisecond)
		if g.link {
			t.Fatal("the NIC was not pulled out yet: the test is too early")
		}
		w.begin().set(in)
		settle(10 * time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || !g.link {
			t.Errorf("NIC in %t, %+v", g.link, s)
		}
	})
}
