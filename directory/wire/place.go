package wire

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/types/known/durationpb"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

// FromPlace makes the message of a place; nil of nil.
func FromPlace(p *vnet.Place) *directorypb.Place {
	if p == nil {
		return nil
	}
	return &directorypb.Place{
		Epoch: uint64(p.Epoch), Tenant: p.Tenant, Network: string(p.Network), Vni: uint32(p.VNI),
		Addrs: each(p.Addrs, func(a vnet.Addr) *directorypb.Addr {
			return &directorypb.Addr{Ca: a.CA.String(), Bits: int32(a.Bits), Gateway: text(a.Gateway), Slaac: a.SLAAC}
		}),
		Routes: each(p.Routes, func(r vnet.Route) *directorypb.Route {
			return &directorypb.Route{Prefix: prefixText(r.Prefix), NextHop: text(r.NextHop), Peer: uint32(r.Peer)}
		}),
		Mtu: uint32(p.MTU), Isolated: p.Isolated,
		Dns: each(p.DHCP.DNS, text), Domain: p.DHCP.Domain, Ntp: each(p.DHCP.NTP, text),
		Lease: durationpb.New(p.DHCP.Lease), Document: fromDocument(p.Document),
		Hold: string(p.Hold),
		Swap: p.Swap, Undo: p.Undo, Undoable: p.Undoable, Confirm: string(p.Confirm), Trigger: string(p.Trigger),
		Groups: p.Groups, Router: p.Router, FlowLog: p.FlowLog,
		OldConnections: string(p.OldConnections), Drain: durationpb.New(p.Drain),
	}
}

func (r *reader) place(field string, m *directorypb.Place) *vnet.Place {
	if m == nil {
		return nil
	}
	p := &vnet.Place{
		Epoch: r.epoch(field+".epoch", m.Epoch), Tenant: m.Tenant, Network: r.moniker(field+".network", m.Network),
		VNI: r.vni(field+".vni", m.Vni), MTU: r.u16(field+".mtu", m.Mtu), Isolated: m.Isolated,
		Addrs: each(m.Addrs, func(a *directorypb.Addr) vnet.Addr { return r.placeAddr(field+".addrs", a) }),
		Routes: each(m.Routes, func(x *directorypb.Route) vnet.Route {
			return r.route(field+".routes", x)
		}),
		DHCP: vnet.DHCP{
			DNS: r.addrs(field+".dns", m.Dns), Domain: m.Domain, NTP: r.addrs(field+".ntp", m.Ntp),
			Lease: r.duration(field+".lease", m.Lease),
		},
		Document: r.document(field+".document", m.Document),
		Hold:     vnet.Hold(m.Hold),
		Swap:     m.Swap, Undo: m.Undo, Undoable: m.Undoable,
		Confirm: vnet.Confirm(m.Confirm), Trigger: vnet.Trigger(m.Trigger),
		Groups: each(m.Groups, same), Router: m.Router, FlowLog: m.FlowLog,
		OldConnections: vnet.OldConnections(m.OldConnections), Drain: r.duration(field+".drain", m.Drain),
	}
	r.choices(field, p)
	return p
}

// choices checks the words of which a place may have one of a few.
func (r *reader) choices(field string, p *vnet.Place) {
	switch p.Confirm {
	case "", vnet.ConfirmLease, vnet.ConfirmGuest, vnet.ConfirmCaller:
	default:
		r.fail(field+".confirm", fmt.Errorf("%q is no proof", p.Confirm))
	}
	if p.Hold != "" && p.Hold != vnet.HoldSnapshot {
		r.fail(field+".hold", fmt.Errorf("%q is no way to wait", p.Hold))
	}
	switch p.Trigger {
	case "", vnet.TriggerBounce, vnet.TriggerNone:
	default:
		r.fail(field+".trigger", fmt.Errorf("%q is no trigger", p.Trigger))
	}
	switch p.OldConnections {
	case "", vnet.ResetConnections, vnet.DrainConnections, vnet.SilenceConnections:
	default:
		r.fail(field+".old_connections", fmt.Errorf("%q is no way to treat old connections", p.OldConnections))
	}
}

func (r *reader) route(field string, m *directorypb.Route) vnet.Route {
	out := vnet.Route{Prefix: r.prefix(field, m.GetPrefix()), NextHop: r.addr(field, m.GetNextHop())}
	if m.GetPeer() != 0 {
		out.Peer = r.vni(field, m.GetPeer())
	}
	return out
}

func (r *reader) moniker(field, s string) vnet.Moniker {
	m, err := vnet.ParseMoniker(s)
	if err != nil {
		r.fail(field, err)
	}
	return m
}

func (r *reader) placeAddr(field string, m *directorypb.Addr) vnet.Addr {
	a := vnet.Addr{CA: r.ca(field, m.GetCa()), Bits: int(m.GetBits()), Gateway: r.addr(field, m.GetGateway()), SLAAC: m.GetSlaac()}
	if r.err == nil && (a.Bits < 0 || a.Bits > a.CA.BitLen()) {
		r.fail(field, fmt.Errorf("prefix length %d of %s", a.Bits, a.CA))
	}
	return a
}

func (r *reader) duration(field string, d *durationpb.Duration) (out duration) {
	if d == nil {
		return 0
	}
	if err := d.CheckValid(); err != nil {
		r.fail(field, err)
		return 0
	}
	if out = d.AsDuration(); out < 0 {
		r.fail(field, errors.New("is negative"))
	}
	return out
}

func fromDocument(d *vnet.Document) *directorypb.Document {
	if d == nil {
		return nil
	}
	return &directorypb.Document{
		Epoch: uint64(d.Epoch), Tag: d.Tag, Instance: d.Instance, Hostname: d.Hostname,
		User: d.User, SshKeys: d.SSHKeys, TimeZone: d.TimeZone,
		Files: each(d.Files, func(f vnet.File) *directorypb.File {
			return &directorypb.File{Path: f.Path, Mode: f.Mode, Content: f.Content}
		}),
		PasswordHash: d.PasswordHash, Dns: each(d.DNS, netip.Addr.String),
		RunOnce: each(d.RunOnce, func(c vnet.Command) *directorypb.Command {
			return &directorypb.Command{Id: c.ID, Command: c.Command}
		}),
		Disks: each(d.Disks, func(x vnet.DataDisk) *directorypb.DataDisk {
			return &directorypb.DataDisk{Id: x.ID, Path: x.Path}
		}),
		UserData: d.UserData,
	}
}

// document lets epoch 0 pass: a document may be stamped by who serves it.
func (r *reader) document(field string, m *directorypb.Document) *vnet.Document {
	if m == nil {
		return nil
	}
	if m.Tag != "" && m.Tag != vnet.TagPartial {
		r.fail(field+".tag", fmt.Errorf("%q is no tag", m.Tag))
	}
	return &vnet.Document{
		Epoch: vnet.Epoch(m.Epoch), Tag: m.Tag, Instance: m.Instance, Hostname: m.Hostname,
		User: m.User, SSHKeys: each(m.SshKeys, same), TimeZone: m.TimeZone,
		Files: each(m.Files, func(f *directorypb.File) vnet.File {
			return vnet.File{Path: f.GetPath(), Mode: f.GetMode(), Content: f.GetContent()}
		}),
		PasswordHash: m.PasswordHash, DNS: r.addrs(field+".dns", m.Dns),
		RunOnce: each(m.RunOnce, func(c *directorypb.Command) vnet.Command {
			return vnet.Command{ID: c.GetId(), Command: c.GetCommand()}
		}),
		Disks: each(m.Disks, func(x *directorypb.DataDisk) vnet.DataDisk {
			return vnet.DataDisk{ID: x.GetId(), Path: x.GetPath()}
		}),
		UserData: m.UserData,
	}
}

func same(s string) string { return s }
