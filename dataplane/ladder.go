package dataplane

import (
	"fmt"
	"sync"
	"time"

	"replug/directory/vnet"
)

// A rung is one way to make a guest look for its network again, and the time that
// it then has for a proof.
type rung struct {
	kind     rungKind
	dark     time.Duration // without a link, or a NIC
	patience time.Duration
}

type rungKind uint8

const (
	bounce rungKind = iota // the link goes down and up
	replug                 // the NIC is taken out and put in again
	renew                  // the metadata service sends the guest back to DHCP
)

// A ladder is climbed until the guest is seen. Short cuts of the link are enough
// for a guest that asks at once; some adapters and drivers sample the link, or
// debounce it, and see only a long one. NetworkManager (1.42) keeps its leases
// through less than 6 s; systemd-networkd (252) too, through less than 5 s, when it
// takes its MTU from DHCP, as netplan has it. dhcpcd (9.4) says nothing for up to
// 1.7 s after it has seen its link come up. The flip is made while the link is down;
// only a guest that asks again and again whatever its link does needs no cut.
type ladder []rung

var (
	bounces = ladder{
		{bounce, 20 * time.Millisecond, 2 * time.Second},
		{bounce, 200 * time.Millisecond, 2 * time.Second},
		{bounce, 6500 * time.Millisecond, 10 * time.Second}, // all of it fits the leader's time, nearly
	}
	// cloud-init in the pool waits for one flap of its link, and the kernel swallows
	// a short one. If it has had its flap already, or was rebooted, it polls, and is
	// told to ask for a lease: at once where it was heard to poll.
	pooledCloudInit = ladder{
		{bounce, 200 * time.Millisecond, 3 * time.Second},
		{renew, 0, 2 * time.Second},
		{bounce, 1200 * time.Millisecond, 4 * time.Second},
	}
	pooledSavable = ladder{
		{replug, 20 * time.Millisecond, 4 * time.Second},
		{renew, 0, 2 * time.Second},
		{replug, 1200 * time.Millisecond, 4 * time.Second},
	}
	// It asks once a second, then starts a DHCP client, and nothing else would wake it.
	polling         = rung{renew, 0, 4 * time.Second}
	polledCloudInit = append(ladder{polling}, pooledCloudInit...)
	polledSavable   = append(ladder{polling}, pooledSavable...)
)

// ladderOf returns the ladder of a guest. What waits in the pool is cloud-init
// itself, before the guest's own network is there; later it is the guest's client.
func ladderOf(p vnet.Personality, pooled, polls bool) ladder {
	switch {
	case !pooled || !p.CloudInit():
		return bounces
	case p == vnet.PersonalityCloudInitSavable && polls:
		return polledSavable
	case p == vnet.PersonalityCloudInitSavable:
		return pooledSavable
	case polls:
		return polledCloudInit
	}
	return pooledCloudInit
}

const (
	// patience for a guest whose link is not cut, until it is reported as failed.
	noBouncePatience = 7 * time.Second
	// resumePatience is for a guest that may have renewed while the agent was
	// away: it is not bounced a second time before it is over.
	resumePatience = time.Second
	// patience6 is the least for IPv6: a guest may wait a second before it makes sure
	// of an address, and needs another one for that (RFC 4862, section 5.4.2), and its
	// manager takes a while to listen to routers. systemd-networkd (252) needs 1.8 to
	// 2.5 s, and one that is cut off over it may not make the same address again; dhcpcd
	// (9.4) says its first word after 2.5 to 4 s where its scripts take their time.
	patience6 = 6 * time.Second
	// stirring is how long a client that has said something may wait until it says
	// the next: dhcpcd waits at random, for two seconds at most, and a busy machine
	// adds to that.
	stirring = 3 * time.Second
	// settling is how long a client may look for others with its address before it
	// uses it: 3 probes, and what RFC 5227 has it wait before and after (section 1.1).
	settling = 9 * time.Second
	// leadersTime is what a swap has for its lease, by default.
	leadersTime = 25 * time.Second
	// lastTime is what the last rung needs once its cut is over, for a guest that no
	// shorter one wakes: NetworkManager has its lease 2.3 s later.
	lastTime = 4 * time.Second
	// late is what a busy host may lose of it meanwhile.
	late = time.Second
	// rememberedMost is the most that slow guests get on the rung that they are known
	// to follow on.
	rememberedMost = 15 * time.Second
	// The last rung is tried for ever, less and less often.
	patienceBound = time.Minute
)

// String names the rung in statuses.
func (r rung) String() string {
	switch r.kind {
	case renew:
		return "renew"
	case replug:
		return fmt.Sprintf("replug %s", r.dark)
	}
	return fmt.Sprintf("bounce %s", r.dark)
}

// agentRung is the name of what comes before the ladder where it can: see
// [port.askAgent]. It is not remembered: an agent that listens is asked.
const agentRung = "agent"

// bootRung is the name of what a guest that was reset on its way does by itself.
const bootRung = "boot"

// at returns the n-th rung; beyond the last, the last one with growing patience.
func (l ladder) at(n int) rung {
	last := len(l) - 1
	if n <= last {
		return l[n]
	}
	r := l[last]
	r.patience = min(patienceBound, r.patience<<min(n-last, 8))
	return r
}

// lasts is the time of the last rung, until the guests are seen for whom it is there.
func (l ladder) lasts() time.Duration { return l[len(l)-1].dark + lastTime }

// A climber is what the ladder remembers a guest by: the next one of its kind is
// not kept waiting by the rungs that don't work.
type climber struct {
	image         string
	pooled, polls bool
}

// rungs remembers where the guests of each kind begin. That is the rung on which
// the last of them was seen, whether higher or lower. So that a slow guest doesn't
// keep all others of its kind in the dark for good, one swap begins a rung lower
// once some have ended on the remembered one: a try. If the try fails, the next one
// is made after twice as many swaps.
type rungs struct {
	mu  sync.Mutex
	has map[climber]*habit
}

// A habit is what is remembered of one kind.
type habit struct {
	rung  int           // where they begin
	slow  time.Duration // how long the slow ones need, from the link's return to the proof
	swaps int           // that have ended on it since it was found, or since the last try
	after int           // so many make a try
}

// Swaps before a try: at first, and at most.
const (
	tryAfter  = 3
	tryAtMost = tryAfter << 5
)

func newRungs() *rungs { return &rungs{has: map[climber]*habit{}} }

// patience is what the n-th rung of l has for a guest of this kind: the rung's, and
// longer where others took longer on it. Cut again, they would begin anew. What is left
// of the leader's time bounds that: the last rung has its own after it.
func (r *rungs) patience(c climber, l ladder, n int, left time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.has[c]
	switch {
	case h == nil || h.rung != n:
		return l.at(n).patience
	case n < len(l)-1:
		left -= l.lasts() + late
	}
	return max(l.at(n).patience, min(h.slow*3/2, rememberedMost, left))
}

// forget drops what is remembered of an image.
func (r *rungs) forget(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.has {
		if c.image == image {
			delete(r.has, c)
		}
	}
}

// first returns the rung that is remembered.
func (r *rungs) first(c climber) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.has[c]; h != nil {
		return h.rung
	}
	return 0
}

// try returns the rung on which a guest that has l before it begins, and whether it
// is a try: as long as that one climbs, others make none. A lower rung has its own
// patience then, at least so much; guests that are known to need longer make no try.
func (r *rungs) try(c climber, l ladder, least time.Duration) (n int, try bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.has[c]
	switch {
	case h == nil:
		return 0, false
	case h.rung == 0 || h.swaps < h.after:
		return h.rung, false
	}
	n = l.below(h.rung)
	if h.slow > max(least, l[n].patience) {
		return h.rung, false
	}
	h.swaps = 0
	return n, true
}

// below is the next rung down from the n-th that a try begins on: a guest that
// doesn't poll is not sent back to DHCP first.
func (l ladder) below(n int) int {
	for n--; n > 0 && l[n].kind == renew; n-- {
	}
	return n
}

// remember takes the n-th rung of l, on which a guest was seen so long after its link
// was back, for the next of its kind. One that happened to poll is no sign of how others are.
func (r *rungs) remember(c climber, l ladder, n int, took time.Duration, try bool) {
	if n > 0 && l[n].kind == renew {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.has[c]
	if h == nil {
		h = &habit{after: tryAfter}
		r.has[c] = h
	}
	h.slow = max(h.slow-h.slow/8, took) // a busy hour is forgotten
	switch {
	case n != h.rung:
		*h = habit{rung: n, slow: took, after: tryAfter}
	case try:
		h.swaps, h.after = 0, min(2*h.after, tryAtMost)
	default:
		h.swaps++
	}
}

// probeGap is the time between two questions to a guest, by the time since
// something last happened to it: a cut, a lease.
func probeGap(since time.Duration) time.Duration {
	switch {
	case since < 20*time.Millisecond:
		return 2 * time.Millisecond
	case since < 100*time.Millisecond:
		return 10 * time.Millisecond
	case since < 2*time.Second:
		return 50 * time.Millisecond
	case since < 10*time.Second:
		return 250 * time.Millisecond
	default:
		return 2 * time.Second
	}
}
