package dataplane

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"reflect"
	"time"

	"replug/directory/vnet"
)

// device makes sure that the port's tap is there and that its frames reach the
// datapath.
func (p *port) device(in *vnet.Intent) error {
	ifindex, err := p.tap(in)
	if err != nil {
		return err
	}
	if ifindex != p.attached {
		if err := p.datapath.Attach(p.id, ifindex); err != nil {
			return fmt.Errorf("attach the datapath to the port's tap: %w", err)
		}
		p.attached = ifindex
	}
	if p.row == nil || p.row.Ifindex == ifindex {
		return nil
	}
	row := *p.row // somebody made the tap again
	if err := p.datapath.Detach(p.id, row.Ifindex); err != nil {
		return err
	}
	row.Ifindex, row.Tap, row.Peer = ifindex, p.found.Tap, p.found.Peer
	if err := p.datapath.SetPort(row); err != nil {
		return err
	}
	p.row = &row
	place, _, _, _ := p.inForce()
	p.setPlace(place, ifindex)
	return nil
}

func (p *port) tap(in *vnet.Intent) (int, error) {
	if in.Tap == "" {
		ifindex, err := p.taps.Ensure(p.id, int(p.guestMTU(&in.Current)))
		if err != nil {
			return 0, fmt.Errorf("make the port's tap: %w", err)
		}
		p.found = Device{Ifindex: ifindex, Tap: true}
		return ifindex, nil
	}
	d, err := p.taps.Find(in.Tap, p.found)
	if err != nil {
		return 0, fmt.Errorf("attached port needs the tap %s on host %s: %w", in.Tap, in.Host, err)
	}
	p.found = d
	return d.Ifindex, nil
}

// guestMTU is what the guest's IP packets may have in a place.
func (p *port) guestMTU(place *vnet.Place) uint16 {
	if place.MTU == 0 {
		return p.mtu
	}
	return place.MTU
}

// rowOf is the row of the port at a place, but for its rules.
func (p *port) rowOf(in *vnet.Intent, place *vnet.Place, timed bool) Row {
	ifindex := p.attached
	if ifindex == 0 && p.row != nil {
		ifindex = p.row.Ifindex // of a tap that is gone
	}
	r := Row{
		Port: p.id, Epoch: place.Epoch, VNI: place.VNI, MAC: in.MAC, PA: in.PA, MTU: p.guestMTU(place),
		Ifindex: ifindex, Isolated: place.Isolated, Timed: timed, Router: place.Router, Logged: place.FlowLog,
		Tenant: tenantNumber(place.Tenant), Tap: p.found.Tap, Peer: p.found.Peer, Strict: place.Swap != "", Reset: place.Swap != "" && place.OldConnections != vnet.SilenceConnections,
	}
	if v4, ok := place.V4(); ok {
		r.Gateway = v4.Gateway
	}
	for i, a := range place.Addrs[:min(len(place.Addrs), MaxCAs)] {
		r.CAs[i] = netip.PrefixFrom(a.CA.Addr, a.Bits)
	}
	return r
}

// tenantNumber is the name in 32 bits, by which ports share their tenant's part of
// the flows. Two tenants of a host with one number would share one.
func tenantNumber(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails
	return max(h.Sum32(), 1)
}

// refresh takes over what the intent says of the epoch in force: the whole
// place when the agent has just started, or what has changed within the epoch,
// such as routes or a document.
func (p *port) refresh(in *vnet.Intent) error {
	old, _, _, _ := p.inForce()
	if p.row == nil || p.row.Epoch != in.Current.Epoch || old != nil && reflect.DeepEqual(*old, in.Current) {
		return nil
	}
	row := p.rowOf(in, &in.Current, p.row.Timed)
	if rules, err := p.networks.Rules(&in.Current); err == nil {
		row.Rules = rules // else those in force stay, and keepRules says why
	}
	row.Ifindex, row.Tap, row.Peer, row.Draining = p.row.Ifindex, p.row.Tap, p.row.Peer, p.row.Draining
	same := row
	same.Rules = p.row.Rules // these have a way of their own, see keepRules
	if same != *p.row {
		if err := p.datapath.SetPort(row); err != nil {
			return err
		}
		p.row = &row
	}
	if err := p.settleNetworks(in); err != nil {
		return err
	}
	here := in.Current
	p.moveRouter(old, &here)
	p.setPlace(&here, row.Ifindex)
	p.run.dirty = true
	served := p.run.Step == stepConfirm || p.run.Step == stepSettled
	if served && old != nil && !reflect.DeepEqual(old.Document, here.Document) {
		p.run.Step = stepPublish
	}
	return nil
}

// keepRules makes the rules in force those of the place's groups as they are now,
// and lets them judge flows again when others are in the groups that they name.
// Before a server has said what they are, those in force stay.
func (p *port) keepRules(in *vnet.Intent) error {
	if p.row == nil || p.row.Epoch != in.Current.Epoch {
		return nil
	}
	rules, err := p.networks.Rules(&in.Current)
	switch {
	case errors.Is(err, errGroups) || err == nil && rules == p.row.Rules:
		return nil
	case err != nil:
		return err
	}
	if !rules.judgesAs(p.row.Rules) {
		if err := p.datapath.SetRules(p.id, rules); err != nil {
			return err
		}
	}
	if rules.Moves > 0 { // flows that began by who was in a group
		if err := p.datapath.Rejudge(p.id); err != nil {
			return err
		}
	}
	p.row.Rules = rules
	return nil
}

// keepLimits makes the port's rates those of the intent.
func (p *port) keepLimits(in *vnet.Intent) error {
	if p.row == nil || p.limited != nil && *p.limited == in.Limits {
		return nil
	}
	if err := p.datapath.SetLimits(p.id, in.Limits); err != nil {
		return err
	}
	limits := in.Limits
	p.limited = &limits
	return nil
}

// settleNetworks keeps the routes of the network where the port is, and of the
// one where it is about to be.
func (p *port) settleNetworks(in *vnet.Intent) error {
	if p.staged != nil {
		return p.networks.Use(p.id, &in.Current, in.Next)
	}
	return p.networks.Use(p.id, &in.Current)
}

// hasLink reports whether the guest's end of the cable can be pulled.
func (p *port) hasLink(in *vnet.Intent) bool { return in.Machine != nil || in.Monitor != "" }

// monitorTime is how long a monitor may take to answer.
const monitorTime = 2 * time.Second

// setLink pulls or plugs the guest's end of the cable. A monitor that was
// restarted since is dialled again, once.
func (p *port) setLink(ctx context.Context, in *vnet.Intent, up bool) error {
	const slotTime = 5 * time.Second // the guest has to let go of its NIC first
	if !p.hasLink(in) {
		return errNoMonitor
	}
	move, patience := Link.Set, monitorTime
	if p.rung(in).kind == replug {
		move, patience = Link.Plug, slotTime
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.link != nil {
		if err := move(p.link, ctx, up); err == nil {
			return nil
		}
		p.closeLink()
	}
	link, err := p.links.Open(ctx, *in, p.wasReset)
	if err != nil {
		return fmt.Errorf("%w (%w)", errMonitor, err)
	}
	p.link = link
	if err := move(link, ctx, up); err != nil {
		p.closeLink()
		return fmt.Errorf("set the guest's link: %w", err)
	}
	return nil
}

// on reports whether there is a guest to be seen. Other people's VMs are always
// believed to be on.
func (p *port) on(in *vnet.Intent) bool {
	if in.Machine == nil {
		return true
	}
	p.power = vnet.PowerOff
	if p.machines.Running(*in.Machine) {
		p.power = vnet.PowerOn
	} else if p.machines.Saved(*in.Machine) {
		p.power = vnet.PowerSaved
	}
	return p.power == vnet.PowerOn
}

// drive brings the machine to the power that is asked for. The datapath and the
// metadata service are ready before it boots.
func (p *port) drive(ctx context.Context, in vnet.Intent) (time.Duration, error) {
	m := in.Machine
	if m == nil {
		return powerCheck, p.device(&in)
	}
	running := p.on(&in)
	p.turned()
	switch {
	case p.lost(&in):
		return powerCheck, nil
	case p.rests(&in) && m.Power == vnet.PowerOn:
		return p.rest(ctx, &in)
	case running == (m.Power == vnet.PowerOn):
		if running {
			p.agents.Open(p.id, *m)
		}
		if running && time.Since(p.startAt) > time.Minute {
			p.startWait = 0
		}
		return powerCheck, nil
	case running:
		p.closeLink()
		ctx, cancel := p.long(ctx)
		defer cancel()
		if err := p.machines.Stop(ctx, *m); err != nil {
			return 0, fmt.Errorf("stop the machine: %w", err)
		}
		p.log.Info("machine stopped")
		return 0, nil
	case time.Until(p.startAt) > 0:
		return time.Until(p.startAt), nil // it keeps dying
	}
	p.startWait = min(max(2*p.startWait, time.Second), time.Minute)
	p.startAt = time.Now().Add(p.startWait)
	if err := p.device(&in); err != nil {
		return 0, err
	}
	ctx, cancel := p.long(ctx)
	defer cancel()
	resumed, err := p.machines.Start(ctx, in, p.guestMTU(&in.Current))
	if err != nil {
		return 0, fmt.Errorf("start the machine: %w", err)
	}
	p.run.Resumed, p.run.dirty = resumed, true
	if !resumed {
		p.run.Dark = time.Time{} // a machine that boots has its link
	}
	p.started = time.Now()
	p.agents.Open(p.id, *m)
	p.log.Info("machine started", "image", m.Image, "resumed", resumed)
	return 0, nil
}

// turned reports a change of power.
func (p *port) turned() {
	if p.last.Phase != 0 && p.last.Power != p.power {
		p.tell(p.last.Phase, p.run.Epoch, nil)
	}
}
