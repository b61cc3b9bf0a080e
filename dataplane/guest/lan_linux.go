package guest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

const (
	defaultRoot = "/"
	stateFile   = "var/lib/replug-guest/state.json"
)

func uptime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // fails on no Linux
	return time.Duration(now.Nano())
}

// A linux is the system that the agent runs on.
type linux struct {
	machine
	c     *Config
	log   logger
	link  *link
	nic   *nic
	begun bool            // the NIC was configured before
	six   bool            // a client had made it an IPv6 address the last time
	up    context.Context // the session's
	ends  func()          // what goes on beside the session: IPv6 of our own, or the watch over what was removed
}

func openSystem(ctx context.Context, c *Config, log logger) (system, error) {
	m := newMachine(c.Root)
	m.names.log = log
	m.names.remember()
	l := &linux{machine: m, c: c, log: log, ends: func() {}}
	var err error
	if l.link, err = watchLink(ctx, c.Interface, c.LinkPoll, log); err != nil {
		return nil, err
	}
	if l.nic, err = newNIC(); err != nil {
		return nil, err
	}
	return l, nil
}

// close returns once the link's watch has ended, by the end of its context.
func (l *linux) close() {
	l.ends()
	l.link.wait()
	l.nic.close()
}

func (l *linux) files() files { return l.machine.files }

func (l *linux) session(ctx context.Context) (context.Context, func(), error) {
	up, _, end, err := l.link.session(ctx)
	l.up = up
	return up, end, err
}

// configure gets a lease, or lets the client get one to whom the NIC belongs.
func (l *linux) configure(ctx context.Context, why reason) (time.Time, error) {
	if l.c.DHCP == DHCPNone || l.handsOff() {
		l.leave()
		return time.Time{}, nil
	}
	st := l.link.current()
	start := !l.begun
	l.begun = true
	if l.c.DHCP == DHCPAuto {
		if clients := l.findClients(st); len(clients) > 0 {
			l.leave()
			l.log.say("dhcp is left to %s", names(clients))
			quiet6(st.name)
			return time.Time{}, l.drive(ctx, st, clients, why, start)
		}
	}
	return l.both(ctx, st, why.due)
}

// leave ends what our own client does.
func (l *linux) leave() {
	l.ends()
	l.names.forget()
}

// beside runs f, in place of what ran before, until ctx ends or something else takes
// its place.
func (l *linux) beside(ctx context.Context, f func(context.Context)) {
	l.ends()
	l.ends = func() {}
	l.also(ctx, f)
}

// also runs f as [linux.beside] does, together with what runs already.
func (l *linux) also(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	ended, before := make(chan struct{}), l.ends
	l.ends = func() { cancel(); <-ended; before() }
	go func() {
		defer close(ended)
		f(ctx)
	}()
}

// noIPv4 is how long an IPv4 lease is waited for once IPv6 is there: a network that
// gives only the latter says nothing of the former.
const noIPv4 = 700 * time.Millisecond

// both asks for both families at once. It returns when there is an IPv4 lease, or an
// IPv6 address and no IPv4 in this network so far. IPv6 is followed until the link
// changes, over any number of IPv4 renewals.
func (l *linux) both(ctx context.Context, st linkState, due bool) (time.Time, error) {
	ready := make(chan struct{})
	if !due {
		l.names.forget()
		l.beside(l.up, func(ctx context.Context) { l.follow6(ctx, st, ready) })
	}
	four, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ready:
			if pause(four, noIPv4); four.Err() == nil {
				cancel()
			}
		case <-four.Done():
		}
	}()
	renewAt, err := l.nic.lease(four, st, due, l.log)
	switch {
	case err == nil:
		l.names.set4(&l.nic.held)
	case four.Err() != nil && ctx.Err() == nil:
		l.log.say("no IPv4 in this network")
		if err := l.nic.clear(st.index, netip.Prefix{}); err != nil {
			return time.Time{}, err
		}
		l.also(l.up, func(ctx context.Context) { l.late4(ctx, st) })
		return time.Time{}, nil
	}
	return renewAt, err
}

// late4 goes on asking for IPv4, and keeps the lease when it comes, until ctx ends: a
// busy host is as silent for a while as a network that has none.
func (l *linux) late4(ctx context.Context, st linkState) {
	for due := false; ctx.Err() == nil; {
		renewAt, err := l.nic.lease(ctx, st, due, l.log)
		switch {
		case err == nil:
			l.names.set4(&l.nic.held)
			if renewAt.IsZero() {
				return
			}
			pause(ctx, time.Until(renewAt))
		case ctx.Err() == nil:
			l.log.say("IPv4 failed, trying again: %v", err)
			pause(ctx, lastTimeout)
		}
		due = err == nil
	}
}

// handsOff reports whether the maintenance switch is set: the operator of the VM
// wants the NIC left alone.
func (l *linux) handsOff() bool {
	_, err := os.Stat(l.path("run/replug-guest/dhcp-off"))
	if err == nil {
		l.log.say("dhcp is off: run/replug-guest/dhcp-off exists")
	}
	return err == nil
}

// describe fills in the guest's own view.
func (l *linux) describe(r *vnet.GuestReport) {
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		r.BootID = strings.TrimSpace(string(b))
	}
	r.Hostname = l.hostname()
	if st := l.link.current(); st.index != 0 {
		r.MAC = st.mac.String()
		r.Addrs = nil
		for _, a := range l.nic.addresses(st.index) {
			r.Addrs = append(r.Addrs, a.String())
		}
	}
}

// drive makes other clients renew, one way after the other, until the NIC has its
// new addresses and no old one. What they leave of the old network is removed. They
// are left alone if an address is good within the time that is theirs first.
func (l *linux) drive(ctx context.Context, st linkState, clients []otherClient, why reason, start bool) error {
	news, err := watchAddrs()
	if err != nil {
		return err
	}
	defer news.close()
	j := judge{nic: l.nic, index: st.index, name: st.name, imds: newIMDS(l.c.IMDS, l.c.Wait).addr, moved: why.moved, patience: l.theirs(clients, why, start)}
	if !start {
		j.old = l.nic.addresses(st.index)
	}
	if j.patience > 0 {
		if gone, ok := j.awaitWork(ctx, news, clients); ok {
			l.good(ctx, st, &j, gone)
			return nil
		}
	}
	j.old = l.nic.addresses(st.index)
	j.patience = judgePatience
	if slices.ContainsFunc(clients, func(c otherClient) bool { return c.name == dhcpcd }) {
		j.patience = judgeProbing
	}
	for try, more := 0, true; more && ctx.Err() == nil; try++ {
		more = false
		for _, c := range clients {
			if ctx.Err() != nil {
				return nil
			}
			all := ways[c.name]
			w := all[min(try, len(all)-1)]
			more = more || try+1 < len(all)
			if err := w.do(ctx, l, st, c); err != nil && ctx.Err() == nil {
				l.log.say("%s can't be told to renew: %v", c.name, err)
				continue
			}
			l.log.say("%s is told to renew: %s", c.name, w.name)
		}
		gone, ok := j.await(ctx, news)
		if ok {
			l.good(ctx, st, &j, gone)
			return nil
		}
		if try == 0 { // a client that was ended has another number now
			clients = l.findClients(st)
		}
	}
	if ctx.Err() == nil {
		l.log.say("%s has no address that leads to the host", st.name)
	}
	return nil
}

// good takes note of the addresses that the NIC has now, and sees to it that what is
// gone stays so.
func (l *linux) good(ctx context.Context, st linkState, j *judge, gone []netip.Prefix) {
	all := l.nic.addresses(st.index)
	l.learn(all)
	l.log.say("addresses %s%s", list(all), removed(gone))
	if len(gone) > 0 {
		l.beside(ctx, func(ctx context.Context) { l.keepGone(ctx, j, gone) })
	}
}

// keepGone removes addresses of the network before once more if a client gives them
// back: dhcpcd does at an advertisement that takes their prefix back, since RFC 4862
// (section 5.5.3) leaves it two hours.
func (l *linux) keepGone(ctx context.Context, j *judge, gone []netip.Prefix) {
	news, err := watchAddrs()
	if err != nil {
		l.log.say("addresses that come back will stay: %v", err)
		return
	}
	defer news.close()
	for ctx.Err() == nil {
		back := slices.DeleteFunc(j.nic.addresses(j.index), func(p netip.Prefix) bool { return !slices.Contains(gone, p) })
		if len(back) > 0 {
			j.old = back
			if again := j.tidy(back, j.good(ctx, back)); len(again) > 0 && ctx.Err() == nil {
				l.log.say("removed what came back: %s", list(again))
			}
		}
		news.wait(ctx, time.Minute)
	}
}

// learn takes note whether clients make IPv6 addresses. None at all says nothing: dhcpcd
// takes away what it has just made when it hears late of a flap.
func (l *linux) learn(all []netip.Prefix) {
	if len(all) > 0 {
		l.six = slices.ContainsFunc(all, func(a netip.Prefix) bool { return a.Addr().Is6() })
	}
}

// theirs is how long clients are left alone first: at the agent's start they have just
// asked; a metadata service that is silent may be slow; and who has seen the flap
// begins by itself, and told to renew on top of that would begin once more.
func (l *linux) theirs(clients []otherClient, why reason, start bool) (longest time.Duration) {
	switch {
	case why.stale > 0:
		return judgeSilence
	case why != (reason{}):
		return 0
	case start:
		return judgeProbing
	}
	for _, c := range clients {
		alone, sees := seesLinks[c.name]
		if !sees || c.name == dhcpcd && !l.six {
			return 0
		}
		longest = max(longest, alone)
	}
	return longest
}

// seesLinks are the clients that follow the carrier, and what they may take then.
// dhcpcd asks routers soon; only with IPv4 alone is it faster if it is told.
var seesLinks = map[string]time.Duration{dhcpcd: judgeProbing, networkd: judgeSeen}

func removed[T fmt.Stringer](gone []T) string {
	if len(gone) == 0 {
		return ""
	}
	return "; removed what was left: " + list(gone)
}

func list[T fmt.Stringer](all []T) string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}
