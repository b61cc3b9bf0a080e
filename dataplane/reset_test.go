package dataplane

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// tells counts the statuses of an epoch that tell of a reset, and the failures.
func (w *world) tells(e vnet.Epoch) (resets, failures int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.statuses {
		switch {
		case s.Epoch != e:
		case s.Phase == vnet.StatusFailed:
			failures++
		case has(s, vnet.HopReset):
			resets++
		}
	}
	return resets, failures
}

// begins begins a swap of the guest and gives it so long.
func (l *line) begins(d time.Duration) {
	l.in = prepared(l.in)
	l.ps.set(l.in)
	settle(time.Second)
	l.in = switched(l.in)
	l.ps.set(l.in)
	settle(d)
}

// A guest that is reset in mid-swap is not cut off any more and not given up: it boots
// into the new network. The leader hears of it, and its rung is none for others.
func TestResetInMidSwap(t *testing.T) {
	for name, before := range map[string]bool{"before the flip": true, "after a cut": false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			ps := w.begin()
			l := w.lineOf(ps, 23, "tiny", nothing)
			l.notices(time.Hour)
			if before {
				l.g.reboot(90 * time.Second)
				l.begins(time.Second)
			} else {
				l.begins(time.Second)
				l.g.reboot(90 * time.Second)
			}
			settle(80 * time.Second)
			resets, failures := w.tells(l.in.Current.Epoch)
			if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusFlipped || resets == 0 || failures != 0 || l.g.cuts() > 1 {
				t.Errorf("%s: cut %d times, told %d times, failed %d times, %+v", name, l.g.cuts(), resets, failures, s)
			}
			settle(20 * time.Second)
			if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != "boot" || l.g.ca != l.in.Current.Addrs[0].CA {
				t.Errorf("%s: when it is up at %s: %+v", name, l.g.ca, s)
			}
			if n := len(ps.rungs.has); n != 0 {
				t.Errorf("%s: %d rungs are remembered", name, n)
			}
			l.notices(5 * time.Millisecond)
			l.swaps(t, name+": the next swap", "bounce 20ms after 1")
		})
	}
}

// A reset that nobody told of shows by the guest's NIC: one in mid-swap while the agent
// was away, and one in the place before, while no monitor was open.
func TestResetUnheard(t *testing.T) {
	for name, away := range map[string]bool{"the agent was away": true, "nobody listened": false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			l := w.lineOf(w.begin(), 23, "tiny", nothing)
			l.notices(time.Hour)
			w.mu.Lock()
			l.g.monitor = func() {}
			w.mu.Unlock()
			if away {
				l.begins(time.Second)
				w.end()
				l.g.reboot(90 * time.Second)
				l.ps = w.begin()
				l.ps.set(l.in)
				settle(time.Second)
			} else {
				settle(lately)
				l.g.reboot(90 * time.Second)
				l.begins(time.Second)
			}
			settle(60 * time.Second)
			resets, failures := w.tells(l.in.Current.Epoch)
			if s := w.last(l.in.Current.Epoch); resets == 0 || failures != 0 || l.g.cuts() > 1 {
				t.Errorf("%s: cut %d times, told %d times, failed %d times, %+v", name, l.g.cuts(), resets, failures, s)
			}
			settle(40 * time.Second)
			if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusConfirmed || s.Rung != "boot" || l.g.ca != l.in.Current.Addrs[0].CA {
				t.Errorf("%s: when it is up at %s: %+v", name, l.g.ca, s)
			}
		})
	}
}

// A guest that was reset some time before a swap, and was heard since, is cut off as
// any other; so is one of which nothing was heard for minutes.
func TestResetBeforeSwap(t *testing.T) {
	for name, silent := range map[string]bool{"heard since": false, "long ago": true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			l := w.lineOf(w.begin(), 23, "tiny", nothing)
			if silent {
				l.g.reboot(time.Hour)
				settle(longBoot)
			} else {
				l.g.reboot(10 * time.Second)
				settle(20 * time.Second)
			}
			l.begins(21 * time.Second)
			s := w.last(l.in.Current.Epoch)
			if want := map[bool]vnet.StatusPhase{true: vnet.StatusFailed, false: vnet.StatusConfirmed}[silent]; s.Phase != want || has(s, vnet.HopReset) || l.g.cuts() == 0 {
				t.Errorf("%s: cut %d times, %+v", name, l.g.cuts(), s)
			}
		})
	}
}

// The way back works too: a guest that has heard nothing of the new place since its
// reset boots into the old one; one that has leased there is fetched back by a cut.
func TestResetAndUndo(t *testing.T) {
	for name, boots := range map[string]time.Duration{"still boots": 30 * time.Second, "has leased there": 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			l := w.lineOf(w.begin(), 23, "tiny", nothing)
			l.notices(time.Hour)
			l.begins(time.Second)
			w.mu.Lock()
			l.g.checks = time.Hour // it is not seen yet when it is called back
			w.mu.Unlock()
			l.g.reboot(boots)
			settle(4 * time.Second)
			cuts := l.g.cuts()
			l.notices(150 * time.Millisecond)
			w.mu.Lock()
			l.g.checks = 0
			w.mu.Unlock()
			l.in.Current = place("red", red, "10.17.34.51", 9)
			l.in.Current.Swap, l.in.Current.Undo, l.in.Current.Trigger = "s-5", true, vnet.TriggerBounce
			l.ps.set(l.in)
			settle(20 * time.Second)
			boot, more := boots > 4*time.Second, 2
			if boot {
				more = 1 // with the flip
			}
			if resets, failures := w.tells(l.in.Current.Epoch); (resets > 0) != boot || failures != 0 || l.g.cuts()-cuts != more {
				t.Errorf("%s: cut %d times before and %d in all, told %d times, failed %d times", name, cuts, l.g.cuts(), resets, failures)
			}
			settle(20 * time.Second)
			if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusConfirmed || l.g.ca != l.in.Current.Addrs[0].CA {
				t.Errorf("%s: at %s, %+v", name, l.g.ca, s)
			}
		})
	}
}

// One that was seen and is reset before it reports is told of as well.
func TestResetBeforeReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l := w.lineOf(w.begin(), 23, "tiny", nothing)
		w.mu.Lock()
		l.g.reports = false
		w.mu.Unlock()
		l.begins(time.Second)
		l.g.reboot(30 * time.Second)
		settle(time.Second)
		if s := w.last(l.in.Current.Epoch); s.Phase != vnet.StatusPublished || !has(s, vnet.HopReset) {
			t.Errorf("got %+v", s)
		}
	})
}

// What QEMU says of a reset reaches the port as long as the link is open.
func TestLinkTellsOfResets(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qmp.sock")
	ln, err := net.Listen("unix", socket)
	must(t, err)
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, `{"QMP": {"version": {}, "capabilities": []}}`)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var c struct{ Execute, ID string }
			_ = json.Unmarshal(lines.Bytes(), &c)
			fmt.Fprintf(conn, `{"return": [], "id": %q}`+"\n", c.ID)
			if c.Execute == "set_link" {
				fmt.Fprintln(conn, `{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}`)
			}
		}
	}()
	told := make(chan struct{})
	in := intent()
	in.Monitor = socket
	link, err := links{}.Open(t.Context(), in, func() { close(told) })
	must(t, err)
	defer link.Close()
	must(t, link.Set(t.Context(), true))
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Error("the reset was not told")
	}
}
