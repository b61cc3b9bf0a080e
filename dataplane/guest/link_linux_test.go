package guest

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// S13, S70: every flap is seen soon, also the second one within a second, which the
// kernel's own messages tell of a second late (a tap's, not a veth's).
func TestFastFlaps(t *testing.T) {
	defer goleak.VerifyNone(t)
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "guest7"}, Mode: netlink.TUNTAP_MODE_TAP, Queues: 1}
	check(t, netlink.LinkAdd(tap))
	defer netlink.LinkDel(tap)
	defer tap.Fds[0].Close()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	l, err := watchLink(ctx, "guest7", 20*time.Millisecond, newLogger(t.Output()))
	check(t, err)
	defer l.wait()
	defer cancel()
	up, _, end, err := l.session(ctx)
	check(t, err)
	for _, down := range []time.Duration{20 * time.Millisecond, 31 * time.Millisecond, 3 * time.Millisecond} {
		changes := l.current().changes
		carrier(t, tap, 0)
		off := time.Now()
		if down > 20*time.Millisecond { // long enough to be seen as down
			<-up.Done()
			if st := l.current(); st.carrier {
				t.Errorf("flap of %s: carrier is there: %+v", down, st)
			}
		}
		time.Sleep(down - time.Since(off)) // the length of the flap
		carrier(t, tap, 1)
		on := time.Now()
		<-up.Done()
		end()
		if up, _, end, err = l.session(ctx); err != nil {
			t.Fatalf("flap of %s was not seen: %v", down, err)
		}
		if took := time.Since(on); took > 300*time.Millisecond {
			t.Errorf("flap of %s was seen %s after its end", down, took)
		}
		if st := l.current(); !st.carrier || st.changes <= changes {
			t.Errorf("flap of %s: state %+v, had %d changes", down, st, changes)
		}
	}
	end()
}

// A NIC that goes away ends the session, and one that comes by its name is followed.
func TestNICIsReplaced(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var log bytes.Buffer
	l, err := watchLink(ctx, "guest8", 20*time.Millisecond, newLogger(&log))
	check(t, err)
	defer l.wait()
	defer cancel()
	for _, index := range []int{3107, 3109} {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "guest8", Index: index}, PeerName: "peer8"}
		check(t, netlink.LinkAdd(pair))
		check(t, netlink.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "peer8"}}))
		up, st, end, err := l.session(ctx)
		if err != nil || st.index != index {
			t.Fatalf("session on %+v, %v, want NIC %d", st, err, index)
		}
		check(t, netlink.LinkDel(pair))
		<-up.Done()
		end()
	}
}

func carrier(t *testing.T, tap *netlink.Tuntap, on int) {
	t.Helper()
	check(t, unix.IoctlSetPointerInt(int(tap.Fds[0].Fd()), unix.TUNSETCARRIER, on))
}
