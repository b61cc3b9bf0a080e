package dataplane

import (
	"context"
	"time"

	"replug/directory/vnet"
)

// bounces reports whether the guest's link is cut on the way to place. A first
// place needs none: the guest boots there.
func bounces(place *vnet.Place) bool {
	return place.Swap != "" && place.Trigger != vnet.TriggerNone
}

// cut takes the link down. A guest that can't be bounced, or whose tap is gone,
// is flipped all the same, since the directory has moved already; the steps
// after the flip will try again.
func (p *port) cut(ctx context.Context, in *vnet.Intent) (outcome, error) {
	if err := p.device(in); err != nil {
		if p.row == nil {
			return outcome{}, err
		}
		p.log.Warn("port is flipped without its tap", "err", err)
	}
	p.ask() // its answer is the last frame before the blackout
	if bounces(&in.Current) && p.row != nil && p.on(in) {
		if err := p.setLink(ctx, in, false); err != nil {
			p.log.Warn("link could not be cut", "err", err)
		} else {
			p.run.Cuts++
			p.run.hop("link_down")
		}
	}
	p.run.cutAt = time.Now()
	return outcome{kind: done}, nil
}

// flip puts the place in force. Nothing of the old one may be reachable once it
// returns, and everything of the new one must be there before.
func (p *port) flip(_ context.Context, in *vnet.Intent) (outcome, error) {
	place := &in.Current
	first := p.row == nil
	p.on(in) // for the status
	begun := time.Now()
	old, _, _, _ := p.inForce()
	if err := p.networks.Use(p.id, old, place); err != nil {
		return outcome{}, err
	}
	row, err := p.rowOf(in, place, !first || place.Swap != "")
	if err == nil && row.Rules == nil {
		err = errGroups // those in force are another network's
	}
	if err != nil {
		return outcome{}, err
	}
	if !first {
		p.docs.Withdraw(p.id)
	}
	p.setPlace(nil, 0)
	if err := p.datapath.SetPort(row); err != nil {
		return outcome{}, err
	}
	p.row, p.staged = &row, nil
	p.run.Flipped = time.Now()
	p.run.hop("flip")
	here := *place
	p.setPlace(&here, row.Ifindex)
	p.metrics.flipped(time.Since(begun), first)
	if err := p.networks.Use(p.id, place); err != nil {
		return outcome{}, err
	}
	if place.Swap == "" {
		// Nobody was here before, so the document needs no proof.
		p.docs.Publish(p.id, place.Epoch, place.Document)
	}
	p.log.Info("flipped", "network", place.Network, "place", place.String(), "swap", place.Swap)
	p.tell(vnet.StatusFlipped, place.Epoch, nil)
	return outcome{kind: done}, nil
}

// dark waits until the guest has seen its link down, then puts it up. Ports
// that are not in a flip pass here once after the agent's start: an agent that
// died at the wrong moment leaves no guest without a link.
func (p *port) dark(ctx context.Context, in *vnet.Intent) (outcome, error) {
	r := &p.run
	if err := p.device(in); err != nil {
		return outcome{}, err
	}
	if err := p.settleNetworks(in); err != nil {
		return outcome{}, err
	}
	if !p.on(in) || !p.hasLink(in) {
		r.kicked = time.Now()
		return outcome{kind: done}, nil
	}
	if left := at(r.Tried).dark - time.Since(r.cutAt); r.Cuts > 0 && left > 0 {
		return wait(left), nil
	}
	err := p.setLink(ctx, in, true)
	switch {
	case err != nil && r.Cuts > 0:
		return outcome{}, err // we cut it
	case err != nil:
		p.log.Warn("link is not known to be up", "err", err)
		r.owed = true
	case r.Cuts > 0 && !r.up():
		r.hop("link_up")
	}
	r.kicked, r.dueBy = time.Now(), time.Time{}
	r.tellAnew()
	return outcome{kind: done}, nil
}

// recut is the next rung.
func (p *port) recut(ctx context.Context, in *vnet.Intent) (outcome, error) {
	r := &p.run
	if r.Cuts > 0 || r.again {
		r.Tried++
	}
	r.again, r.dueBy = true, time.Time{}
	if r.Tried >= len(ladder) {
		p.fail("was bounced %d times and not seen on its new address: look at its DHCP client and its monitor", r.Cuts)
	}
	if err := p.setLink(ctx, in, false); err != nil {
		p.log.Warn("link could not be cut", "err", err)
		return outcome{kind: done}, nil // the guest may come by itself
	}
	r.Cuts++
	r.cutAt = time.Now()
	r.hop("link_down")
	p.log.Info("bounce again", "rung", at(r.Tried).String(), "cuts", r.Cuts)
	return outcome{kind: done}, nil
}
