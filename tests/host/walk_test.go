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
