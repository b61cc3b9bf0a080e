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
func (p *port) confirm(ctx context.Context, in *vnet.Intent) (outcome, error) {
	r := &p.run
	p.reported(in)
	if in.Current.Document == nil {
		return outcome{kind: done}, nil
	}
	if r.Guest == nil {
		return p.idle(ctx, in)
	}
	if !confirms(r.Guest, in.Current.Document) {
		p.told(vnet.StatusPublished)
		return p.idle(ctx, in)
	}
	p.log.Info("confirmed", "place", in.Current.String(), "kind", r.Guest.Kind)
	p.tell(vnet.StatusConfirmed, r.Epoch, nil)
	return outcome{kind: done}, nil
}

// confirms reports whether a report is the success of the document. A partial
// one never is that of a final document (invariant 11).
func confirms(g *vnet.GuestReport, d *vnet.Document) bool {
	if d == nil {
		return false
	}
	kind := vnet.ReportFinal
	if d.Partial() {
		kind = vnet.ReportPartial
	}
	return g.OK && g.Kind == kind
}

// settled has nothing left to do but to pass on what the guest says later, after
// a reboot for instance.
func (p *port) settled(ctx context.Context, in *vnet.Intent) (outcome, error) {
	if p.reported(in) {
		phase := vnet.StatusPublished
		if confirms(p.run.Guest, in.Current.Document) {
			phase = vnet.StatusConfirmed
		}
		p.tell(phase, p.run.Epoch, nil)
	}
	return p.idle(ctx, in)
}

// idle waits for the guest to say something, or for the turn of what it has said.
func (p *port) idle(ctx context.Context, in *vnet.Intent) (outcome, error) {
	left, err := p.untimed()
	if err != nil {
		return outcome{}, err
	}
	if p.run.hearing.held != nil {
		left = min(left, p.run.hearing.wait())
	}
	return wait(min(left, p.payLink(ctx, in))), nil
}

// payLink puts the link up if it is owed, and says when to try again. A machine that
// is off will boot with its link.
func (p *port) payLink(ctx context.Context, in *vnet.Intent) time.Duration {
	r := &p.run
	if !r.owed || !p.hasLink(in) || !p.on(in) {
		r.owed = false
		return forever
	}
	if left := retryBound - time.Since(r.probed); left > 0 {
		return left
	}
	r.probed = time.Now()
	if err := p.setLink(ctx, in, true); err != nil {
		p.warn("link is not known to be up", "err", err)
		return retryBound
	}
	r.owed = false
	return forever
}

// untimed ends some time after the flip what only a swap needs, and says how long
// until then. The stopwatch costs every frame.
func (p *port) untimed() (time.Duration, error) {
	const long = time.Minute
	if p.row == nil || !p.row.Timed || p.staged != nil {
		return forever, nil
	}
	if left := long - time.Since(p.run.Flipped); left > 0 {
		return left, nil
	}
	if err := p.datapath.SetTimed(p.id, false); err != nil {
		return 0, err
	}
	p.row.Timed = false
	return forever, nil
}

// told reports a phase unless that is what was reported last.
func (p *port) told(phase vnet.StatusPhase) {
	if p.last.Epoch != p.run.Epoch || p.last.Phase != phase || p.last.Power != p.power || p.last.Guest != p.run.Guest {
		p.tell(phase, p.run.Epoch, nil)
	}
}
