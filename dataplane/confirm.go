package dataplane

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"replug/directory/vnet"
)

// publish lets the metadata service serve the place's document.
func (p *port) publish(_ context.Context, in *vnet.Intent) (outcome, error) {
	place := &in.Current
	p.docs.Publish(p.id, place.Epoch, p.document(place), guestOf(in, place))
	if !slices.ContainsFunc(p.run.Hops, func(h vnet.Hop) bool { return h.Name == "publish" }) {
		p.run.hop("publish")
	}
	p.log.Info("published", "place", place.String(), "document", place.Document != nil)
	p.tell(vnet.StatusPublished, place.Epoch, nil)
	return outcome{kind: done}, nil
}

// document is the place's, with what only the host knows.
func (p *port) document(place *vnet.Place) *vnet.Document {
	if place.Document == nil || !p.run.Resumed {
		return place.Document
	}
	d := *place.Document
	d.Woken = &vnet.Woken{Seed: make([]byte, seedBytes)}
	_, _ = rand.Read(d.Woken.Seed) // never fails (crypto/rand, Go 1.24)
	return &d
}

// seedBytes is as much as Linux's generator holds.
const seedBytes = 32

// confirm waits for the guest's report on the document. It may never come:
// then there is no agent in the guest, and others decide.
func (p *port) confirm(_ context.Context, in *vnet.Intent) (outcome, error) {
	r := &p.run
	p.reported()
	if in.Current.Document == nil {
		return outcome{kind: done}, nil
	}
	if r.Guest == nil {
		return p.untimed(in)
	}
	if !confirms(r.Guest, in.Current.Document) {
		p.told(vnet.StatusPublished)
		return p.untimed(in)
	}
	p.log.Info("confirmed", "place", in.Current.String(), "kind", r.Guest.Kind)
	p.tell(vnet.StatusConfirmed, r.Epoch, nil)
	return outcome{kind: done}, nil
}

// confirms reports whether a report is the success of the document. A partial
// one never is that of a final document (invariant 11).
func confirms(g *vnet.GuestReport, d *vnet.Document) bool {
	kind := vnet.ReportFinal
	if d.Partial() {
		kind = vnet.ReportPartial
	}
	return g.OK && g.Kind == kind
}

// settled has nothing left to do but to pass on what the guest says later, after
// a reboot for instance.
func (p *port) settled(_ context.Context, in *vnet.Intent) (outcome, error) {
	if p.reported() && p.run.Guest != nil {
		phase := vnet.StatusPublished
		if in.Current.Document != nil && confirms(p.run.Guest, in.Current.Document) {
			phase = vnet.StatusConfirmed
		}
		p.tell(phase, p.run.Epoch, nil)
	}
	return p.untimed(in)
}

// untimed ends some time after the flip what only a swap needs. The stopwatch costs
// every frame.
func (p *port) untimed(in *vnet.Intent) (outcome, error) {
	const long = time.Minute
	if p.row == nil || !p.row.Timed || p.staged != nil {
		return wait(forever), nil
	}
	if left := long - time.Since(p.run.Flipped); left > 0 {
		return wait(left), nil
	}
	if err := p.datapath.SetTimed(p.id, false); err != nil {
		return outcome{}, err
	}
	p.row.Timed = false
	return wait(forever), nil
}

// reported takes over what the guest said about the document in force.
func (p *port) reported() bool {
	p.mu.Lock()
	offers := p.events.reports
	p.events.reports = nil
	in := p.intent
	p.mu.Unlock()
	taken := false
	for _, o := range offers {
		if o.Epoch == p.run.Epoch {
			if p.run.Guest == nil {
				p.run.Hops = append(p.run.Hops, vnet.Hop{Name: "report", At: o.At})
			}
			p.run.Guest, p.run.dirty, taken = &o.GuestReport, true, true
			if o.Error != "" {
				p.log.Warn("guest reports a failure", "epoch", o.Epoch, "settings_applied", o.OK, "failure", o.Error)
			}
		}
	}
	if taken {
		p.remember(in) // the guest says it once
	}
	for _, o := range offers {
		close(o.done)
	}
	return taken
}

// told reports a phase unless that is what was reported last.
func (p *port) told(phase vnet.StatusPhase) {
	if p.last.Epoch != p.run.Epoch || p.last.Phase != phase || p.last.Power != p.power || p.last.Guest != p.run.Guest {
		p.tell(phase, p.run.Epoch, nil)
	}
}
