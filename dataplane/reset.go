package dataplane

import (
	"slices"
	"time"

	"replug/directory/vnet"
)

// longBoot is how long a guest that says nothing is believed to boot when a walk begins.
const longBoot = 2 * time.Minute

// boots reports whether the guest comes up in this place, and asks by itself.
func (r *run) boots() bool { return r.Boots || r.Reset }

// heedReset takes notice, once, of a guest that was reset on its way. Its QEMU stays,
// and so do the port and what is served to it, but until it is up it hears nothing:
// cuts would only end the ladder, and the swap. So it is waited for as for one that
// was just started, and the leader is told, which bounds a boot.
func (p *port) heedReset(in *vnet.Intent) {
	r := &p.run
	p.mu.Lock()
	e := p.events
	p.mu.Unlock()
	if in.Current.Swap == "" || r.boots() || r.Step == stepSettled || e.reset.IsZero() {
		return
	}
	if !e.reset.After(r.begun) && (e.heard().After(e.reset) || time.Since(e.reset) > longBoot) {
		return // it was up again when the walk began
	}
	r.Reset, r.dueBy = true, time.Time{}
	r.Hops = append(r.Hops, vnet.Hop{Name: vnet.HopReset, At: e.reset})
	r.dirty = true
	p.log.Info("guest was reset in mid-swap: its link is not cut any more, it asks when it is up")
	if p.last.Epoch == r.Epoch && p.last.Phase != vnet.StatusFailed {
		p.tell(p.last.Phase, r.Epoch, nil)
	}
}

// heard is when the guest last said something that the host has heard.
func (e *events) heard() time.Time {
	all := []time.Time{e.stirred.at}
	for _, m := range slices.Concat(e.acks[:], e.answers[:]) {
		all = append(all, m.at)
	}
	return slices.MaxFunc(all, time.Time.Compare)
}
