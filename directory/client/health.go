package client

import (
	"cmp"
	"slices"
	"sync"

	"replug/directory/vnet"
)

// A backend names what a [vnet.Health] speaks of.
type backend struct {
	vni             vnet.VNI
	service, member string
}

// health keeps the newest word on each backend of this host. Leaders keep it in
// memory, so a new stream hears all of it.
type health struct {
	mu     sync.Mutex
	seq    uint64
	newest map[backend]word
	more   chan struct{} // closed and replaced when there is something to send
}

type word struct {
	vnet.Health
	seq uint64
}

func newHealth() *health {
	return &health{newest: map[backend]word{}, more: make(chan struct{})}
}

func (h *health) put(all []vnet.Health) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range all {
		h.seq++
		h.newest[backend{v.VNI, v.Service, v.Member}] = word{v, h.seq}
	}
	close(h.more)
	h.more = make(chan struct{})
}

func (h *health) forget(b backend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.newest, b)
}

// after returns what was said after a sequence, the oldest first, the sequence of
// the last of it, and a channel that is closed when there is more.
func (h *health) after(seq uint64) ([]vnet.Health, uint64, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var words []word
	for _, w := range h.newest {
		if w.seq > seq {
			words = append(words, w)
		}
	}
	slices.SortFunc(words, func(a, b word) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]vnet.Health, len(words))
	for i, w := range words {
		out[i], seq = w.Health, w.seq
	}
	return out, seq, h.more
}
