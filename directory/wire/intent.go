package wire

import (
	"errors"
	"fmt"
	"maps"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

// FromMapping makes the message of a mapping.
func FromMapping(m *vnet.Mapping) *directorypb.Mapping {
	return &directorypb.Mapping{
		Vni: uint32(m.VNI), Ca: m.CA.String(), Pa: m.PA.String(), Mac: m.MAC[:],
		Epoch: uint64(m.Epoch), Port: m.Port, Host: m.Host, Groups: uint64(m.Groups),
	}
}

// ToMapping reads the message of a mapping.
func ToMapping(m *directorypb.Mapping) (vnet.Mapping, error) {
	var r reader
	out := vnet.Mapping{
		VNI: r.vni("mapping.vni", m.GetVni()), CA: r.ca("mapping.ca", m.GetCa()), PA: r.pa("mapping.pa", m.GetPa()),
		MAC: r.mac("mapping.mac", m.GetMac()), Epoch: r.epoch("mapping.epoch", m.GetEpoch()),
		Port: m.GetPort(), Host: m.GetHost(), Groups: vnet.Groups(m.GetGroups()),
	}
	return out, r.err
}

// ToMappingKey reads which mapping is gone.
func ToMappingKey(m *directorypb.MappingKey) (vnet.VNI, vnet.CA, error) {
	var r reader
	v, ca := r.vni("mapping key.vni", m.GetVni()), r.ca("mapping key.ca", m.GetCa())
	return v, ca, r.err
}

// ToVNI reads a VNI that stands alone.
func ToVNI(v uint32) (vnet.VNI, error) {
	var r reader
	out := r.vni("vni", v)
	return out, r.err
}

// FromIntent makes the message of an intent.
func FromIntent(i *vnet.Intent) *directorypb.Intent {
	return &directorypb.Intent{
		Port: i.Port, Id: uint32(i.ID), Host: i.Host, Mac: i.MAC[:], Pa: i.PA.String(),
		Vm: i.VM, Machine: fromMachine(i.Machine), Tap: i.Tap, Monitor: i.Monitor,
		Current: FromPlace(&i.Current), Next: FromPlace(i.Next), Gone: i.Gone,
		Limits: fromLimits(i.Limits),
	}
}

// ToIntent reads the message of an intent.
func ToIntent(m *directorypb.Intent) (vnet.Intent, error) {
	var r reader
	out := vnet.Intent{
		Port: m.GetPort(), ID: vnet.PortID(m.GetId()), Host: m.GetHost(),
		MAC: r.mac("intent.mac", m.GetMac()), PA: r.pa("intent.pa", m.GetPa()),
		VM: m.GetVm(), Machine: r.machine(m.GetMachine()), Tap: m.GetTap(), Monitor: m.GetMonitor(),
		Next: r.place("intent.next", m.GetNext()), Gone: m.GetGone(), Limits: toLimits(m.GetLimits()),
	}
	if out.Port == "" {
		r.fail("intent.port", errors.New("is missing"))
	}
	if id := m.GetId(); id == 0 || id > uint32(vnet.MaxPortID) {
		r.fail("intent.id", fmt.Errorf("%d is not a port id (1 to %d)", id, vnet.MaxPortID))
	}
	if m.GetCurrent() == nil {
		r.fail("intent.current", errors.New("is missing"))
	} else {
		out.Current = *r.place("intent.current", m.GetCurrent())
	}
	return out, r.err
}

func fromLimits(l vnet.Limits) *directorypb.Limits {
	if l == (vnet.Limits{}) {
		return nil
	}
	return &directorypb.Limits{FromBits: l.From.Bits, FromPackets: l.From.Packets, ToBits: l.To.Bits, ToPackets: l.To.Packets}
}

func toLimits(m *directorypb.Limits) vnet.Limits {
	return vnet.Limits{
		From: vnet.Rate{Bits: m.GetFromBits(), Packets: m.GetFromPackets()},
		To:   vnet.Rate{Bits: m.GetToBits(), Packets: m.GetToPackets()},
	}
}

func fromMachine(m *vnet.Machine) *directorypb.Machine {
	if m == nil {
		return nil
	}
	return &directorypb.Machine{
		Id: m.ID, Uuid: m.UUID, Cpus: int32(m.CPUs), MemoryMib: int32(m.Memory), Image: m.Image,
		Disks: each(m.Disks, func(d vnet.Disk) *directorypb.Disk {
			return &directorypb.Disk{Id: d.ID, Size: d.Size, Os: d.OS}
		}),
		Power: string(m.Power), Personality: string(m.Personality),
	}
}

func (r *reader) machine(m *directorypb.Machine) *vnet.Machine {
	if m == nil {
		return nil
	}
	return &vnet.Machine{
		ID: m.Id, UUID: m.Uuid, CPUs: int(m.Cpus), Memory: int(m.MemoryMib), Image: m.Image,
		Disks: each(m.Disks, func(d *directorypb.Disk) vnet.Disk {
			return vnet.Disk{ID: d.GetId(), Size: d.GetSize(), OS: d.GetOs()}
		}),
		Power: r.power("intent.machine.power", m.Power), Personality: r.personality("intent.machine.personality", m.Personality),
	}
}

func (r *reader) personality(field, s string) vnet.Personality {
	p, err := vnet.ParsePersonality(s)
	if err != nil {
		r.fail(field, err)
	}
	return p
}

func (r *reader) power(field, s string) vnet.Power {
	switch p := vnet.Power(s); p {
	case "", vnet.PowerOn, vnet.PowerOff, vnet.PowerAbsent, vnet.PowerSaved:
		return p
	default:
		r.fail(field, fmt.Errorf("%q is no power", s))
		return ""
	}
}

// FromHost makes the message of a host.
func FromHost(h *vnet.HostInfo) *directorypb.Host {
	return &directorypb.Host{
		Name: h.Name, Address: text(h.Address), PaPrefix: prefixText(h.PAPrefix), Mtu: uint32(h.MTU),
		Ports: int32(h.Ports), MemoryMib: int32(h.Memory), Images: h.Images, Labels: h.Labels, Version: h.Version,
		Personalities: fromPersonalities(h.Personalities),
	}
}

func fromPersonalities(all map[string]vnet.Personality) map[string]string {
	if len(all) == 0 {
		return nil
	}
	out := make(map[string]string, len(all))
	for image, p := range all {
		out[image] = string(p)
	}
	return out
}

// ToHost reads the message of a host. It must have a name, an address and a PA
// prefix: other hosts accept its frames by them.
func ToHost(m *directorypb.Host) (vnet.HostInfo, error) {
	var r reader
	out := vnet.HostInfo{
		Name: m.GetName(), Address: r.addr("host.address", m.GetAddress()), PAPrefix: r.prefix("host.pa_prefix", m.GetPaPrefix()),
		MTU: r.u16("host.mtu", m.GetMtu()), Ports: int(m.GetPorts()), Memory: int(m.GetMemoryMib()),
		Images: each(m.GetImages(), same), Version: m.GetVersion(),
	}
	if len(m.GetLabels()) > 0 {
		out.Labels = maps.Clone(m.GetLabels())
	}
	for image, s := range m.GetPersonalities() {
		if out.Personalities == nil {
			out.Personalities = make(map[string]vnet.Personality)
		}
		out.Personalities[image] = r.personality("host.personalities", s)
	}
	if out.Name == "" || !out.Address.IsValid() || !out.PAPrefix.IsValid() {
		r.fail("host", errors.New("name, address or PA prefix is missing"))
	}
	return out, r.err
}
