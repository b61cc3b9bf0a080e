package client

import (
	"sort"
	"sync"
	"time"

	"replug/directory/directorypb"
	"replug/directory/vnet"
	"replug/directory/wire"
)

// An outbox keeps reported statuses: those that no leader has taken over, those
// young enough that the leader may have died with them in memory, and the newest
// of each port.
type outbox struct {
	remember time.Duration

	mu      sync.Mutex
	seq     uint64
	entries []*entry // by sequence
	newest  map[string]map[vnet.Epoch]map[vnet.StatusPhase]*entry
	dead    int           // entries that were replaced
	more    chan struct{} // closed and replaced when one is added
}

type entry struct {
	status vnet.Status
	at     time.Time
	acked  bool
	dead   bool
}

func newOutbox(remember time.Duration) *outbox {
	return &outbox{remember: remember, more: make(chan struct{}),
		newest: map[string]map[vnet.Epoch]map[vnet.StatusPhase]*entry{}}
}

func (o *outbox) put(s vnet.Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	s.Seq = o.seq
	e := &entry{status: s, at: time.Now()}
	epochs := o.newest[s.Port]
	if epochs == nil {
		epochs = map[vnet.Epoch]map[vnet.StatusPhase]*entry{}
		o.newest[s.Port] = epochs
	}
	if epochs[s.Epoch] == nil {
		epochs[s.Epoch] = map[vnet.StatusPhase]*entry{}
	}
	if old := epochs[s.Epoch][s.Phase]; old != nil {
		o.kill(old)
	}
	epochs[s.Epoch][s.Phase] = e
	o.entries = append(o.entries, e)
	if o.dead > len(o.entries)/2 || len(o.entries)%256 == 0 {
		o.tidy()
	}
	close(o.more)
	o.more = make(chan struct{})
}

func (o *outbox) kill(e *entry) {
	if !e.dead {
		e.dead = true
		o.dead++
	}
}

// forget drops a port that the directory does not know any more.
func (o *outbox) forget(port string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, phases := range o.newest[port] {
		for _, e := range phases {
			o.kill(e)
		}
	}
	delete(o.newest, port)
	o.tidy()
}

// tidy drops what need not be repeated: dead entries, and those that were taken
// over long ago and are not the last word on their port.
func (o *outbox) tidy() {
	kept := o.entries[:0]
	old := time.Now().Add(-o.remember)
	for _, e := range o.entries {
		if !e.dead && e.acked && e.at.Before(old) && o.last(e.status.Port) != e {
			phases := o.newest[e.status.Port][e.status.Epoch]
			delete(phases, e.status.Phase)
			if len(phases) == 0 {
				delete(o.newest[e.status.Port], e.status.Epoch)
			}
			e.dead = true
		}
		if !e.dead {
			kept = append(kept, e)
		}
	}
	clear(o.entries[len(kept):])
	o.entries, o.dead = kept, 0
}

// last is a port's last word: the newest status of its highest epoch in force,
// or of what is staged when nothing is.
func (o *outbox) last(port string) (best *entry) {
	staged := func(e *entry) bool {
		return e.status.Phase == vnet.StatusPrepared || e.status.Phase == vnet.StatusRefused
	}
	for _, phases := range o.newest[port] {
		for _, e := range phases {
			switch {
			case best == nil || staged(best) && !staged(e):
				best = e
			case staged(best) == staged(e) && e.status.Newer(&best.status):
				best = e
			}
		}
	}
	return best
}

// after returns the statuses after a sequence, in order, and a channel that is
// closed when there are more.
func (o *outbox) after(seq uint64) ([]vnet.Status, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if seq == 0 {
		o.tidy()
	}
	from := sort.Search(len(o.entries), func(i int) bool { return o.entries[i].status.Seq > seq })
	var out []vnet.Status
	for _, e := range o.entries[from:] {
		if !e.dead {
			out = append(out, e.status)
		}
	}
	return out, o.more
}

func (o *outbox) acked(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.entries) - 1; i >= 0 && !(o.entries[i].status.Seq <= seq && o.entries[i].acked); i-- {
		if o.entries[i].status.Seq <= seq {
			o.entries[i].acked = true
		}
	}
}

// digest is every port's last word in short.
func (o *outbox) digest() []*directorypb.PortEpoch {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*directorypb.PortEpoch
	for port := range o.newest {
		if e := o.last(port); e != nil {
			out = append(out, wire.FromDigest(&e.status))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Port < out[j].Port })
	return out
}
