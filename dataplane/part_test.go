package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

var lost = netip.MustParseAddr("10.17.34.99")

func connection(local, remote, peer string) Connection {
	c := Connection{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), LocalAck: 0x91a2b3c4, RemoteAck: 0xd5e6f708}
	if c.Peer = c.Remote; peer != "" {
		c.Peer = netip.MustParseAddrPort(peer)
	}
	return c
}

// talking is a port with connections, about to be swapped.
func talking(t *testing.T, old vnet.OldConnections) (*world, *ports, vnet.Intent) {
	w := newWorld(t)
	in := intent()
	w.guestAt(in, "10.17.34.51")
	ps := w.begin()
	ps.set(in)
	settle(time.Second)
	w.connected = in.Current.Epoch
	w.connections = []Connection{
		connection("10.17.34.51:443", "10.17.34.7:50001", ""),
		connection("10.17.34.51:50002", "10.17.34.90:80", "10.17.34.8:8080"), // a service
		connection("10.17.34.51:50003", "10.17.34.99:22", ""),                // nobody knows the way
	}
	in = prepared(in)
	in.Next.OldConnections, in.Next.Drain = old, 20*time.Second
	return w, ps, in
}

// resets lists what was said of connections.
func (w *world) resets() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, a := range w.acts {
		if strings.Contains(a, "hears") {
			out = append(out, a)
		}
	}
	return out
}

var allReset = []string{
	"guest hears 10.17.34.7:50001 is gone", "10.17.34.7:50001 hears from 100.64.9.23 that 10.17.34.51:443 is gone",
	"guest hears 10.17.34.90:80 is gone", "10.17.34.8:8080 hears from 100.64.9.23 that 10.17.34.51:50002 is gone",
	"guest hears 10.17.34.99:22 is gone",
}

// Both ends are told, the guest before its link goes down, also when the network
// is dropped here in the moment in which the port leaves it.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ps, in := talking(t, "")
		ps.set(in)
		settle(time.Second)
		if got := w.resets(); len(got) > 0 {
			t.Fatalf("staging reset %q", got)
		}
		w.loaded[red] = false
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		if got := w.resets(); !slices.Equal(got, allReset) {
			t.Errorf("got  %q\nwant %q", got, allReset)
		}
		w.inOrder(allReset[4], "link 23 false", "row 23 3.8 vni 0x123457")
		if r := w.rows[23]; !r.Strict || !r.Reset || r.Draining {
			t.Errorf("row %+v", r)
		}
	})
}

// The flip doesn't wait for a slow list of connections; what is late is told to
// peers only.
func TestResetIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ps, in := talking(t, vnet.ResetConnections)
		ps.set(in)
		settle(time.Second)
		w.mu.Lock()
		w.slow = 80 * time.Millisecond
		w.mu.Unlock()
		begun := time.Now()
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		s := w.last(in.Current.Epoch)
		for _, h := range s.Hops {
			if d := h.At.Sub(begun); h.Name == "flip" && d > resetTime+time.Millisecond {
				t.Errorf("flipped after %s", d)
			}
		}
		if got, want := w.resets(), []string{allReset[1], allReset[3]}; !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

// Silence says nothing, and lets later segments vanish too.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ps, in := talking(t, vnet.SilenceConnections)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		if r := w.rows[23]; len(w.resets()) > 0 || !r.Strict || r.Reset {
			t.Errorf("%q, row %+v", w.resets(), r)
		}
	})
}

// A port drains before it is prepared: the directory still leads to it. What is
// left when the time is up is reset.
func TestDrain(t *testing.T) {
	for _, c := range []struct {
		name  string
		ends  time.Duration // when all connections have ended; 0: never
		after time.Duration // when it is prepared
	}{{"they end", 7 * time.Second, 7 * time.Second}, {"they don't", 0, 20 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, ps, in := talking(t, vnet.DrainConnections)
				ps.set(in)
				settle(c.after - 100*time.Millisecond)
				if got := w.phases(in.Next.Epoch); len(got) > 0 || !w.rows[23].Draining || w.rows[23].Epoch != in.Current.Epoch {
					t.Fatalf("while it drains: %v, %+v", got, w.rows[23])
				}
				if c.ends > 0 {
					w.mu.Lock()
					w.connections = nil
					w.mu.Unlock()
				}
				settle(100*time.Millisecond + drainGap)
				if got := w.phases(in.Next.Epoch); !slices.Equal(got, []vnet.StatusPhase{vnet.StatusPrepared}) {
					t.Fatalf("drained: %v", got)
				}
				in = switched(in)
				ps.set(in)
				settle(time.Second)
				if n := len(w.resets()); (n > 0) != (c.ends == 0) || w.rows[23].Draining || w.rows[23].Epoch != in.Current.Epoch {
					t.Errorf("%d resets, %+v", n, w.rows[23])
				}
			})
		})
	}
}

// A swap that is given up while the port drains leaves no trace.
func TestDrainIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ps, in := talking(t, vnet.DrainConnections)
		ps.set(in)
		settle(5 * time.Second)
		next := in.Next
		in.Next = nil
		ps.set(in)
		settle(time.Second)
		if w.rows[23].Draining {
			t.Error("the port drains for ever")
		}
		in.Next = next
		ps.set(in)
		settle(19 * time.Second)
		if got := w.phases(next.Epoch); len(got) > 0 {
			t.Errorf("the second time it drains for a shorter time: %v", got)
		}
	})
}

// A way leads as the datapath goes: the own subnets, then the longest route, into
// a peer network or to a next hop.
func TestRouted(t *testing.T) {
	p := place("red", red, "10.17.34.51", 7)
	for _, r := range []vnet.Route{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHop: netip.MustParseAddr("10.17.34.3")},
		{Prefix: netip.MustParsePrefix("10.20.0.0/16"), Peer: blue},
		{Prefix: netip.MustParsePrefix("10.20.9.0/24"), NextHop: netip.MustParseAddr("10.17.34.4")},
		{Prefix: netip.MustParsePrefix("10.17.0.0/16")},
	} {
		p.Routes = append(p.Routes, r)
	}
	for to, want := range map[string]string{
		"10.17.34.7": "11259375 10.17.34.7", "10.17.99.7": "11259375 10.17.99.7", "10.20.5.5": "1193047 10.20.5.5",
		"10.20.9.5": "11259375 10.17.34.4", "192.0.2.7": "11259375 10.17.34.3", "fd00::7": "0 invalid IP",
	} {
		vni, ca := nextOf(&p, netip.MustParseAddr(to))
		if got := fmt.Sprint(uint32(vni), " ", ca); got != want {
			t.Errorf("%s: by %s, want %s", to, got, want)
		}
	}
}
