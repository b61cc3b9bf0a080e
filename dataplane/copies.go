package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"replug/directory/ask"
	"replug/directory/vnet"
)

// copies shares the datapath's one ring of copied frames among those who look.
// While nobody does, nothing is copied and nothing runs.
type copies struct {
	witness Witness
	log     *slog.Logger

	life  sync.Mutex          // held while somebody comes or goes
	ports map[vnet.PortID]int // how many look at a port
	drops int                 // how many look at all drops
	stop  func()
	done  chan struct{}

	mu    sync.Mutex
	looks map[*look]struct{}
}

// A look is one reader's. It sees only what it asked for; what it is too slow for
// is counted.
type look struct {
	frames chan Copy
	wants  func(*Copy) bool
	port   vnet.PortID // whose frames are copied for it; 0: all drops
	missed atomic.Uint64
	before uint64 // lost when it began
}

// waiting is how many copies wait for one reader: 300 KiB at most.
const waiting = 1024

func newCopies(w Witness, log *slog.Logger) *copies {
	return &copies{witness: w, log: log, looks: map[*look]struct{}{}, ports: map[vnet.PortID]int{}}
}

// open begins to look at one port's frames, or with port 0 at all that is refused.
func (c *copies) open(port vnet.PortID, wants func(*Copy) bool) (*look, error) {
	c.life.Lock()
	defer c.life.Unlock()
	before, err := c.witness.CopiesLost()
	if err != nil {
		return nil, err
	}
	l := &look{frames: make(chan Copy, waiting), wants: wants, port: port, before: before}
	if c.stop == nil {
		if err := c.read(); err != nil {
			return nil, fmt.Errorf("read the copied frames: %w", err)
		}
	}
	c.mu.Lock()
	c.looks[l] = struct{}{}
	c.mu.Unlock()
	if err := c.count(l, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("let frames be copied: %w", err), c.remove(l))
	}
	return l, nil
}

// close ends a look.
func (c *copies) close(l *look) {
	c.life.Lock()
	defer c.life.Unlock()
	if err := c.remove(l); err != nil {
		c.log.Error("frames are still copied although nobody looks", "err", err)
	}
}

func (c *copies) remove(l *look) error {
	c.mu.Lock()
	delete(c.looks, l)
	last := len(c.looks) == 0
	c.mu.Unlock()
	err := c.count(l, -1)
	if last {
		c.stop()
		<-c.done
		c.stop = nil
	}
	return err
}

// count switches copying on for the first who looks and off after the last.
func (c *copies) count(l *look, n int) error {
	if l.port == 0 {
		c.drops += n
		if c.drops == 0 || c.drops == n {
			return c.witness.WatchDrops(c.drops > 0)
		}
		return nil
	}
	c.ports[l.port] += n
	on := c.ports[l.port]
	if on == 0 {
		delete(c.ports, l.port)
	}
	if on == 0 || on == n {
		return c.witness.SetCaptured(l.port, on > 0)
	}
	return nil
}

func (c *copies) read() error {
	run, stop, err := c.witness.Copies(c.take)
	if err != nil {
		return err
	}
	c.stop, c.done = stop, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		if err := run(); err != nil {
			c.log.Error("copied frames can't be read any more", "err", err)
		}
	}(c.done)
	return nil
}

// take hands one copy to those who want it. It waits for nobody.
func (c *copies) take(f Copy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.looks {
		if l.port != 0 && l.port != f.Port || !l.wants(&f) {
			continue
		}
		select {
		case l.frames <- f:
		default:
			l.missed.Add(1)
		}
	}
}

// lost counts what a look did not get since it began. What the ring had no room
// for may have been another port's; it counts for all.
func (c *copies) lost(l *look) uint64 {
	n, err := c.witness.CopiesLost()
	if err != nil || n < l.before {
		n = l.before
	}
	return n - l.before + l.missed.Load()
}

// atPoints wants the frames of some points; none: of all.
func atPoints(points []ask.Point) func(*Copy) bool {
	wanted := map[ask.Point]bool{}
	for _, p := range points {
		wanted[p] = true
	}
	return func(f *Copy) bool { return len(wanted) == 0 || wanted[f.Point] }
}
