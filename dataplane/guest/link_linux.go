package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// linkState is what the kernel says of the NIC. Changes counts how often the
// carrier came and went, so that a flap is seen even when both ends of it were
// missed.
type linkState struct {
	index   int
	name    string
	mac     vnet.MAC
	admin   bool // IFF_UP
	carrier bool
	changes uint32
}

// A link follows one NIC. The kernel's link messages alone would be too late:
// net/core/link_watch.c holds all but the first one of a second back, machine wide.
// So the link is asked as well: see [link.pause].
type link struct {
	name   string
	period time.Duration
	sock   *os.File
	port   uint32 // the socket's, which the answers to its questions carry
	log    logger
	done   chan struct{}

	mu      sync.Mutex
	state   linkState
	changed chan struct{} // closed at each change of state
	muted   bool          // the agent itself sets the NIC down and up
	untold  chan struct{} // closed when the kernel tells all of the state; nil: it has
	err     error         // why the watch has ended
}

const (
	// downPoll is how often a link that just went down is asked, for downPollFor.
	downPoll    = 2 * time.Millisecond
	downPollFor = 300 * time.Millisecond
	// calmPoll is how often a link is asked when the kernel has said nothing of any for
	// heldBack. Its next message is not late then, unless another network namespace of
	// the guest's, whose messages are not heard here, has links that change.
	calmPoll = 250 * time.Millisecond
	heldBack = 2 * time.Second
)

// toldBound is longer than the kernel holds its messages back.
const toldBound = 1500 * time.Millisecond

// watchLink starts to follow the named NIC, or the first Ethernet NIC, which it
// sets up; it waits for one to appear. The watch ends with ctx.
func watchLink(ctx context.Context, name string, period time.Duration, log logger) (*link, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to link messages: %w", err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("port of the link messages: %w", err)
	}
	l := &link{name: name, period: period, port: own.(*unix.SockaddrNetlink).Pid, sock: os.NewFile(uintptr(fd), "rtnetlink"), log: log,
		done: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer l.sock.Close()
		err := l.watch(ctx)
		l.mu.Lock()
		l.err = err
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}()
	return l, nil
}

// quietly runs f, which sets the NIC down and up, so that no session ends by it. It
// returns when the carrier is back.
func (l *link) quietly(ctx context.Context, f func() error) error {
	mute := func(on bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.muted = on
	}
	mute(true)
	defer mute(false)
	if err := f(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	// What the kernel says of it is a second late: the watch asks, see [link.watch].
	for pause(ctx, 2*l.period); ctx.Err() == nil; pause(ctx, l.period) {
		if st := l.current(); st.admin && st.carrier {
			return nil
		}
	}
	return ctx.Err()
}

// told returns when the kernel has told everybody of the carrier that is there: who
// follows the link by its messages has heard then all that it will hear of a flap.
// False: the kernel has not.
func (l *link) told(ctx context.Context) bool {
	l.mu.Lock()
	untold := l.untold
	l.mu.Unlock()
	if untold == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, toldBound)
	defer cancel()
	select {
	case <-untold:
		return true
	case <-ctx.Done():
		return false
	}
}

// wait returns when the watch has ended.
func (l *link) wait() { <-l.done }

// current returns the NIC as it was last seen; index 0 if it is not there.
func (l *link) current() linkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// session waits until the carrier is there. The returned context ends at the next
// change of the link; end it with the function.
func (l *link) session(ctx context.Context) (context.Context, linkState, func(), error) {
	for {
		l.mu.Lock()
		st, changed, err := l.state, l.changed, l.err
		l.mu.Unlock()
		if err != nil {
			return nil, st, nil, err
		}
		if !st.admin || !st.carrier {
			select {
			case <-ctx.Done():
				return nil, st, nil, ctx.Err()
			case <-changed:
			}
			continue
		}
		up, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer cancel()
			select {
			case <-changed:
			case <-up.Done():
			}
		}()
		return up, st, func() { cancel(); <-ended }, nil
	}
}

// watch asks for the links, then takes in what the kernel says, asked or not.
// A full socket buffer (ENOBUFS) has lost messages: asking again mends it.
func (l *link) watch(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { l.sock.SetReadDeadline(time.Now()) })()
	buf := make([]byte, 1<<16)
	var seen sight
	ask := true
	for ctx.Err() == nil {
		if ask {
			if err := l.ask(); err != nil {
				return fmt.Errorf("ask for the link: %w", err)
			}
		}
		if l.state.carrier {
			seen.up = time.Now()
		}
		l.sock.SetReadDeadline(time.Now().Add(l.pause(seen, time.Now())))
		if ctx.Err() != nil {
			break
		}
		n, err := l.sock.Read(buf)
		ask = errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.ENOBUFS)
		if err != nil && !ask {
			return fmt.Errorf("read link messages: %w", err)
		}
		told, err := l.take(buf[:max(n, 0)])
		if err != nil {
			return err
		}
		if told {
			seen.told = time.Now()
		}
	}
	return ctx.Err()
}

// A sight is when the link was last seen up, and when the kernel last said something of
// any link that it was not asked.
type sight struct{ up, told time.Time }

// pause is how long the next question can wait: every period, every 2 ms while the link
// is down for a short time, seldom when nothing happens. Each question costs an emulated
// guest a millisecond or two.
func (l *link) pause(seen sight, now time.Time) time.Duration {
	switch {
	case l.state.index != 0 && !l.state.carrier && now.Sub(seen.up) < downPollFor:
		return min(l.period, downPoll)
	case now.Sub(seen.told) < heldBack:
		return l.period
	}
	return max(l.period, calmPoll)
}

// ask requests the NIC, or all of them while it is not known. The answer comes
// among the other messages.
func (l *link) ask() error {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	req := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg+8)
	flags := uint16(unix.NLM_F_REQUEST)
	if l.state.index == 0 {
		flags |= unix.NLM_F_DUMP
	}
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], unix.RTM_GETLINK)
	binary.NativeEndian.PutUint16(req[6:], flags)
	binary.NativeEndian.PutUint32(req[20:], uint32(l.state.index)) // ifi_index
	binary.NativeEndian.PutUint16(req[32:], 8)                     // an attribute of 8 bytes
	binary.NativeEndian.PutUint16(req[34:], unix.IFLA_EXT_MASK)
	binary.NativeEndian.PutUint32(req[36:], skipStats)
	_, err := l.sock.Write(req)
	return err
}

// take reads a batch of messages, and reports whether one of them was not asked for.
func (l *link) take(b []byte) (told bool, err error) {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return false, fmt.Errorf("parse link messages: %w", err)
	}
	for _, m := range msgs {
		told = told || m.Header.Pid != l.port
		st, ok := parseLink(&m)
		switch {
		case m.Header.Type == unix.NLMSG_ERROR:
			if l.state.index != 0 && refusal(&m) == unix.ENODEV {
				l.set(linkState{})
			}
		case !ok, l.state.index != 0 && st.index != l.state.index:
		case m.Header.Type == unix.RTM_DELLINK:
			l.set(linkState{})
		case l.state.index == 0 && l.name != "" && st.name != l.name:
		default:
			found := l.state.index == 0
			l.set(st)
			if st.carrier && tellsAll(&m) {
				l.hear()
			}
			if found && !st.admin { // only then: who sets it down later means it
				if err := setUp(st.index); err != nil && !errors.Is(err, unix.ENODEV) {
					return told, fmt.Errorf("set %s up: %w (is the agent root?)", st.name, err)
				}
			}
		}
	}
	return told, nil
}

// set takes st as the state of the NIC and wakes those who wait for a change.
func (l *link) set(st linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.state
	if st == old {
		return
	}
	l.state = st
	if st.carrier && st.changes != old.changes && old.index != 0 && l.untold == nil {
		l.untold = make(chan struct{})
	}
	if l.muted {
		return
	}
	close(l.changed)
	l.changed = make(chan struct{})
	switch {
	case st.index == 0:
		l.log.say("link gone %s", old.name)
	case st.carrier && old.carrier:
		l.log.say("link flapped %s", st.name)
	case st.carrier:
		l.log.say("link up %s", st.name)
	case old.carrier || old.index == 0:
		l.log.say("link down %s", st.name)
	}
}

// hear takes note that the kernel has told all of the state.
func (l *link) hear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.untold != nil {
		close(l.untold)
		l.untold = nil
	}
}
