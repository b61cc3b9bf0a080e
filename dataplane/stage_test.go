package dataplane

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// What can't be prepared is refused by its reason, with nothing changed.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(*world, *vnet.Intent)
		want error
	}{
		{"MTU too large", func(_ *world, in *vnet.Intent) { in.Next.MTU = 1501 }, errMTU},
		{"too small for IPv6", func(_ *world, in *vnet.Intent) {
			in.Next.MTU = 1279
			in.Next.Addrs = append(in.Next.Addrs, vnet.Addr{CA: vnet.CA{Addr: netip.MustParseAddr("fd17:34::62")}, Bits: 64})
		}, errMTU6},
		{"peer network missing", func(_ *world, in *vnet.Intent) {
			in.Next.Routes = []vnet.Route{{Prefix: netip.MustParsePrefix("10.99.0.0/16"), Peer: 0x998877}}
		}, errMappings},
		{"too many addresses", func(_ *world, in *vnet.Intent) {
			in.Next.Addrs = slices.Repeat(in.Next.Addrs, MaxCAs+1)
		}, errAddresses},
		{"bad VNI", func(_ *world, in *vnet.Intent) { in.Next.VNI = vnet.MaxVNI + 1 }, errVNI},
		{"no address", func(_ *world, in *vnet.Intent) { in.Next.Addrs = nil }, errAddresses},
		{"mappings missing", func(w *world, _ *vnet.Intent) { w.loaded[blue] = false }, errMappings},
		{"no monitor", func(_ *world, in *vnet.Intent) { in.Monitor = "" }, errNoMonitor},
		{"monitor dead", func(w *world, _ *vnet.Intent) { w.guests = map[vnet.PortID]*guest{} }, errMonitor},
		{"tap gone", func(w *world, in *vnet.Intent) { delete(w.taps, in.Tap) }, errNoDevice},
		{"map full", func(w *world, _ *vnet.Intent) { w.full = errFullForTest }, errFullForTest},
		{"no room for rules", func(w *world, in *vnet.Intent) { w.room = 1; enter(w, in) }, errRuleRoom},
		{"monitor dead, with rules", func(w *world, in *vnet.Intent) { enter(w, in); w.guests = map[vnet.PortID]*guest{} }, errMonitor},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in := intent()
				g := w.guestAt(in, "10.17.34.51")
				ps := w.begin()
				ps.set(in)
				settle(2 * time.Minute)
				in = prepared(in)
				w.mu.Lock()
				c.f(w, &in)
				acts := len(w.acts)
				w.mu.Unlock()
				ps.set(in)
				settle(time.Minute)
				s := w.last(in.Next.Epoch)
				if s.Phase != vnet.StatusRefused || s.Error == "" {
					t.Fatalf("got %+v", s)
				}
				if _, err := ps.get(23).prepare(t.Context(), &in, in.Next); !errors.Is(err, c.want) && c.want != errMappings {
					t.Errorf("refused with %v, want %v", err, c.want)
				}
				for _, act := range w.acts[acts:] {
					if act != "record 3.7" {
						t.Errorf("refused, but did: %s", act)
					}
				}
				if w.rows[23].Epoch != in.Current.Epoch || g.cuts() != 0 {
					t.Errorf("refusing changed the row: %+v", w.rows[23])
				}
				if got := w.phases(in.Next.Epoch); len(got) != 1 {
					t.Errorf("reported %v", got)
				}
				in.Next = nil
				ps.set(in)
				settle(time.Minute)
				if len(w.staged) != 0 {
					t.Errorf("released, and still takes room: %v", w.staged)
				}
			})
		})
	}
}

// enter lets the next place be in a group of two rules.
func enter(w *world, in *vnet.Intent) {
	in.Next.Groups = []string{"web"}
	w.groups.put(vnet.Group{VNI: blue, Name: "web", Rules: []vnet.Rule{allow("https", 1, vnet.In), allow("ssh", 2, vnet.In)}})
}

// Rules have their room from staging on, and give it back when the swap is released
// while the port still drains.
func TestRulesAreStaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		w.connections, w.connected = []Connection{{}}, in.Current.Epoch
		in = prepared(in)
		enter(w, &in)
		in.Next.OldConnections, in.Next.Drain = vnet.DrainConnections, time.Minute
		ps.set(in)
		settle(time.Second)
		if len(w.phases(in.Next.Epoch)) != 0 || w.staged[23] == nil || len(w.staged[23].In) != 2 {
			t.Errorf("while it drains: reported %v, staged %v", w.phases(in.Next.Epoch), w.staged)
		}
		in.Next = nil
		ps.set(in)
		settle(time.Second)
		if len(w.staged) != 0 {
			t.Errorf("released, and still takes room: %v", w.staged)
		}
	})
}

// errNoDevice is what a world without a tap says.
var errNoDevice = errors.New("no such device")

var errFullForTest = errors.New("a map is full")

// Without a bounce nobody needs the monitor.
func TestPreparedWithoutMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		in.Monitor = ""
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		in.Next.Trigger = vnet.TriggerNone
		ps.set(in)
		settle(time.Second)
		if got := w.phases(in.Next.Epoch); !slices.Equal(got, []vnet.StatusPhase{vnet.StatusPrepared}) {
			t.Errorf("got %v", got)
		}
	})
}

// Mappings that come while staging waits for them are waited for.
func TestStagingWaitsForMappings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		w.loaded[blue] = false
		in = prepared(in)
		ps.set(in)
		settle(2 * time.Second)
		if got := w.phases(in.Next.Epoch); len(got) != 0 {
			t.Fatalf("reported %v before the mappings are there", got)
		}
		w.mu.Lock()
		w.loaded[blue] = true
		w.mu.Unlock()
		ps.kick()
		synctest.Wait()
		if got := w.phases(in.Next.Epoch); !slices.Equal(got, []vnet.StatusPhase{vnet.StatusPrepared}) {
			t.Errorf("got %v", got)
		}
	})
}

// An attached port whose tap nobody has made says so, and works once it is there.
func TestMissingTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		w.guestAt(in, "10.17.34.51")
		delete(w.taps, in.Tap)
		ps := w.begin()
		ps.set(in)
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFailed || s.Error == "" || len(w.rows) != 0 {
			t.Errorf("%+v", s)
		}
		w.mu.Lock()
		w.taps[in.Tap] = 723
		w.mu.Unlock()
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Error != "" {
			t.Errorf("%+v", s)
		}
	})
}

// A tap that was made again, for a VM that was booted again, is the port's.
func TestTapMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		w.guestAt(in, "10.17.34.51")
		w.begin().set(in)
		settle(time.Minute)
		w.mu.Lock()
		w.taps[in.Tap] = 811
		w.mu.Unlock()
		settle(time.Minute)
		if w.rows[23].Ifindex != 811 || w.attached[811] != 23 || len(w.attached) != 1 {
			t.Errorf("row %+v, attached %v", w.rows[23], w.attached)
		}
		if _, ifindex, _, _ := w.agent.get(23).inForce(); ifindex != 811 {
			t.Errorf("answers go to device %d", ifindex)
		}
	})
}

// A VM whose tap vanishes in the middle of a swap is moved all the same, and
// proves itself when it is back.
func TestSwapWhileTheTapIsGone(t *testing.T) {
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
		w.mu.Lock()
		delete(w.taps, in.Tap)
		w.mu.Unlock()
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		if s := w.last(in.Current.Epoch); w.rows[23].Epoch != in.Current.Epoch || s.Error == "" {
			t.Errorf("row %+v, status %+v", w.rows[23], s)
		}
		w.mu.Lock()
		w.taps[in.Tap] = 811
		g.ask()
		w.mu.Unlock()
		settle(time.Minute)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Error != "" || w.rows[23].Ifindex != 811 {
			t.Errorf("row %+v, status %+v", w.rows[23], s)
		}
	})
}

// A monitor that dies between staging and the flip holds nothing up: the guest is
// waited for, said to have failed in the end, and taken when it comes by itself.
func TestMonitorDiesInMidSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		in := intent()
		g := w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Minute)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		w.mu.Lock()
		w.unmonitored = true
		w.mu.Unlock()
		in = switched(in)
		ps.set(in)
		settle(30 * time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusFailed || w.rows[23].Epoch != in.Current.Epoch || g.cuts() != 0 {
			t.Errorf("without a monitor: %+v", s)
		}
		w.mu.Lock()
		g.ask()
		w.mu.Unlock()
		settle(5 * time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Error != "" {
			t.Errorf("came by itself: %+v", s)
		}
	})
}

// A port whose monitor hangs keeps nobody else waiting (invariant 7).
func TestPortsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stuck, other := intent(), intent()
		other.Port, other.ID, other.Tap, other.MAC = "p-29", 29, "tap29", vnet.PortMAC(0x2b3c4d5e)
		w.guestAt(stuck, "10.17.34.51")
		w.guestAt(other, "10.17.34.51")
		ps := w.begin()
		hang := hanging{}
		ps.links = hang
		ps.set(stuck)
		ps.links = (*worldLinks)(w)
		ps.set(other)
		settle(200 * time.Millisecond)
		if s := w.last(other.Current.Epoch); s.Port != other.Port || s.Phase != vnet.StatusConfirmed {
			t.Errorf("%+v", s)
		}
	})
}
