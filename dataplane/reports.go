package dataplane

import (
	"reflect"
	"strings"
	"time"

	"replug/directory/vnet"
)

// Each report that differs from the last costs a line of the log, a write of the
// record with the document in it, and a transaction of the leader. A guest that says
// ever something else buys few of these: some of an epoch are taken over as they come,
// then one a minute, the newest. Its first success of the epoch never waits.
const (
	reportBurst = 4
	reportEvery = time.Minute
)

// A hearing is what of a guest's reports on one epoch waits to be taken over.
type hearing struct {
	held *vnet.GuestReport // the newest; nil: none
	paid time.Time         // turns are used up until then, but for the burst
}

// wait is how long the next report has to.
func (h *hearing) wait() time.Duration {
	return max(time.Until(h.paid.Add(-(reportBurst-1)*reportEvery)), 0)
}

// spend uses up a turn.
func (h *hearing) spend() {
	now := time.Now()
	if h.paid.Before(now) {
		h.paid = now
	}
	if h.wait() == 0 {
		h.paid = h.paid.Add(reportEvery)
	}
}

// reported takes over what the guest said about the document in force, and says
// whether that was anything new.
func (p *port) reported(in *vnet.Intent) bool {
	p.mu.Lock()
	offers := p.events.reports
	p.events.reports = nil
	p.mu.Unlock()
	taken := p.takeReport(in) // whose minute is over
	for _, o := range offers {
		if o.Epoch == p.run.Epoch {
			p.run.hearing.held = &o.GuestReport
			taken = p.takeReport(in) || taken
		}
	}
	if taken {
		p.remember(*in) // the guest says it once
	}
	for _, o := range offers {
		close(o.done)
	}
	return taken
}

// takeReport takes over the report that is held, unless it says nothing new or has to
// wait.
func (p *port) takeReport(in *vnet.Intent) bool {
	r, h := &p.run, &p.run.hearing
	switch {
	case h.held == nil:
		return false
	case r.Guest != nil && sameReport(*r.Guest, *h.held):
		h.held = nil
		return false
	case h.wait() > 0 && !(r.Step == stepConfirm && confirms(h.held, in.Current.Document)):
		return false
	}
	p.takeHeld()
	return true
}

func (p *port) takeHeld() {
	r, h := &p.run, &p.run.hearing
	if r.Guest == nil {
		r.Hops = append(r.Hops, vnet.Hop{Name: "report", At: h.held.At})
	}
	h.spend()
	r.Guest, r.dirty, h.held = h.held, true, nil
	if r.Guest.Error != "" {
		p.log.Warn("guest reports a failure", "epoch", r.Guest.Epoch, "settings_applied", r.Guest.OK, "failure", excerpt(r.Guest.Error))
	}
}

// hearOut takes over what waits when the agent ends: the guest was told that it is on
// record.
func (p *port) hearOut() {
	if p.run.hearing.held == nil || p.gone {
		return
	}
	p.takeHeld()
	p.mu.Lock()
	in := p.intent
	p.mu.Unlock()
	p.remember(in)
}

// sameReport reports whether a guest only repeats itself, as it does when it isn't
// sure that it was heard.
func sameReport(a, b vnet.GuestReport) bool {
	a.At = b.At
	return reflect.DeepEqual(a, b)
}

// excerpt is as much of a guest's words as a line of the log has room for.
func excerpt(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
