package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/control/resource"
	"replug/control/storage"
	"replug/directory/vnet"
)

// What callers say, as the managers' words. Names ending in From.

func monikerFrom(s string) (vnet.Moniker, error) {
	m, err := vnet.ParseMoniker(s)
	if err != nil {
		return "", fmt.Errorf("%w network: %w", ErrInvalid, err)
	}
	return m, nil
}

// casFrom reads addresses: one, more, or none.
func casFrom(one string, more []string) ([]vnet.CA, error) {
	var cas []vnet.CA
	if one != "" {
		more = append([]string{one}, more...)
	}
	for _, s := range more {
		ca, err := vnet.ParseCA(s)
		if err != nil {
			return nil, fmt.Errorf("%w address: %w", ErrInvalid, err)
		}
		if !slices.Contains(cas, ca) {
			cas = append(cas, ca)
		}
	}
	return cas, nil
}

func networkFrom(n *pb.Network) (network.Network, error) {
	m, err := monikerFrom(n.GetMoniker())
	if err != nil {
		return network.Network{}, err
	}
	if n.Vni > uint32(vnet.MaxVNI) {
		return network.Network{}, fmt.Errorf("%w: %d is %w", ErrInvalid, n.Vni, vnet.ErrVNI)
	}
	if n.Mtu > 1<<16-1 {
		return network.Network{}, fmt.Errorf("%w MTU %d: at most 65535", ErrInvalid, n.Mtu)
	}
	r := reader{}
	out := network.Network{
		Moniker: m, Tenant: n.Tenant, VNI: vnet.VNI(n.Vni), Domain: n.Domain, MTU: uint16(n.Mtu),
		DNS: r.addrs("DNS server", n.Dns), NTP: r.addrs("NTP server", n.Ntp), Lease: n.Lease.AsDuration(), FlowLog: n.FlowLog,
	}
	if n.Placeholder {
		return out, fmt.Errorf("%w: the placeholder network is the platform's own; leave placeholder out", ErrInvalid)
	}
	if len(n.Peers) > 0 {
		return out, fmt.Errorf("%w: peers are set by Peer, once both networks are there", ErrInvalid)
	}
	for _, s := range n.Subnets {
		out.Subnets = append(out.Subnets, r.subnet(s))
	}
	for _, route := range n.Routes {
		out.Routes = append(out.Routes, r.route(route))
	}
	return out, r.err
}

// subnet reads a subnet. An IPv6 prefix without a length is a /64.
func (r *reader) subnet(s *pb.Subnet) network.Subnet {
	prefix := s.GetPrefix()
	if a, err := netip.ParseAddr(prefix); err == nil && a.Is6() {
		prefix += "/64"
	}
	sub := network.Subnet{Prefix: r.prefix("subnet", prefix), SLAAC: s.GetSlaac()}
	if s.GetGateway() != "" {
		sub.Gateway = r.addr("gateway", s.GetGateway())
	}
	return sub
}

func (r *reader) route(x *pb.Route) vnet.Route {
	return vnet.Route{Prefix: r.prefix("route", x.GetPrefix()), NextHop: r.addr("next hop", x.GetNextHop())}
}

// A reader keeps the first error of many values.
type reader struct{ err error }

func (r *reader) addr(what, s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w %s %q: not an address, write it as in 10.0.0.1 or fd00:17::1", ErrInvalid, what, s)
	}
	return a
}

func (r *reader) addrs(what string, all []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range all {
		out = append(out, r.addr(what, s))
	}
	return out
}

func (r *reader) prefix(what, s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w %s %q: not a prefix, write it as in 10.0.0.0/24 or fd00:17::/64", ErrInvalid, what, s)
	}
	return p
}

func typeFrom(t *pb.VMType) compute.Type {
	return compute.Type{
		Name: t.GetName(), CPUs: int(t.GetCpus()), Memory: int(t.GetMemoryMib()), Image: t.GetImage(), OS: t.GetOs(),
		Storage: t.GetStorage(), Routing: t.GetRouting(), Disk: t.GetDiskBytes(),
	}
}

func settingsFrom(s *pb.Settings) (vnet.Document, error) {
	r := reader{}
	d := vnet.Document{Hostname: s.GetHostname(), User: s.GetUser(), SSHKeys: s.GetSshKeys(), TimeZone: s.GetTimeZone(),
		PasswordHash: s.GetPasswordHash(), DNS: r.addrs("name server", s.GetDns()), UserData: s.GetUserData()}
	for _, f := range s.GetFiles() {
		d.Files = append(d.Files, vnet.File{Path: f.Path, Mode: f.Mode, Content: f.Content})
	}
	for _, c := range s.GetRunOnce() {
		d.RunOnce = append(d.RunOnce, vnet.Command{ID: c.Id, Command: c.Command})
	}
	for _, x := range s.GetDisks() {
		d.Disks = append(d.Disks, vnet.DataDisk{ID: x.Id, Path: x.Path})
	}
	return d, r.err
}

// The managers' words, as callers read them. Names ending in To.

func networkTo(n *network.Network) *pb.Network {
	out := &pb.Network{
		Moniker: string(n.Moniker), Tenant: n.Tenant, Vni: uint32(n.VNI), Dns: texts(n.DNS), Domain: n.Domain,
		Ntp: texts(n.NTP), Mtu: uint32(n.MTU), Lease: durationpb.New(n.Lease), Placeholder: n.Isolated,
		FlowLog: n.FlowLog,
	}
	for _, p := range n.Peers {
		out.Peers = append(out.Peers, &pb.PeerNetwork{Network: string(p.Moniker), Vni: uint32(p.VNI), Prefixes: texts(p.Prefixes)})
	}
	for _, s := range n.Subnets {
		out.Subnets = append(out.Subnets, &pb.Subnet{Prefix: s.Prefix.String(), Gateway: s.Gateway.String(), Slaac: s.SLAAC})
	}
	for _, r := range n.Routes {
		out.Routes = append(out.Routes, &pb.Route{Prefix: r.Prefix.String(), NextHop: r.NextHop.String()})
	}
	return out
}

func texts[T fmt.Stringer](all []T) []string {
	var out []string
	for _, v := range all {
		out = append(out, v.String())
	}
	return out
}

func typeTo(t *compute.Type) *pb.VMType {
	return &pb.VMType{
		Name: t.Name, Cpus: int32(t.CPUs), MemoryMib: int32(t.Memory), Image: t.Image, Os: t.OS,
		Storage: t.Storage, Routing: t.Routing, DiskBytes: t.Disk,
	}
}

// settingsTo makes the message of an owner's settings, without the password's hash:
// whoever may read a VM need not be able to guess at it.
func settingsTo(d *vnet.Document) *pb.Settings {
	s := &pb.Settings{Hostname: d.Hostname, User: d.User, SshKeys: d.SSHKeys, TimeZone: d.TimeZone, UserData: d.UserData}
	for _, f := range d.Files {
		s.Files = append(s.Files, &pb.File{Path: f.Path, Mode: f.Mode, Content: f.Content})
	}
	s.Dns = texts(d.DNS)
	for _, c := range d.RunOnce {
		s.RunOnce = append(s.RunOnce, &pb.Command{Id: c.ID, Command: c.Command})
	}
	for _, x := range d.Disks {
		s.Disks = append(s.Disks, &pb.DataDisk{Id: x.ID, Path: x.Path})
	}
	return s
}

func timeTo(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func reportTo(g *vnet.GuestReport) *pb.GuestReport {
	if g == nil {
		return nil
	}
	return &pb.GuestReport{
		Epoch: g.Epoch.String(), Kind: g.Kind, Ok: g.OK, Error: g.Error, BootId: g.BootID, Hostname: g.Hostname,
		Addrs: g.Addrs, Mac: g.MAC, At: timeTo(g.At),
	}
}

// vmTo makes a VM's message as it is in a list: without what is long or the owner's.
func vmTo(vm *compute.VM, disks []storage.Disk, port *pb.Port) *pb.VM {
	out := &pb.VM{
		Id: vm.ID, Name: vm.Name, Tenant: vm.Tenant, Type: vm.Type, Host: vm.Host, Phase: string(vm.Phase),
		Power: string(vm.Power), Error: vm.Error, Port: port, Guest: reportTo(vm.Guest),
		Created: timeTo(vm.Created), Ready: timeTo(vm.Ready), Personality: string(cmp.Or(vm.Personality, vnet.PersonalityAgent)),
	}
	for _, d := range disks {
		out.Disks = append(out.Disks, &pb.Disk{Id: d.ID, Size: d.Size, Os: d.OS, Tenant: d.Tenant})
	}
	return out
}

// fullVMTo makes a VM's message with all there is of it.
func fullVMTo(vm *compute.VM, disks []storage.Disk, port *pb.Port) *pb.VM {
	out := vmTo(vm, disks, port)
	out.Settings = settingsTo(&vm.Settings)
	for _, h := range vm.Timeline {
		out.Timeline = append(out.Timeline, &pb.Hop{Name: h.Name, At: timeTo(h.At), By: h.By})
	}
	return out
}

func portTo(p *network.Port, in *vnet.Intent, s vnet.Status) *pb.Port {
	out := &pb.Port{
		Name: p.Name, Id: uint32(in.ID), Host: p.Host, Tenant: p.Tenant, Vm: p.VM, Mac: in.MAC.String(), Pa: in.PA.String(),
		Network: string(in.Current.Network), Vni: uint32(in.Current.VNI), Addrs: addrTexts(&in.Current),
		Epoch: in.Current.Epoch.String(), Mtu: uint32(in.Current.MTU), Tap: in.Tap, Power: string(s.Power), Error: s.Error,
		Groups: in.Current.Groups, Router: in.Current.Router, Limits: limitsTo(&in.Limits),
	}
	if s.Phase != 0 {
		out.Status = s.Phase.String()
	}
	if in.Gone {
		out.Status = "deleting"
	}
	return out
}

// addrTexts prints a place's addresses with their lengths.
func addrTexts(p *vnet.Place) []string {
	var out []string
	for _, a := range p.Addrs {
		out = append(out, fmt.Sprintf("%s/%d", a.CA, a.Bits))
	}
	return out
}

func claimTo(c *resource.Claim, swap string, view *pb.VM) *pb.Claim {
	out := &pb.Claim{
		Id: c.ID, Phase: string(c.Phase), Source: c.Source, Vm: c.VM, Swap: swap, Error: c.Error,
		View: view, Tries: int32(c.Tries), Note: c.Note,
	}
	for _, h := range c.Timeline {
		out.Timeline = append(out.Timeline, &pb.Hop{Name: h.Name, At: timeTo(h.At), By: h.By})
	}
	return out
}
