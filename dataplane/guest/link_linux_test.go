package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// S13, S70: every flap is seen soon, also the second one within a second, which the
// kernel's own messages tell of a second late (a tap's, not a veth's).
func TestFastFlaps(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) }) // after the others
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
	if l.untold != nil {
		t.Error("before a flap there is something to be told")
	}
	others := followers(t, l.current().index)
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
		seen := make(chan struct{})
		go func() {
			defer close(seen)
			<-up.Done()
			end()
			up, _, end, err = l.session(ctx)
		}()
		// On a busy machine every question takes its time, also the watch's.
		if n := questions(t, seen); n > 12 {
			t.Errorf("flap of %s was seen when the test had asked %d times", down, n)
		}
		if err != nil {
			t.Fatalf("flap of %s was not seen: %v", down, err)
		}
		if st := l.current(); !st.carrier || st.changes <= changes {
			t.Errorf("flap of %s: state %+v, had %d changes", down, st, changes)
		}
	}
	end()
	for last := next(t, others, "word of the link"); last != l.current(); {
		last = next(t, others, "word that the link is up after the last flap")
	}
	if !l.told(ctx) {
		t.Error("who follows the link was told of the flaps, and the watch has not heard")
	}
}

// followers returns a NIC's states as the kernel tells all who follow it that it is up.
func followers(t *testing.T, index int) <-chan linkState {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	check(t, err)
	check(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}))
	sock := os.NewFile(uintptr(fd), "rtnetlink")
	told := make(chan linkState, 999)
	var reads sync.WaitGroup
	reads.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, err := sock.Read(b)
			if err != nil {
				return
			}
			all, err := syscall.ParseNetlinkMessage(b[:n])
			if err != nil {
				t.Error(err)
			}
			for _, m := range all {
				if st, ok := parseLink(&m); ok && st.index == index && tellsAll(&m) {
					told <- st
				}
			}
		}
	})
	t.Cleanup(func() { sock.Close(); reads.Wait() })
	return told
}

// questions asks the kernel for a link, as often as an agent would, until done, and
// returns how often. Not for the one that is followed: the kernel tells all of a link
// that it is asked for (seen with Linux 6.18).
func questions(t *testing.T, done <-chan struct{}) int {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-done:
			return n
		case <-tick.C:
		}
		_, err := netlink.LinkByName("lo")
		check(t, err)
	}
}

// What the kernel tells all of the link counts, not the answers to the agent's own
// questions; and a state that others follow (IFF_RUNNING), not the carrier alone.
func TestTold(t *testing.T) {
	l := &link{port: 4711, log: newLogger(t.Output()), changed: make(chan struct{}), state: linkState{index: 7, name: "eth0", admin: true, carrier: true, changes: 2}}
	const mine, up = 4711, unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING
	for _, c := range []struct {
		what           string
		to, flags      uint32
		carrier, count byte
		want           bool
	}{
		{"nothing new", mine, up, 1, 2, true},
		{"an answer after a flap", mine, up, 1, 4, false},
		{"the kernel, of a link that is down", 0, unix.IFF_UP, 0, 4, false},
		{"the kernel, of a carrier that others don't follow yet", 0, unix.IFF_UP | unix.IFF_LOWER_UP, 1, 4, false},
		{"the kernel", 0, up, 1, 4, true},
		{"the kernel at once, of the next flap", 0, up, 1, 6, true},
		{"an answer, of a cut", mine, unix.IFF_UP, 0, 7, true},
		{"an answer, of its end", mine, up, 1, 8, false},
	} {
		unasked, err := l.take(newLink(c.to, c.flags, c.carrier, c.count))
		check(t, err)
		if unasked != (c.to != mine) {
			t.Errorf("%s: taken as not asked for: %t", c.what, unasked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got := l.told(ctx); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
	}
}

// An agent in a guest where nothing happens asks for its link seldom: each question costs
// the guest a wake-up.
func TestLinkIsAskedSeldom(t *testing.T) {
	now := time.Now()
	before := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name     string
		carrier  bool
		up, told time.Time
		period   time.Duration
		want     time.Duration
	}{
		{"the kernel is silent", true, now, before(time.Hour), 20 * time.Millisecond, calmPoll},
		{"it has said nothing yet", true, now, time.Time{}, 20 * time.Millisecond, calmPoll},
		{"it may hold back", true, now, before(time.Second), 20 * time.Millisecond, 20 * time.Millisecond},
		{"who wants it less often", true, now, time.Time{}, time.Second, time.Second},
		{"just cut", false, before(10 * time.Millisecond), before(time.Hour), 20 * time.Millisecond, downPoll},
		{"cut for long, told a moment ago", false, before(time.Second), before(time.Second), 20 * time.Millisecond, 20 * time.Millisecond},
		{"cut for very long", false, before(time.Minute), before(time.Minute), 20 * time.Millisecond, calmPoll},
		{"there is no NIC", false, time.Time{}, time.Time{}, 20 * time.Millisecond, calmPoll},
	} {
		l := &link{period: c.period, state: linkState{index: 7, carrier: c.carrier}}
		if got := l.pause(sight{c.up, c.told}, now); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// newLink is an RTM_NEWLINK of NIC 7.
func newLink(to, flags uint32, carrier, changes byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	attr := func(kind uint16, value ...byte) {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, append(value, make([]byte, -len(value)&3)...)...)
	}
	attr(unix.IFLA_IFNAME, []byte("eth0")...)
	attr(unix.IFLA_CARRIER, carrier)
	attr(unix.IFLA_CARRIER_CHANGES, binary.NativeEndian.AppendUint32(nil, uint32(changes))...)
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_NEWLINK)
	binary.NativeEndian.PutUint32(b[12:], to)
	binary.NativeEndian.PutUint16(b[18:], unix.ARPHRD_ETHER)
	binary.NativeEndian.PutUint32(b[20:], 7)
	binary.NativeEndian.PutUint32(b[24:], flags)
	return b
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

// Only a kernel that knows no such NIC says that it is gone. In a slow guest a list of
// the links is asked for twice, and the second question refused.
func TestRefusalIsNoEnd(t *testing.T) {
	for errno, gone := range map[unix.Errno]bool{unix.EBUSY: false, unix.ENOBUFS: false, unix.ENODEV: true} {
		l := &link{log: newLogger(t.Output()), changed: make(chan struct{}), state: linkState{index: 7, name: "eth0", admin: true, carrier: true}}
		b := make([]byte, unix.SizeofNlMsghdr+4)
		binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
		binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_ERROR)
		binary.NativeEndian.PutUint32(b[16:], uint32(-int32(errno)))
		_, err := l.take(b)
		check(t, err)
		if got := l.current().index == 0; got != gone {
			t.Errorf("%s: gone %t", errno, got)
		}
	}
}
