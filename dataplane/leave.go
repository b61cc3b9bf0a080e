package dataplane

import (
	"context"
	"errors"

	"replug/directory/vnet"
)

// leave takes the port and its machine down; whatever is gone already is fine.
func (p *port) leave(ctx context.Context, in vnet.Intent) error {
	if p.gone {
		return nil
	}
	p.closeLink()
	if in.Machine != nil {
		ctx, cancel := p.long(ctx)
		defer cancel()
		if err := p.machines.Delete(ctx, *in.Machine); err != nil {
			return err
		}
	}
	p.setPlace(nil, 0)
	p.docs.Forget(p.id)
	if err := p.unplug(in); err != nil {
		return err
	}
	if err := errors.Join(p.networks.Use(p.id), p.records.remove(p.name)); err != nil {
		return err
	}
	if in.Machine == nil {
		p.rungs.forget(ofPort(&in))
	}
	p.gone, p.power = true, vnet.PowerAbsent
	p.log.Info("gone")
	p.tell(vnet.StatusGone, max(in.Current.Epoch, p.run.Epoch), nil)
	return nil
}

// unplug takes the port out of the datapath.
func (p *port) unplug(in vnet.Intent) error {
	ifindex := p.attached
	if ifindex == 0 && p.row != nil {
		ifindex = p.row.Ifindex
	}
	if ifindex != 0 {
		if err := p.datapath.Detach(p.id, ifindex); err != nil {
			return err
		}
	}
	p.attached = 0
	if err := p.datapath.DeletePort(p.id); err != nil {
		return err
	}
	p.accounts.gone(p.id)
	p.row, p.limited = nil, nil
	if in.Tap != "" {
		return nil
	}
	return p.taps.Delete(p.id)
}
