package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replug/dataplane/compute"
	"replug/dataplane/netdev"
	"replug/dataplane/qmp"
	"replug/directory/vnet"
)

// errNoMachines is the answer to a machine on a host that runs none.
var errNoMachines = errors.New("this host runs no machines: start replug-host with --memory, or place the VM elsewhere")

// errNoSlot is the answer where a NIC can't be pulled out.
var errNoSlot = errors.New("the NIC has no slot of its own: it can't be taken out of the machine")

// machines runs VMs by a compute driver; driver is nil on a host without.
type machines struct{ driver compute.Driver }

func (m machines) Start(ctx context.Context, in vnet.Intent, mtu uint16) (bool, error) {
	if m.driver == nil {
		return false, errNoMachines
	}
	tap := in.Tap
	if tap == "" {
		tap = netdev.TapName(in.ID)
	}
	s, err := m.driver.Ensure(ctx, *in.Machine, compute.NIC{Tap: tap, MAC: in.MAC, MTU: int(mtu)})
	return s.Resumed, err
}

func (m machines) Save(ctx context.Context, spec vnet.Machine) error {
	if m.driver == nil {
		return errNoMachines
	}
	return m.driver.Save(ctx, spec.ID)
}

func (m machines) Saved(spec vnet.Machine) bool {
	if m.driver == nil {
		return false
	}
	s, err := m.driver.State(context.Background(), spec.ID)
	return err == nil && s.Saved
}

func (m machines) Worked(spec vnet.Machine) time.Duration {
	if m.driver == nil {
		return 0
	}
	s, err := m.driver.State(context.Background(), spec.ID)
	if err != nil {
		return 0
	}
	return s.Worked()
}

func (m machines) Stop(ctx context.Context, spec vnet.Machine) error {
	if m.driver == nil {
		return errNoMachines
	}
	return m.driver.Stop(ctx, spec.ID, true)
}

func (m machines) Delete(ctx context.Context, spec vnet.Machine) error {
	if m.driver == nil {
		return nil
	}
	return m.driver.Delete(ctx, spec.ID)
}

func (m machines) Running(spec vnet.Machine) bool {
	if m.driver == nil {
		return false
	}
	s, err := m.driver.State(context.Background(), spec.ID)
	return err == nil && s.Power == vnet.PowerOn
}

// links opens the monitors of VMs: that of a machine of ours, or that which an
// orchestrator named.
type links struct {
	driver compute.Driver
	mtu    uint16 // that the underlay leaves to guests
}

func (l links) Open(ctx context.Context, in vnet.Intent, reset func()) (Link, error) {
	socket := in.Monitor
	if in.Machine != nil && l.driver != nil {
		s, err := l.driver.State(ctx, in.Machine.ID)
		if err != nil {
			return nil, err
		}
		socket = s.Monitor
	}
	if socket == "" {
		return nil, errNoMonitor
	}
	c, err := qmp.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	go func() {
		for range c.Resets() {
			reset()
		}
	}()
	if in.Machine == nil {
		return &link{monitor: c, nic: nicOf(ctx, c, in.MAC)}, nil
	}
	mtu := l.mtu
	if in.Current.MTU != 0 {
		mtu = in.Current.MTU
	}
	return &link{c, compute.NICName, compute.NIC{MAC: in.MAC, MTU: int(mtu)}}, nil
}

// nicOf finds the NIC of another orchestrator's VM by its MAC. Adapters without
// a receive filter don't say theirs: then it is the back-end's usual name.
func nicOf(ctx context.Context, c *qmp.Client, mac vnet.MAC) string {
	var filters []struct {
		Name string   `json:"name"`
		MAC  vnet.MAC `json:"main-mac"`
	}
	if err := c.Execute(ctx, "query-rx-filter", nil, &filters); err == nil {
		for _, f := range filters {
			if f.MAC == mac {
				return f.Name
			}
		}
	}
	return compute.NetName
}

// A link is one NIC at an open monitor.
type link struct {
	monitor *qmp.Client
	nic     string
	card    compute.NIC // of a machine of ours
}

func (l *link) Set(ctx context.Context, up bool) error {
	if err := l.monitor.SetLink(ctx, l.nic, up); err != nil {
		return fmt.Errorf("set link of %s: %w", l.nic, err)
	}
	return nil
}

// Plug works for machines of ours whose NIC has a slot of its own.
func (l *link) Plug(ctx context.Context, in bool) error {
	if l.card == (compute.NIC{}) {
		return errNoSlot
	}
	if in {
		return l.monitor.Plug(ctx, compute.Card(l.card))
	}
	return l.monitor.Unplug(ctx, l.nic)
}

// Boots goes by what a reset leaves of a virtio NIC's filter: everything passes, and
// no address is in it. A driver that has put the NIC up asks for multicast at least.
func (l *link) Boots(ctx context.Context) (bool, error) {
	f, err := l.monitor.Filter(ctx, l.nic)
	return f.Promiscuous && len(f.Unicast)+len(f.Multicast) == 0, err
}

func (l *link) Close() error { return l.monitor.Close() }
