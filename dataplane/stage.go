package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replug/directory/vnet"
)

// stagePatience is how long the mappings of the next network may take. It is
// shorter than the leader's budget, so that the reason arrives.
const stagePatience = 3 * time.Second

// Why a place can't be prepared. The text says what to do.
var (
	errAddresses = fmt.Errorf("a port has 1 to %d addresses: correct the place", MaxCAs)
	errVNI       = errors.New("not a network: the VNI must be 1 to 16777215")
	errMTU       = errors.New("the network's MTU is larger than this host's underlay can carry: lower the network's MTU or raise the underlay's")
	errMTU6      = fmt.Errorf("IPv6 needs %d bytes: raise the network's MTU or the underlay's, or take the IPv6 addresses away", leastMTU6)
	errOnlyIPv4  = errors.New("cloud-init leaves the pool by an IPv4 lease: give the network IPv4 addresses too, or take an image with our agent")
	errMappings  = errors.New("the network's mappings did not arrive in time: is the directory server busy? try again")
	errLost      = errors.New("the VM has no saved state to go on from, and would boot: its host's log says why; delete it, its pool makes another one")
	errRuleRoom  = errors.New("start this host's agent with a larger --max-rules, let the port enter groups with fewer rules, or use another host")
	errMonitor   = errors.New("the VM's monitor can't be reached, so its link can't be bounced: check the VM, or swap with trigger none")
	errNoMonitor = errors.New("the port has no monitor, so its link can't be bounced: attach it with one, or swap with trigger none")
)

// stage makes the next place ready without any effect on the guest. It answers
// with prepared, or with refused and why, once per epoch.
func (p *port) stage(ctx context.Context, in vnet.Intent) (time.Duration, error) {
	next := in.Next
	if next == nil || p.row == nil || next.Epoch <= p.row.Epoch {
		return forever, p.unstage(in)
	}
	if p.refused == next.Epoch || p.staged != nil && p.staged.Epoch == next.Epoch && !p.staged.resumed {
		return forever, nil
	}
	wait, err := p.prepare(ctx, &in, next)
	switch {
	case err != nil:
		p.refused = next.Epoch
		p.log.Warn("refused", "place", next.String(), "swap", next.Swap, "why", err)
		p.tell(vnet.StatusRefused, next.Epoch, err)
		return forever, p.unstage(in)
	case wait > 0:
		return wait, nil
	}
	if p.staged == nil || p.staged.Epoch != next.Epoch {
		p.staged = &run{Epoch: next.Epoch, From: used(p.row), Pooled: p.pooled(), Speaks: p.heard(&p.run),
			Resumed: p.run.Resumed && in.Current.Hold == vnet.HoldSnapshot} // a guest is told once, where it leaves the place in which it slept
		p.staged.hop("stage")
	}
	p.staged.resumed = false
	p.run.dirty = true
	p.log.Info("prepared", "place", next.String(), "swap", next.Swap)
	p.tell(vnet.StatusPrepared, next.Epoch, nil)
	return forever, nil
}

// prepare does what the flip will rely on. An error is a refusal; a wait means
// that something is on its way.
func (p *port) prepare(ctx context.Context, in *vnet.Intent, next *vnet.Place) (time.Duration, error) {
	if err := p.fits(next); err != nil {
		return 0, err
	}
	if _, v4 := next.V4(); !v4 && p.pooled() && personalityOf(in).CloudInit() {
		return 0, fmt.Errorf("network %s: %w", next.Network, errOnlyIPv4)
	}
	if p.asleep(in) {
		if p.lost(in) {
			return 0, errLost
		}
		return wakes, nil
	}
	if left := p.stretching(in); left > 0 {
		return left, nil
	}
	if err := p.device(in); err != nil {
		return 0, err
	}
	if err := p.networks.Use(p.id, p.place, next); err != nil {
		return 0, err
	}
	if wait, err := p.loaded(next); err != nil || wait > 0 {
		return wait, err
	}
	p.since = time.Time{}
	if bounced(next) && p.on(in) {
		if err := p.reachable(ctx, in); err != nil {
			return 0, err
		}
	}
	if wait, err := p.drain(next); err != nil || wait > 0 {
		return wait, err
	}
	p.noteWays(next)
	return 0, p.timed()
}

// loaded waits until everything of the next network and its peers is here: its
// mappings, services and groups.
func (p *port) loaded(next *vnet.Place) (time.Duration, error) {
	for _, vni := range next.VNIs() {
		synced, err := p.networks.Synced(vni)
		if err != nil {
			return 0, fmt.Errorf("this host can't take up network %s: %w", next.Network, err)
		}
		if synced {
			continue
		}
		if p.since.IsZero() {
			p.since = time.Now()
		}
		if left := stagePatience - time.Since(p.since); left > 0 {
			return left, nil
		}
		return 0, fmt.Errorf("network %s: %w", next.Network, errMappings)
	}
	return 0, p.stageRules(next)
}

// stageRules puts the next place's rules where the flip finds them: a host that
// has no room for them says so while nothing has changed.
func (p *port) stageRules(next *vnet.Place) error {
	rules, err := p.networks.Rules(next)
	if err != nil {
		return err
	}
	p.roomTaken = true
	if err := p.datapath.StageRules(p.id, rules); err != nil {
		return fmt.Errorf("no room for the %d rules of the port's groups in network %s: %w (%w)",
			len(rules.In)+len(rules.Out), next.Network, errRuleRoom, err)
	}
	return nil
}

// unstageRules gives their room back, unless a flip has taken it over.
func (p *port) unstageRules() error {
	if !p.roomTaken {
		return nil
	}
	err := p.datapath.StageRules(p.id, nil)
	p.roomTaken = err != nil
	return err
}

// releaseRules gives back the room that an undo would have needed, once the swap that
// led to the row in force has ended.
func (p *port) releaseRules(in *vnet.Intent) {
	if !p.roomHeld || p.row == nil || p.row.Epoch != in.Current.Epoch || in.Current.Undoable {
		return
	}
	p.datapath.ReleaseRules(p.id)
	p.roomHeld = false
}

// fits checks a place against what the host can do.
func (p *port) fits(next *vnet.Place) error {
	switch {
	case !next.VNI.Valid():
		return fmt.Errorf("VNI %d: %w", next.VNI, errVNI)
	case len(next.Addrs) == 0 || len(next.Addrs) > MaxCAs:
		return fmt.Errorf("%d addresses: %w", len(next.Addrs), errAddresses)
	case next.MTU > p.mtu:
		return fmt.Errorf("network %s wants %d bytes, the host has %d: %w", next.Network, next.MTU, p.mtu, errMTU)
	}
	if _, v6 := next.V6(); v6 && p.guestMTU(next) < leastMTU6 {
		return fmt.Errorf("network %s has %d bytes: %w", next.Network, p.guestMTU(next), errMTU6)
	}
	return nil
}

// reachable opens the guest's link, for the flip to find it open.
func (p *port) reachable(ctx context.Context, in *vnet.Intent) error {
	if !p.hasLink(in) {
		return errNoMonitor
	}
	p.closeLink()
	link, err := p.links.Open(ctx, *in, p.wasReset)
	if err != nil {
		return fmt.Errorf("%w (%w)", errMonitor, err)
	}
	p.link = link
	return nil
}

// timed starts the stopwatch of the coming flip, and asks the guest for its addresses:
// one that says nothing by itself would have no last frame, and the families in which
// it answers are those that it has to show again.
func (p *port) timed() error {
	if !p.row.Timed {
		if err := p.datapath.SetTimed(p.id, true); err != nil {
			return err
		}
		p.row.Timed = true
	}
	p.ask()
	return nil
}

// unstage takes back what was prepared for a swap that was released.
func (p *port) unstage(in vnet.Intent) error {
	p.since = time.Time{}
	if err := errors.Join(p.undrain(), p.unstageRules()); err != nil {
		return err
	}
	if p.staged == nil && p.refused == 0 {
		return nil
	}
	if in.Next == nil {
		p.refused = 0
	}
	p.staged = nil
	p.run.dirty = true
	p.ways = nil
	p.kick() // the stopwatch is to be stopped
	if p.row == nil {
		return nil
	}
	return p.networks.Use(p.id, p.place)
}
