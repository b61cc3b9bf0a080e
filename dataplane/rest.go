package dataplane

import (
	"context"
	"fmt"
	"time"

	"replug/directory/vnet"
)

const (
	// quiet is for a guest that has just reported: the answer is to reach it before
	// it stands still, or it would ask a connection that is no more. Nothing tells.
	quiet = 3 * time.Second
	// noticing is for a guest to notice that its link was cut before it is saved. Nothing
	// tells: its kernel says so a second late at most, and it hears that of its kernel.
	noticing = 2 * time.Second
	// wakes is when a guest that is being resumed is looked at again.
	wakes = 100 * time.Millisecond
	// stretches is how long the agent of a guest that was resumed may take to say that
	// it is there. It is told of its next place then; a cut of its link, which is short,
	// it may not notice so soon.
	stretches = time.Second
)

// rests reports whether the machine is to wait as a saved state: its pool says so,
// its guest waits, and no other place is being made ready.
func (p *port) rests(in *vnet.Intent) bool {
	if in.Current.Hold != vnet.HoldSnapshot || in.Next != nil && in.Next.Epoch > in.Current.Epoch || p.run.Epoch != in.Current.Epoch {
		return false
	}
	return p.run.Step == stepSettled || p.run.Step == stepConfirm && !personalityOf(in).Reports()
}

// rest saves the machine, unless it rests already. One that has died meanwhile is
// not started: it is no longer what its pool believes, and is reported off.
func (p *port) rest(ctx context.Context, in *vnet.Intent) (time.Duration, error) {
	if p.power != vnet.PowerOn {
		return powerCheck, nil
	}
	if g := p.run.Guest; g != nil {
		if left := quiet - time.Since(g.At); left > 0 {
			return left, nil
		}
	}
	if left, err := p.cutBefore(ctx, in); err != nil || left > 0 {
		return left, err
	}
	p.closeLink()
	ctx, cancel := p.long(ctx)
	defer cancel()
	if err := p.machines.Save(ctx, *in.Machine); err != nil {
		return 0, fmt.Errorf("save the machine: %w", err)
	}
	p.on(in)
	p.turned()
	p.log.Info("machine saved")
	return powerCheck, nil
}

// cutBefore takes the link of a guest down that will be woken by that, and says how long
// it may take to notice it yet. A cut is noticed at leisure now, and would be slowly when
// it has just been resumed, where a short one is swallowed: at its claim the link only
// has to come up.
func (p *port) cutBefore(ctx context.Context, in *vnet.Intent) (time.Duration, error) {
	if l := ladderOf(personalityOf(in), p.pooled(), p.docs.Polls(p.id)); personalityOf(in) != vnet.PersonalityCloudInit || l[0].kind != bounce {
		return 0, nil
	}
	if p.run.Dark.IsZero() {
		if err := p.setLink(ctx, in, false); err != nil {
			return 0, fmt.Errorf("cut the link of the machine to be saved: %w", err)
		}
		p.run.Dark, p.run.dirty = time.Now(), true
		p.log.Info("link cut, to be saved so")
	}
	return max(noticing-time.Since(p.run.Dark), 0), nil
}

// lost reports whether the machine was to rest, or did, and has no state to go on
// from: it died, its state could not be read, or is of another QEMU. It is not
// started: its guest would boot, and is not what its pool, or a claim, believes.
func (p *port) lost(in *vnet.Intent) bool {
	here := *in
	here.Next = nil
	return p.rests(&here) && in.Machine.Power == vnet.PowerOn && p.power == vnet.PowerOff
}

// stretching is how long a guest's agent is waited for that slept until now.
func (p *port) stretching(in *vnet.Intent) time.Duration {
	if !p.run.Resumed || !personalityOf(in).Agent() || p.agents.Listens(p.id) {
		return 0
	}
	return max(stretches-time.Since(p.started), 0)
}

// asleep reports whether the guest is not there yet for its next place.
func (p *port) asleep(in *vnet.Intent) bool {
	return in.Machine != nil && in.Machine.Power == vnet.PowerOn && in.Current.Hold == vnet.HoldSnapshot && !p.on(in)
}
