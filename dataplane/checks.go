package dataplane

import (
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"replug/directory/frame"
	"replug/directory/vnet"
)

// checks find out whether the backends of this host's ports live: a TCP handshake
// from the gateway's address, past all rules, broken off by a reset once the
// guest has answered. One goroutine makes all of them, each in its own time.
type checks struct {
	services func() []vnet.Service
	find     func(member string) (target, bool)
	send     func(target, frame.Spec) error
	report   func(vnet.Health)
	forget   func(vnet.Health) // whose word counts no more
	log      *slog.Logger
	again    chan struct{} // of length 1: services or ports have changed
	wake     chan struct{} // of length 1: what is due next may be due earlier

	mu    sync.Mutex // guards what answers touch: all below
	all   map[checkKey]*check
	queue checkQueue
	open  map[probeKey]*check // probes under way
	port  uint16              // of the last probe
}

// A target is a port as it is in force.
type target struct {
	id      vnet.PortID
	place   *vnet.Place
	ifindex int
	mac     vnet.MAC
}

type checkKey struct {
	vni             vnet.VNI
	service, member string
}

type probeKey struct {
	id   vnet.PortID
	port uint16 // the host's
}

// A check is the state of one backend's.
type check struct {
	checkKey
	vnet.Check
	ca   vnet.CA
	port uint16
	told bool      // what the directory says: it is dead
	at   time.Time // of what comes next: a probe, or the end of patience with one
	in   int       // the queue, at this index

	key     probeKey // of the probe that is under way; zero: none
	seq     uint32
	known   bool // what is reported
	dead    bool
	why     string
	row     int  // equal outcomes in a row
	failing bool // what they are
}

const (
	// Ports that probes come from. The gateway has no other connections.
	firstProbePort, lastProbePort = 20000, 59999
	checkedLater                  = time.Hour // when there is nothing to check
	// loadGap lets changes that come together be one: ten thousand ports may attach.
	loadGap = 50 * time.Millisecond
)

func newChecks(log *slog.Logger) *checks {
	return &checks{log: log, again: make(chan struct{}, 1), wake: make(chan struct{}, 1), all: map[checkKey]*check{}, open: map[probeKey]*check{}, port: firstProbePort}
}

// changed lets the checks look at services and ports anew.
func (c *checks) changed() {
	signal(c.again)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run makes checks until ctx is done.
func (c *checks) run(ctx context.Context) {
	var load <-chan time.Time // when changes are taken over; nil: there are none
	for {
		t := time.NewTimer(c.step(time.Now()))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-c.again:
			if load == nil {
				load = time.After(loadGap)
			}
		case <-load:
			load = nil
			c.load(time.Now())
		case <-c.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// load makes the checks those of the services' backends on this host. What is
// known of a backend stays known while it is asked at the same address and port, and
// is said again when the directory says otherwise: it forgets when a row is made anew.
func (c *checks) load(now time.Time) {
	want := map[checkKey]*check{}
	for _, s := range c.services() {
		if s.Check == nil {
			continue
		}
		for _, b := range s.Backends {
			if t, ok := c.find(b.Member); !ok || t.place.VNI != s.VNI || !t.place.Has(b.CA) {
				continue
			}
			k := checkKey{s.VNI, s.Name, b.Member}
			want[k] = &check{checkKey: k, Check: *s.Check, ca: b.CA, port: b.Port, told: b.Dead}
			if s.Check.Port != 0 {
				want[k].port = s.Check.Port
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, old := range c.all {
		if w := want[k]; w == nil || w.ca != old.ca || w.port != old.port {
			delete(c.open, old.key)
			delete(c.all, k)
			heap.Remove(&c.queue, old.in)
			c.forget(old.health())
		}
	}
	for k, w := range want {
		old := c.all[k]
		if old == nil {
			w.at = now.Add(rand.N(w.Interval)) // so that not all go at once
			c.all[k] = w
			heap.Push(&c.queue, w)
			continue
		}
		old.Check = w.Check
		if old.known && old.dead != w.told {
			c.report(old.health())
		}
	}
}

// step does what is due and returns the time until something is.
func (c *checks) step(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 && !c.queue[0].at.After(now) {
		c.due(c.queue[0], now)
	}
	if len(c.queue) == 0 {
		return checkedLater
	}
	return c.queue[0].at.Sub(now)
}

// schedule says when a check's next thing comes.
func (c *checks) schedule(k *check, at time.Time) {
	k.at = at
	heap.Fix(&c.queue, k.in)
}

// due ends the patience with a probe, or begins one.
func (c *checks) due(k *check, now time.Time) {
	if k.key != (probeKey{}) {
		c.end(k, now, fmt.Errorf("no answer from %s in %s", netip.AddrPortFrom(k.ca.Addr, k.port), k.Timeout))
		return
	}
	t, ok := c.find(k.member)
	if !ok || !t.place.Has(k.ca) || t.place.VNI != k.vni {
		c.schedule(k, now.Add(k.Interval)) // on its way to another place: load will tell
		return
	}
	if c.port++; c.port > lastProbePort {
		c.port = firstProbePort
	}
	k.key, k.seq = probeKey{t.id, c.port}, rand.Uint32()|1
	c.open[k.key] = k
	c.schedule(k, now.Add(k.Timeout))
	if err := c.send(t, k.segment(t, frame.SYN, k.seq, 0)); err != nil {
		c.end(k, now, fmt.Errorf("probe was not sent: %w", err))
	}
}

// segment is one of the handshake, from the gateway.
func (k *check) segment(t target, flags frame.Flags, seq, ack uint32) frame.Spec {
	return frame.Spec{
		SrcMAC: vnet.GatewayMAC, DstMAC: t.mac, Src: gatewayOf(t.place, k.ca), Dst: k.ca.Addr, Protocol: vnet.TCP,
		SrcPort: k.key.port, DstPort: k.port, Flags: flags, Seq: seq, Ack: ack,
	}
}

// gatewayOf is the gateway as the owner of an address knows it.
func gatewayOf(place *vnet.Place, ca vnet.CA) netip.Addr {
	if ca.Is6() {
		return place.VNI.Gateway6()
	}
	for _, a := range place.Addrs {
		if a.CA == ca {
			return a.Gateway
		}
	}
	return netip.Addr{}
}

// answer takes what a guest sent to the gateway by TCP.
func (c *checks) answer(id vnet.PortID, f []byte) {
	s, ok := frame.SegmentOf(f)
	if !ok {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.open[probeKey{id, s.Dst.Port()}]
	if k == nil || s.Src != netip.AddrPortFrom(k.ca.Addr, k.port) || s.Ack != k.seq+1 {
		return // late, or made up
	}
	switch {
	case s.Flags&frame.RST != 0:
		c.end(k, now, fmt.Errorf("%s refuses connections", s.Src))
	case s.Flags&(frame.SYN|frame.ACK) == frame.SYN|frame.ACK:
		if t, ok := c.find(k.member); ok {
			if err := c.send(t, k.segment(t, frame.RST, s.Ack, 0)); err != nil {
				c.log.Debug("a probed connection stays half open in the guest", "err", err)
			}
		}
		c.end(k, now, nil)
	default:
		return
	}
	signal(c.wake)
}

// end takes the outcome of a probe, and reports when it changes what is known.
func (c *checks) end(k *check, now time.Time, why error) {
	delete(c.open, k.key)
	next := k.at.Add(k.Interval - k.Timeout) // from when the probe was sent
	if !next.After(now) {
		next = now.Add(k.Interval)
	}
	k.key = probeKey{}
	c.schedule(k, next)
	if failing := why != nil; failing != k.failing {
		k.failing, k.row = failing, 0
	}
	k.row++
	if enough := k.row >= k.Rise && !k.failing || k.row >= k.Fall && k.failing; !enough || k.known && k.dead == k.failing {
		return
	}
	k.known, k.dead, k.why = true, k.failing, ""
	if why != nil {
		k.why = why.Error()
	}
	c.log.Info("backend", "service", k.service, "vni", k.vni, "port", k.member, "dead", k.dead, "why", k.why)
	c.report(k.health())
}

// health is what was found out.
func (k *check) health() vnet.Health {
	return vnet.Health{VNI: k.vni, Service: k.service, Member: k.member, Dead: k.dead, Error: k.why}
}

// A checkQueue is a heap by time.
type checkQueue []*check

func (q checkQueue) Len() int           { return len(q) }
func (q checkQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

func (q checkQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].in, q[j].in = i, j
}

func (q *checkQueue) Push(x any) {
	k := x.(*check)
	k.in = len(*q)
	*q = append(*q, k)
}

func (q *checkQueue) Pop() any {
	last := len(*q) - 1
	k := (*q)[last]
	*q = (*q)[:last]
	return k
}
