package host_test

import (
	"slices"
	"strings"
	"time"

	"replug/directory/vnet"
)

// walked fails the test unless the guest was seen on the ladder's first rung, or on a
// later one after the first and each that was tried since are named as in vain: how far
// up a guest has to be taken is up to the machine, the way is up to the host. It passes
// over a rung that there is no time for.
func (w *world) walked(s vnet.Status, ladder ...string) {
	w.t.Helper()
	var rungs []string
	for _, h := range s.Hops {
		if vain, ok := strings.CutPrefix(h.Name, "no proof by "); ok {
			rungs = append(rungs, vain)
		}
	}
	rungs = append(rungs, s.Rung)
	above := ladder
	for i, rung := range rungs {
		at := slices.Index(above, rung)
		if at < 0 || i == 0 && at > 0 {
			w.t.Errorf("it was tried with %q, want %q in this order as far as it takes: %s", rungs, ladder, timeline(s))
			return
		}
		above = above[at+1:]
	}
}

// told fails the test unless the guest's agent was told first, over its channel, and its
// link was cut only after that was in vain.
func (w *world) told(s vnet.Status) {
	w.t.Helper()
	told := slices.IndexFunc(s.Hops, func(h vnet.Hop) bool { return h.Name == "agent_told" })
	cut := slices.IndexFunc(s.Hops, func(h vnet.Hop) bool { return h.Name == "link_down" })
	if told < 0 || cut >= 0 && cut < told {
		w.t.Errorf("its agent was not told before anything else: %s", timeline(s))
	}
	w.walked(s, "agent", "bounce 20ms", "bounce 200ms", "bounce 6.5s")
}

// dark is how long the guest had no link at the first cut; zero: it had one all along.
func dark(s vnet.Status) time.Duration {
	down := slices.IndexFunc(s.Hops, func(h vnet.Hop) bool { return h.Name == "link_down" })
	if down < 0 {
		return 0
	}
	up := slices.IndexFunc(s.Hops[down:], func(h vnet.Hop) bool { return h.Name == "link_up" })
	if up < 0 {
		return 0
	}
	return s.Hops[down+up].At.Sub(s.Hops[down].At)
}
