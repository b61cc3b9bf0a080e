package dataplane

import (
	"fmt"
	"sync"
	"time"
)

// A rung is one way to make a guest look for its network again: its link is
// down for dark, then there is time for a proof.
type rung struct {
	dark     time.Duration
	patience time.Duration
}

// ladder is climbed until the guest is seen. Short cuts of the link are enough
// for a guest that asks at once; some adapters and drivers sample the link, or
// debounce it, and see only a long one.
var ladder = []rung{
	{20 * time.Millisecond, time.Second},
	{200 * time.Millisecond, 2 * time.Second},
	{1200 * time.Millisecond, 4 * time.Second},
}

const (
	// patience for a guest whose link is not cut: all that the ladder has.
	noBouncePatience = 7 * time.Second
	// resumePatience is for a guest that may have renewed while the agent was
	// away: it is not bounced a second time before it is over.
	resumePatience = time.Second
	// slow6 is what IPv6 takes on top: a client may wait a second before it asks
	// (RFC 8415, section 18.2.1), and its kernel again before it uses the address
	// (RFC 4862, section 5.4.2).
	slow6 = 3 * time.Second
	// The last rung is tried for ever, less and less often.
	patienceBound = time.Minute
)

// String names the rung in statuses.
func (r rung) String() string { return fmt.Sprintf("bounce %s", r.dark) }

// at returns the n-th rung; beyond the last, the last one with growing patience.
func at(n int) rung {
	last := len(ladder) - 1
	if n <= last {
		return ladder[n]
	}
	r := ladder[last]
	r.patience = min(patienceBound, r.patience<<min(n-last, 8))
	return r
}

// rungs remembers which rung worked for an image, so that the next guest of
// its kind is not kept waiting by those that don't.
type rungs struct {
	mu     sync.Mutex
	worked map[string]int
}

func newRungs() *rungs { return &rungs{worked: map[string]int{}} }

func (r *rungs) first(image string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.worked[image]
}

func (r *rungs) remember(image string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worked[image] = min(n, len(ladder)-1)
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
