package dataplane

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"replug/dataplane/nd"
	"replug/dataplane/trap"
	"replug/directory/vnet"
)

// tellGaps are the times between the advertisements that follow an event and that
// nobody has asked for. A guest that has seen its link come back listens only when
// its link-local address is good, and systemd-networkd (252), which listens some 50 ms
// after that, asks up to 1.5 s later. RFC 4861, section 10, wants 3 s between two on a
// link of many hosts and routers, RFC 6275, section 7.5, as little as 30 ms where a host
// has just arrived; here one guest hears them. No more of them than needed: dhcpcd runs
// its scripts for each, and hears nothing of its link meanwhile. So they end when the
// guest has asked and was answered.
var tellGaps = []time.Duration{80 * time.Millisecond, 170 * time.Millisecond, 750 * time.Millisecond, 4 * time.Second}

const (
	// The first one, every third after it and the last one take the former routers back.
	takeBackEvery = 3
	// Then they come at random within these bounds (the RFC's own), a third of
	// their lifetime at most.
	tellLeast = 200 * time.Second
	tellMost  = 600 * time.Second
	// mostFormer bounds how many former routers are taken back.
	mostFormer = 4
)

// A former router was the port's in a place that it has left. A guest believes it
// until then, unless it is told otherwise.
type former struct {
	Router nd.Router `json:"router"`
	Until  time.Time `json:"until"`
}

// leave adds the router of a place that the port leaves to those that are taken
// back, and forgets those that no guest can believe in any more.
func leave(list []former, place *vnet.Place, mtu uint16) []former {
	now := time.Now()
	var r nd.Router
	ok := false
	if place != nil {
		r, ok = nd.RouterOf(place, mtu)
	}
	kept := slices.DeleteFunc(slices.Clone(list), func(f former) bool {
		return !f.Until.After(now) || ok && reflect.DeepEqual(f.Router, r) // once is enough
	})
	if !ok {
		return kept
	}
	kept = append(kept, former{r, now.Add(nd.Lifetime)})
	return kept[max(0, len(kept)-mostFormer):]
}

// left is the place that the port is about to leave for in: the one it serves, or
// that of an earlier session's record.
func (p *port) left(in *vnet.Intent) *vnet.Place {
	place, _, _, _ := p.inForce()
	if place == nil && p.saved.Current.Epoch != 0 {
		place = &p.saved.Current
	}
	if place == nil || place.Epoch == in.Current.Epoch {
		return nil
	}
	return place
}

// advertise makes the advertisements for a guest, to one of its addresses or to
// all nodes: first those that take former routers back, then that of its place.
func advertise(place *vnet.Place, before []former, mac vnet.MAC, to netip.Addr, mtu uint16) [][]byte {
	var frames [][]byte
	now, ok := nd.RouterOf(place, mtu)
	if !ok {
		now = nd.Router{}
	}
	for _, f := range before {
		if f.Until.After(time.Now()) && !reflect.DeepEqual(f.Router, now) {
			frames = append(frames, f.Router.Withdraw(now, mac, to))
		}
	}
	if ok {
		frames = append(frames, now.Advertise(mac, to))
	}
	return frames
}

// tellRouter advertises the port's router when it is time, and says when it is time
// again. Nobody asks after a flip: a kernel whose link comes back keeps the
// router that it knows. The gateway's MAC needs no announcement, neither here nor
// by ARP: it is the same in every network.
func (p *port) tellRouter() time.Duration {
	r := &p.run
	if r.Step == stepPart || r.Step == stepCut || r.Step == stepFlip || r.Step == stepDark || r.Step == stepRecut {
		return forever // nobody would hear it
	}
	if left := time.Until(r.tellAt); left > 0 {
		return left
	}
	place, ifindex, mac, ok := p.inForce()
	if !ok {
		return forever
	}
	frames := advertise(place, r.Former, mac, netip.Addr{}, p.mtu)
	if _, six := place.V6(); six && r.told < len(tellGaps) && r.told%takeBackEvery != 0 {
		frames = frames[len(frames)-1:] // its own
	}
	gap := tellLeast + rand.N(tellMost-tellLeast)
	switch {
	case len(frames) == 0:
		gap = forever
	case p.knowsRouter():
		frames, r.told = nil, len(tellGaps)
	case r.told < len(tellGaps):
		gap = tellGaps[r.told]
	}
	for _, f := range frames {
		if err := p.router.Tell(ifindex, f); err != nil {
			p.log.Debug("router advertisement was not sent", "err", err)
		}
	}
	p.metrics.adverts.WithLabelValues("unsolicited").Add(float64(len(frames)))
	if r.told == 0 {
		r.tellFrom = time.Now()
	}
	r.told++
	r.tellAt = time.Now().Add(gap)
	return gap
}

// knowsRouter reports whether the guest has asked since the first advertisement of the
// series that goes on.
func (p *port) knowsRouter() bool {
	r := &p.run
	if r.told == 0 || r.told > len(tellGaps) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events.routed.in(r).After(r.tellFrom)
}

// tellAnew lets the next advertisement follow at once: something has changed.
func (r *run) tellAnew() { r.told, r.tellAt = 0, time.Time{} }

// moveRouter lets the guest hear of a place that has changed within its epoch.
func (p *port) moveRouter(old, now *vnet.Place) {
	if old == nil {
		return
	}
	before, _ := nd.RouterOf(old, p.mtu)
	after, _ := nd.RouterOf(now, p.mtu)
	if !reflect.DeepEqual(before, after) {
		p.setFormer(leave(p.run.Former, old, p.mtu))
		p.run.tellAnew()
	}
}

// formerRouters is what an answer to a solicitation has to take back.
func (p *port) formerRouters() []former {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.former
}

func (p *port) setFormer(list []former) {
	p.run.Former = list
	p.mu.Lock()
	defer p.mu.Unlock()
	p.former = list
}

// routers speaks to guests through their taps.
type routers struct{ sender *trap.Sender }

func (r routers) Tell(ifindex int, frame []byte) error { return r.sender.Send(ifindex, frame) }
