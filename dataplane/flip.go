package dataplane

import (
	"context"
	"net/netip"
	"time"

	"replug/directory/vnet"
)

// bounced reports whether the guest's link is cut on the way to place. A first
// place needs none: the guest boots there.
func bounced(place *vnet.Place) bool {
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
	if bounced(&in.Current) && p.row != nil && p.on(in) {
		if p.run.Agent = p.hearsUs(in); p.run.Agent || p.rung(in).kind == renew {
			return outcome{kind: done}, nil
		}
		if err := p.setLink(ctx, in, false); err != nil {
			p.log.Warn("link could not be cut", "err", err)
		} else {
			p.run.Cuts++
			p.run.hop("link_down")
		}
	}
	p.run.cutAt = time.Now()
	if !p.run.Dark.IsZero() {
		p.run.cutAt = p.run.Dark
	}
	return outcome{kind: done}, nil
}

// hearsUs reports whether an agent in the guest can be told of the swap instead of a cut.
// Not beside a cloud-init that waits in the pool: it waits for its link, and an agent's
// lease would be taken for its own.
func (p *port) hearsUs(in *vnet.Intent) bool {
	return p.agents.Listens(p.id) && !(p.run.Pooled && personalityOf(in).CloudInit())
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
	row := p.rowOf(in, place, !first || place.Swap != "")
	var err error
	if row.Rules, err = p.networks.Rules(place); err != nil {
		return outcome{}, err // those in force are another network's
	}
	if !first {
		p.docs.Withdraw(p.id)
	}
	if old != nil {
		p.accounts.leave(p.id, accountOf(old))
	}
	p.setPlace(nil, 0)
	if err := p.datapath.SetPort(row); err != nil {
		return outcome{}, err
	}
	p.row, p.staged, p.roomHeld = &row, nil, !first
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
		p.docs.Publish(p.id, place.Epoch, place.Document, guestOf(in, place))
	}
	p.log.Info("flipped", "network", place.Network, "place", place.String(), "swap", place.Swap)
	p.tell(vnet.StatusFlipped, place.Epoch, nil)
	return outcome{kind: done}, nil
}

// dark waits until the guest has seen its link down, then puts it up. A port whose
// guest had not proved itself passes here once after the agent's start, others
// [port.payLink]: an agent that died at the wrong moment leaves no guest without a link.
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
	if left := p.rung(in).dark - time.Since(r.cutAt); r.Cuts > 0 && left > 0 {
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
	switch {
	case r.Agent && r.Cuts == 0:
		r.Agent = p.askAgent(&in.Current)
	case r.Cuts == 0 && bounced(&in.Current) && p.rung(in).kind == renew:
		p.docs.Renew(p.id, true)
		r.hop(polling.String())
	}
	r.kicked, r.dueBy, r.Dark = time.Now(), time.Time{}, time.Time{}
	r.tellAnew()
	return outcome{kind: done}, nil
}

// askAgent is the rung before the ladder: the guest's agent is told by its second
// channel that the network has changed, and no link is cut. False: none listens.
func (p *port) askAgent(place *vnet.Place) bool {
	moved := vnet.Moved{Epoch: place.Epoch}
	for _, a := range place.Addrs {
		moved.Addrs = append(moved.Addrs, netip.PrefixFrom(a.CA.Addr, a.Bits))
	}
	if !p.agents.Moved(p.id, moved) {
		return false
	}
	p.run.hop("agent_told")
	return true
}

// recut is the next rung.
func (p *port) recut(ctx context.Context, in *vnet.Intent) (outcome, error) {
	r := &p.run
	switch {
	case r.Agent && r.Cuts == 0:
		r.hop("no proof by " + agentRung)
	case r.Cuts > 0 || r.again || p.rung(in).kind == renew:
		r.hop("no proof by " + p.rung(in).String())
		r.Tried++
	}
	if p.last.Epoch == r.Epoch && p.last.Phase != vnet.StatusFailed {
		p.tell(p.last.Phase, r.Epoch, nil) // for the receipt of a swap that ends before its ladder
	}
	r.again, r.dueBy = true, time.Time{}
	last := len(p.ladder(in)) - 1
	if p.halfway(in) && r.Tried < last {
		r.Tried, r.Jumped = last, true // its one client heard the link; the other wants more
	}
	for r.Tried < last && p.costsTheLast(in) {
		r.Tried++
	}
	if r.Tried > last && p.timeLeft(in) < p.ladder(in).lasts()+late {
		p.fail("was bounced %d times and not seen on its new address: look at its DHCP client and its monitor", r.Cuts)
	}
	next := p.rung(in)
	p.docs.Renew(p.id, next.kind == renew)
	if next.kind == renew {
		r.hop(next.String())
		p.log.Info("sent back to DHCP", "cuts", r.Cuts)
		return outcome{kind: done}, nil
	}
	if err := p.setLink(ctx, in, false); err != nil {
		p.log.Warn("link could not be cut", "err", err)
		return outcome{kind: done}, nil // the guest may come by itself
	}
	r.Cuts++
	r.cutAt = time.Now()
	r.hop("link_down")
	p.log.Info("bounce again", "rung", next.String(), "cuts", r.Cuts)
	return outcome{kind: done}, nil
}

// costsTheLast reports whether there is time for the last rung, but not for this one
// before it: the rungs so far have taken longer than their own time.
func (p *port) costsTheLast(in *vnet.Intent) bool {
	here, lasts := p.rung(in), p.ladder(in).lasts()
	left := p.timeLeft(in) - lasts
	return left >= 0 && left < here.dark+max(leastPatience(in), here.patience)
}

// ladder is the guest's, as it was when the walk began.
func (p *port) ladder(in *vnet.Intent) ladder {
	return ladderOf(personalityOf(in), p.run.Pooled, p.run.Polls)
}

// rung is where on its ladder the guest is.
func (p *port) rung(in *vnet.Intent) rung { return p.ladder(in).at(p.run.Tried) }

// firstRung is where the guest begins on its ladder.
func (p *port) firstRung(in *vnet.Intent) {
	r, c := &p.run, p.climber(in)
	if r.resumed || in.Current.Undo || !p.climbs(in) {
		r.Tried = p.rungs.first(c)
		return
	}
	if r.Tried, r.Try = p.rungs.try(c, p.ladder(in), leastPatience(in)); r.Try {
		p.log.Info("begins a rung lower than the last ones of its image", "image", c.image, "rung", p.rung(in).String())
	}
}

// teaches reports whether the rung on which the guest was seen says how others of
// its kind are. It doesn't when rungs were left out on the way to it, when the whole
// ladder had failed before, when the guest may never have gone, and when an earlier
// session of the agent may have woken it.
func (p *port) teaches(in *vnet.Intent) bool {
	r := &p.run
	return !r.Jumped && !r.resumed && !in.Current.Undo && r.Tried < len(p.ladder(in))
}

// climber is who climbs.
func (p *port) climber(in *vnet.Intent) climber {
	c := climber{image: ofPort(in), pooled: p.run.Pooled, polls: p.run.Polls}
	if in.Machine != nil {
		c.image = in.Machine.Image
	}
	return c
}

// ofPort stands for the image of somebody else's VM, which is like no other.
func ofPort(in *vnet.Intent) string { return "port " + in.Port }

// pooled reports whether the guest waits in the pool, where it is now.
func (p *port) pooled() bool {
	place, _, _, ok := p.inForce()
	return ok && place.Document != nil && place.Document.Partial()
}
