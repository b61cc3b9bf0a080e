package dataplane

import (
	"context"
	"fmt"
	"slices"
	"time"

	"replug/directory/vnet"
)

// prove waits for the guest to be seen on its new CA: an answer to an ARP probe or
// a Neighbour Solicitation, or any frame of its own from that address. Nothing
// else tells: QMP's set_link succeeds on adapters that ignore it.
func (p *port) prove(ctx context.Context, in *vnet.Intent) (outcome, error) {
	if !p.on(in) {
		p.told(vnet.StatusFlipped) // with the power off: there is nobody to be seen
		p.run.dueBy, p.run.Boots = time.Time{}, true
		return wait(forever), nil
	}
	seen, blackout := p.evidence(in)
	r := &p.run
	if !seen.IsZero() {
		p.leased(in, seen, blackout)
		return outcome{kind: done}, nil
	}
	now := time.Now()
	if r.dueBy.IsZero() {
		r.dueBy = now.Add(p.patience(in))
	}
	p.watchWork(in)
	due := p.due(in)
	if !now.Before(due) && p.impatient(in) {
		return outcome{kind: again}, nil
	}
	left := due.Sub(now)
	if left <= 0 {
		left = forever // who can't be bounced is asked on
	}
	return wait(min(p.probe(ctx, in), left)), nil
}

// watchWork looks whether a guest in the pool works. It waits there without doing
// anything, so one that does has noticed that something happened, however long the
// rest takes on a busy host. Others have work of their own.
func (p *port) watchWork(in *vnet.Intent) {
	const glance = 100 * time.Millisecond
	r := &p.run
	if !r.Pooled || in.Machine == nil || time.Since(r.lookedAt) < glance {
		return
	}
	now, worked := time.Now(), p.machines.Worked(*in.Machine)
	if !r.lookedAt.IsZero() && worked-r.worked > now.Sub(r.lookedAt)/2 {
		r.workedAt = now
	}
	r.lookedAt, r.worked = now, worked
}

// due is when the wait for the proof ends. A guest that stirs since its link was cut
// is on its way; one that has leased may be looking whether somebody else has its
// address, and dhcpcd takes the other family up only then. Another cut would only throw
// it back. One that stirs and has leased nothing gets it in the end: its link may not be
// what it heard.
func (p *port) due(in *vnet.Intent) time.Time {
	p.mu.Lock()
	stirred := p.events.stirred.in(&p.run)
	p.mu.Unlock()
	due, leases := p.run.dueBy, p.leases(in)
	if len(leases) > 0 {
		due = later(due, slices.MaxFunc(leases, time.Time.Compare).Add(settling))
	}
	if half := p.run.half; !half.IsZero() {
		due = later(due, half.Add(companion))
	}
	stirred = later(stirred, p.run.workedAt)
	if stirred.After(p.run.cutAt) {
		stirs := stirred.Add(stirring)
		if most := p.run.dueBy.Add(settling); len(leases) == 0 && stirs.After(most) {
			stirs = most
		}
		due = later(due, stirs)
	}
	return due
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// leasing lists the families that the guest can lease at its place.
func (p *port) leasing(in *vnet.Intent) []family {
	return slices.DeleteFunc(leasing(&in.Current), func(f family) bool { return p.run.Speaks[f] == silent })
}

// leases lists when the guest last leased an address of each family, since its
// link was cut.
func (p *port) leases(in *vnet.Intent) []time.Time {
	p.mu.Lock()
	acks := p.events.acks
	p.mu.Unlock()
	var list []time.Time
	for _, f := range p.leasing(in) {
		if at := acks[f].in(&p.run); at.After(p.run.cutAt) {
			list = append(list, at)
		}
	}
	return list
}

// halfway reports whether the guest has leased for one family and not for the other.
func (p *port) halfway(in *vnet.Intent) bool {
	n := len(p.leases(in))
	return n > 0 && n < len(p.leasing(in))
}

// patience is how long this rung waits for a proof.
func (p *port) patience(in *vnet.Intent) time.Duration {
	least := leastPatience(in)
	switch {
	case !p.climbs(in):
		return noBouncePatience
	case p.run.Cuts == 0 && p.rung(in).kind != renew || p.run.resumed && !p.run.again:
		return max(least, resumePatience)
	default:
		return max(least, p.rungs.patience(p.climber(in), p.ladder(in), p.run.Tried, p.timeLeft(in)))
	}
}

func leastPatience(in *vnet.Intent) time.Duration {
	if _, ok := in.Current.V6(); ok {
		return patience6
	}
	return 0
}

// timeLeft is what is left of the leader's time.
func (p *port) timeLeft(in *vnet.Intent) time.Duration {
	most := in.Current.LeaseBudget
	if most == 0 {
		most = leadersTime
	}
	return most - time.Since(p.run.Flipped)
}

// impatient says that time is up: true when there is a rung to climb. A guest
// that boots has all the time it needs: the leader bounds it.
func (p *port) impatient(in *vnet.Intent) bool {
	switch {
	case in.Current.Swap == "" || p.run.boots():
		return false
	case p.climbs(in):
		return true
	}
	p.fail("was not seen on its new address for %s: is it configured there?", noBouncePatience)
	return false
}

// climbs reports whether the guest is bounced until it is seen.
func (p *port) climbs(in *vnet.Intent) bool {
	return bounced(&in.Current) && p.hasLink(in) && !p.run.boots()
}

// fail reports once that the ladder has ended. It goes on all the same.
func (p *port) fail(format string, args ...any) {
	if p.run.failed {
		return
	}
	p.run.failed = true
	why := fmt.Errorf("guest "+format, args...)
	p.log.Warn("no proof", "why", why)
	p.tell(vnet.StatusFailed, p.run.Epoch, why)
}

// evidence returns when the guest was last seen on the place's CAs, one of each
// family that it speaks; zero: not yet, or not later than the leases that it must
// have taken first.
func (p *port) evidence(in *vnet.Intent) (seen time.Time, blackout time.Duration) {
	r := &p.run
	p.mu.Lock()
	e := p.events
	p.mu.Unlock()
	list := p.provable(in)
	for _, f := range list {
		p.noteLease(f, e.acks[f].in(r))
	}
	var frame time.Time // the last one, from any of the place's CAs or a link-local address
	if t, err := p.datapath.Times(p.id); err == nil && t.Epoch == r.Epoch {
		blackout = t.Blackout
		frame = moment{t.Seen, t.Epoch}.in(r)
	}
	_, v6 := in.Current.V6()
	var absent []family
	for _, f := range list {
		at := e.answers[f].in(r)
		if f == ipv4 && !v6 && frame.After(at) {
			at = frame // else it may be of IPv6, and from before the guest has its address
		}
		if at.IsZero() || p.needsACK(in, f) && (r.ack(f).IsZero() || p.sameCA(in, f) && at.Before(*r.ack(f))) {
			absent = append(absent, f)
			continue
		}
		r.Speaks[f] = speaks
		seen = later(seen, at)
	}
	if !seen.IsZero() && len(absent) > 0 && r.half.IsZero() {
		r.half = time.Now()
	}
	if seen.IsZero() || !r.without(absent) {
		return time.Time{}, 0
	}
	for _, f := range absent {
		if r.Speaks[f] == unknown {
			r.hop("no proof of " + f.String())
		}
		r.Speaks[f] = silent
	}
	return seen, blackout
}

// noteLease notes the family's first lease after the flip; zero: there is none.
func (p *port) noteLease(f family, at time.Time) {
	r := &p.run
	ack := r.ack(f)
	if at.IsZero() || !ack.IsZero() {
		return
	}
	*ack, r.kicked, r.probed, r.Speaks[f] = at, time.Now(), time.Time{}, speaks
	r.Hops = append(r.Hops, vnet.Hop{Name: f.leaseHop(), At: at})
	r.dirty = true
	p.docs.Renew(p.id, false)
}

// provable are the families in which the guest can be seen. cloud-init in the pool
// asks for an IPv4 lease only; the rest comes with the guest's own network, later.
func (p *port) provable(in *vnet.Intent) []family {
	list := families(&in.Current)
	if p.run.Pooled && personalityOf(in).CloudInit() && slices.Contains(list, ipv4) {
		return []family{ipv4}
	}
	return list
}

// needsACK reports whether only a lease later than the flip proves that the
// guest follows. Not when it boots there. Not when it comes back, since it may
// never have gone. Not when it makes its address itself. Not when an earlier
// session of the agent may have answered it, unless the address alone proves
// nothing.
func (p *port) needsACK(in *vnet.Intent, f family) bool {
	if !bounced(&in.Current) || in.Current.Undo || p.run.Boots || !slices.Contains(leasing(&in.Current), f) {
		return false
	}
	return !p.run.resumed || p.sameCA(in, f)
}

// sameCA reports whether the guest had the place's CA before the flip already.
func (p *port) sameCA(in *vnet.Intent, f family) bool {
	return slices.ContainsFunc(p.run.From, func(ca vnet.CA) bool { return familyOf(ca) == f && in.Current.Has(ca) })
}

// leased notes the proof.
func (p *port) leased(in *vnet.Intent, seen time.Time, blackout time.Duration) {
	r := &p.run
	r.Hops = append(r.Hops, vnet.Hop{Name: "seen", At: seen})
	r.Blackout = blackout
	switch {
	case r.Reset:
		r.Rung = bootRung
	case r.Cuts > 0 || bounced(&in.Current) && p.rung(in).kind == renew:
		r.Rung = p.rung(in).String()
		if p.teaches(in) {
			took := seen.Sub(r.cutAt) - p.rung(in).dark
			p.rungs.remember(p.climber(in), p.ladder(in), r.Tried, took, r.Try)
		}
	case r.Agent:
		r.Rung = agentRung
	case in.Current.Swap != "" && r.told > 0 && p.tookRouter(in):
		r.Rung = "ra"
	case in.Current.Swap != "":
		r.Rung = "none"
	}
	r.owed = false // it was seen
	p.log.Info("leased", "place", in.Current.String(), "rung", r.Rung, "after", seen.Sub(r.Flipped), "blackout", blackout)
	p.tell(vnet.StatusLeased, r.Epoch, nil)
}

// tookRouter reports whether the guest has its IPv6 address by what the router has said:
// one that was set by hand is none of the router's.
func (p *port) tookRouter(in *vnet.Intent) bool {
	a, six := in.Current.V6()
	return six && (a.SLAAC || !p.run.ACK6.IsZero())
}

// probe asks the guest, when it is time, and says when it is time again.
func (p *port) probe(ctx context.Context, in *vnet.Intent) time.Duration {
	r := &p.run
	gap := probeGap(time.Since(r.kicked))
	if left := gap - time.Since(r.probed); left > 0 {
		return left
	}
	r.probed = time.Now()
	if r.owed && p.setLink(ctx, in, true) == nil {
		r.owed = false
	}
	p.ask()
	return gap
}

// ask asks the guest for its addresses in the place in force.
func (p *port) ask() {
	place, ifindex, mac, ok := p.inForce()
	if !ok {
		return
	}
	if err := p.prober.Probe(ifindex, mac, place); err != nil {
		p.log.Debug("probe was not sent", "err", err)
	}
}
