package dataplane

import (
	"cmp"
	"context"
	"net/netip"
	"sync"
	"time"

	"replug/directory/vnet"
)

// What becomes of a port's connections when it leaves a network. Behind a flip
// they can't live: their addresses are another network's. Draining comes before
// the swap is decided, while the directory still leads to the port; a reset comes
// right before the flip, while the guest can still hear it.

const (
	// resetTime is how long the flip waits for resets. What is left by then is
	// told to the other ends only: to the guest the datapath says it, when it sends
	// into a connection that the new network doesn't know.
	resetTime = 5 * time.Millisecond
	// drainGap is how often a draining port's connections are listed. There is no
	// event to wait for: the kernel tells of no row that an LRU map loses, and a TCP
	// flow's end is both its FINs and their answers, which the programs only note in
	// its row. It is what a drained swap may be late by, of seconds or minutes.
	drainGap = 500 * time.Millisecond
)

// A Connection is an open TCP connection of a port, as the port sees it.
type Connection struct {
	Local, Remote netip.AddrPort
	// Peer is who the other end really is: behind a service the backend, else Remote.
	Peer netip.AddrPort
	// What each end acknowledged last, which is where the other one's sequence stands.
	LocalAck, RemoteAck uint32
}

// A Way is how a frame for an address of a network gets there from this host.
type Way struct {
	VNI     vnet.VNI // that it is carried in
	MAC     vnet.MAC // of the port there
	Ifindex int      // of the port's tap, when it is on this host; else 0
	PA      vnet.PA
	Hop     NextHop
}

// A Resetter ends TCP connections in the name of their other ends.
type Resetter interface {
	// Guest tells the guest behind a tap that the other end has ended.
	Guest(ifindex int, mac vnet.MAC, c Connection) error
	// Peer tells the other end that the guest has ended.
	Peer(from vnet.PA, w Way, c Connection) error
}

// drain lets the port begin no new connections and waits for the old ones, as
// long as the next place allows. It returns 0 when the flip may come.
func (p *port) drain(next *vnet.Place) (time.Duration, error) {
	if next.OldConnections != vnet.DrainConnections {
		return 0, nil
	}
	if p.drained.IsZero() {
		if err := p.setDraining(true); err != nil {
			return 0, err
		}
		p.drained = time.Now().Add(next.Drain)
		p.log.Info("draining", "place", next.String(), "at_most", next.Drain)
	}
	left := time.Until(p.drained)
	if left <= 0 {
		return 0, nil
	}
	open, err := p.datapath.Connections(p.id, p.row.Epoch)
	switch {
	case err != nil: // then all of the time is given
		p.log.Warn("connections can't be listed: the port drains as long as it may", "err", err)
		return left, nil
	case len(open) == 0:
		return 0, nil
	}
	return min(left, drainGap), nil
}

func (p *port) setDraining(on bool) error {
	if p.row == nil || p.row.Draining == on {
		return nil
	}
	if err := p.datapath.SetDraining(p.id, on); err != nil {
		return err
	}
	p.row.Draining = on
	return nil
}

// undrain ends what drain began: the port stays where it is, or has left.
func (p *port) undrain() error {
	p.drained = time.Time{}
	return p.setDraining(false)
}

// noteWays remembers how to reach the other ends while the network they are in is
// still known here: it may be dropped together with the intent that goes away.
func (p *port) noteWays(next *vnet.Place) {
	place, _, _, ok := p.inForce()
	if !ok || next.OldConnections == vnet.SilenceConnections {
		return
	}
	open, err := p.datapath.Connections(p.id, place.Epoch)
	if err != nil {
		p.log.Warn("connections can't be listed: peers may not hear of a reset", "err", err)
	}
	p.ways = map[netip.Addr]Way{}
	for _, c := range open {
		p.wayTo(place, c.Peer.Addr(), p.ways)
	}
}

// wayTo looks an address up, and in the network if it isn't among the ways.
func (p *port) wayTo(place *vnet.Place, to netip.Addr, ways map[netip.Addr]Way) (Way, bool) {
	w, ok := ways[to]
	if !ok {
		if w, ok = p.networks.Way(place, to); ok {
			ways[to] = w
		}
	}
	return w, ok
}

// part ends the connections that the port has in the place it leaves. It never
// holds up the flip for longer than resetTime.
func (p *port) part(_ context.Context, in *vnet.Intent) (outcome, error) {
	place, ifindex, mac, ok := p.inForce()
	ways := p.ways
	p.ways = nil
	if !ok || p.row == nil || in.Current.Swap == "" || in.Current.OldConnections == vnet.SilenceConnections {
		return outcome{kind: done}, nil
	}
	if ways == nil {
		ways = map[netip.Addr]Way{}
	}
	var late tooLate
	told := make(chan struct{})
	go func() {
		defer close(told)
		n := p.reset(place, ifindex, mac, in.PA, ways, &late)
		p.log.Info("connections reset", "place", place.String(), "connections", n)
	}()
	t := time.NewTimer(cmp.Or(p.parting, resetTime))
	defer t.Stop()
	select {
	case <-told:
	case <-t.C:
	}
	late.set()
	return outcome{kind: done}, nil
}

// tooLate keeps frames of the old network from a guest once it is to be flipped.
type tooLate struct {
	mu sync.Mutex
	is bool
}

func (l *tooLate) set() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.is = true
}

func (l *tooLate) unless(do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.is {
		return nil
	}
	return do()
}

// reset tells both ends of the connections of a place that the other one has
// ended; once it is late, no guest any more. It returns how many there were.
func (p *port) reset(place *vnet.Place, ifindex int, mac vnet.MAC, pa vnet.PA, ways map[netip.Addr]Way, late *tooLate) int {
	open, err := p.datapath.Connections(p.id, place.Epoch)
	if err != nil {
		p.log.Warn("old connections are not reset: they time out", "err", err)
	}
	for _, c := range open {
		if err := late.unless(func() error { return p.resetter.Guest(ifindex, mac, c) }); err != nil {
			p.log.Debug("guest did not hear of a reset", "err", err)
		}
		if w, ok := p.wayTo(place, c.Peer.Addr(), ways); ok {
			// Into a tap nothing translates: who came by a service knows only that.
			if service, ok := p.datapath.ServiceOf(w.Ifindex, c.Peer, c.Local); ok && w.Ifindex != 0 {
				c.Local = service
			}
			if err := p.resetter.Peer(pa, w, c); err != nil {
				p.log.Debug("peer did not hear of a reset", "err", err)
			}
		}
	}
	return len(open)
}
