package dataplane

import (
	"context"
	"slices"
	"time"

	"replug/directory/vnet"
)

// longBoot is how long a guest that says nothing is believed to boot when a walk begins.
const longBoot = 2 * time.Minute

// lately is how long ago a guest may have been heard to be believed to be up still.
const lately = time.Minute

// boots reports whether the guest comes up in this place, and asks by itself.
func (r *run) boots() bool { return r.Boots || r.Reset }

// heedReset takes notice, once, of a guest that was reset on its way. Its QEMU stays,
// and so do the port and what is served to it, but until it is up it hears nothing:
// cuts would only end the ladder, and the swap. So it is waited for as for one that
// was just started, and the leader is told, which bounds a boot.
func (p *port) heedReset(ctx context.Context, in *vnet.Intent) {
	r := &p.run
	if in.Current.Swap == "" || r.boots() || r.Step == stepSettled {
		return
	}
	p.mu.Lock()
	e := p.events
	p.mu.Unlock()
	if !r.asked && e.reset.IsZero() && time.Since(e.heard()) > lately && p.nicBoots(ctx, in) {
		p.wasReset()
		e.reset = time.Now()
	}
	r.asked = true
	if e.reset.IsZero() {
		return
	}
	if !e.reset.After(r.begun) && (e.heard().After(e.reset) || time.Since(e.reset) > longBoot) {
		return // it was up again when the walk began
	}
	r.Reset, r.dueBy = true, time.Time{}
	r.Hops = append(r.Hops, vnet.Hop{Name: vnet.HopReset, At: e.reset})
	r.dirty = true
	p.log.Info("guest was reset in mid-swap: its link is not cut any more, it asks when it is up")
	switch {
	case p.last.Epoch == r.Epoch && p.last.Phase != vnet.StatusFailed:
		p.tell(p.last.Phase, r.Epoch, nil)
	case p.last.Epoch != r.Epoch && r.resumed && r.Step == stepDark:
		p.tell(vnet.StatusFlipped, r.Epoch, nil) // this session has told nothing of it yet
	}
}

// nicBoots asks the guest's NIC whether the guest boots. A reset is told once, to those
// who listen then: not to an agent that was away, nor to one that had no business with
// the VM. Who can't be asked is believed to be up.
func (p *port) nicBoots(ctx context.Context, in *vnet.Intent) bool {
	if !p.on(in) || !p.hasLink(in) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, monitorTime)
	defer cancel()
	if p.link == nil {
		link, err := p.links.Open(ctx, *in, p.wasReset)
		if err != nil {
			return false // whoever sets the link says why
		}
		p.link = link
	}
	boots, err := p.link.Boots(ctx)
	if err != nil {
		p.log.Debug("its NIC does not tell whether the guest boots", "err", err)
	}
	return err == nil && boots
}

// heard is when the guest last said something that the host has heard.
func (e *events) heard() time.Time {
	all := []time.Time{e.stirred.at}
	for _, m := range slices.Concat(e.acks[:], e.answers[:]) {
		all = append(all, m.at)
	}
	return slices.MaxFunc(all, time.Time.Compare)
}
