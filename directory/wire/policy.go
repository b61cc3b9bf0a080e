package wire

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/types/known/durationpb"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

// FromGroup makes the message of a group.
func FromGroup(g *vnet.Group) *directorypb.Group {
	return &directorypb.Group{
		Vni: uint32(g.VNI), Name: g.Name, Slot: uint32(g.Slot), Generation: g.Generation,
		Rules: each(g.Rules, func(r vnet.Rule) *directorypb.Rule {
			m := &directorypb.Rule{
				Name: r.Name, Priority: uint32(r.Priority), Direction: string(r.Direction), Action: string(r.Action),
				Protocol: uint32(r.Protocol), Remote: prefixText(r.Remote), RemoteGroup: r.RemoteGroup,
				MinPort: uint32(r.MinPort), MaxPort: uint32(r.MaxPort),
			}
			if r.ICMPType != nil {
				t := uint32(*r.ICMPType)
				m.IcmpType = &t
			}
			return m
		}),
	}
}

// ToGroup reads the message of a group.
func ToGroup(m *directorypb.Group) (vnet.Group, error) {
	var r reader
	out := vnet.Group{
		VNI: r.vni("group.vni", m.GetVni()), Name: r.name("group.name", m.GetName()),
		Slot: uint8(r.atMost("group.slot", m.GetSlot(), vnet.MaxGroups-1)), Generation: m.GetGeneration(),
		Rules: each(m.GetRules(), func(x *directorypb.Rule) vnet.Rule { return r.rule("group.rules", x) }),
	}
	return out, r.err
}

func (r *reader) rule(field string, m *directorypb.Rule) vnet.Rule {
	out := vnet.Rule{
		Name: m.GetName(), Priority: r.u16(field+".priority", m.GetPriority()),
		Direction: vnet.Direction(m.GetDirection()), Action: vnet.Action(m.GetAction()),
		Protocol: r.protocol(field+".protocol", m.GetProtocol()), Remote: r.prefix(field+".remote", m.GetRemote()),
		RemoteGroup: m.GetRemoteGroup(),
		MinPort:     r.u16(field+".min_port", m.GetMinPort()), MaxPort: r.u16(field+".max_port", m.GetMaxPort()),
	}
	if m != nil && m.IcmpType != nil {
		t := uint8(r.atMost(field+".icmp_type", *m.IcmpType, math.MaxUint8))
		out.ICMPType = &t
	}
	if out.Priority == 0 {
		r.fail(field+".priority", errors.New("is 0"))
	}
	if out.Direction != vnet.In && out.Direction != vnet.Out {
		r.fail(field+".direction", fmt.Errorf("%q is neither in nor out", out.Direction))
	}
	if out.Action != vnet.Allow && out.Action != vnet.Deny {
		r.fail(field+".action", fmt.Errorf("%q is neither allow nor deny", out.Action))
	}
	if out.MinPort > out.MaxPort {
		r.fail(field+".max_port", fmt.Errorf("ports %d to %d", out.MinPort, out.MaxPort))
	}
	return out
}

// FromService makes the message of a service.
func FromService(s *vnet.Service) *directorypb.Service {
	return &directorypb.Service{
		Vni: uint32(s.VNI), Name: s.Name, Vip: s.VIP.String(), Port: uint32(s.Port), Protocol: uint32(s.Protocol),
		Affinity: s.Affinity, Check: fromCheck(s.Check),
		Backends: each(s.Backends, func(b vnet.Backend) *directorypb.Backend {
			return &directorypb.Backend{Member: b.Member, Ca: b.CA.String(), Port: uint32(b.Port), Weight: uint32(b.Weight),
				Draining: b.Draining, Dead: b.Dead, Away: b.Away}
		}),
	}
}

// ToService reads the message of a service.
func ToService(m *directorypb.Service) (vnet.Service, error) {
	var r reader
	out := vnet.Service{
		VNI: r.vni("service.vni", m.GetVni()), Name: r.name("service.name", m.GetName()), VIP: r.ca("service.vip", m.GetVip()),
		Port: r.u16("service.port", m.GetPort()), Protocol: r.protocol("service.protocol", m.GetProtocol()),
		Affinity: m.GetAffinity(), Check: r.check("service.check", m.GetCheck()),
		Backends: each(m.GetBackends(), func(b *directorypb.Backend) vnet.Backend {
			return vnet.Backend{
				Member: b.GetMember(), CA: r.ca("service.backends.ca", b.GetCa()), Port: r.u16("service.backends.port", b.GetPort()),
				Weight:   uint16(r.atMost("service.backends.weight", b.GetWeight(), vnet.MaxWeight)),
				Draining: b.GetDraining(), Dead: b.GetDead(), Away: b.GetAway(),
			}
		}),
	}
	if out.Port == 0 || !out.Protocol.HasPorts() {
		r.fail("service", fmt.Errorf("%s port %d can't be served", out.Protocol, out.Port))
	}
	return out, r.err
}

func fromCheck(c *vnet.Check) *directorypb.Check {
	if c == nil {
		return nil
	}
	return &directorypb.Check{Port: uint32(c.Port), Interval: durationpb.New(c.Interval), Timeout: durationpb.New(c.Timeout),
		Rise: int32(c.Rise), Fall: int32(c.Fall)}
}

// check refuses what would make a host probe without a pause or an end.
func (r *reader) check(field string, m *directorypb.Check) *vnet.Check {
	if m == nil {
		return nil
	}
	out := &vnet.Check{
		Port: r.u16(field+".port", m.Port), Interval: r.duration(field+".interval", m.Interval),
		Timeout: r.duration(field+".timeout", m.Timeout), Rise: int(m.Rise), Fall: int(m.Fall),
	}
	if out.Interval <= 0 || out.Timeout <= 0 || out.Rise < 1 || out.Fall < 1 {
		r.fail(field, errors.New("interval, timeout, rise and fall must be above 0"))
	}
	return out
}

// FromPolicyKey names a group or a service.
func FromPolicyKey(v vnet.VNI, name string) *directorypb.PolicyKey {
	return &directorypb.PolicyKey{Vni: uint32(v), Name: name}
}

// ToPolicyKey reads which group or service is gone.
func ToPolicyKey(m *directorypb.PolicyKey) (vnet.VNI, string, error) {
	var r reader
	v, name := r.vni("key.vni", m.GetVni()), r.name("key.name", m.GetName())
	return v, name, r.err
}

// FromHealth makes the message of what a host found out.
func FromHealth(all []vnet.Health) *directorypb.Health {
	return &directorypb.Health{Backends: each(all, func(h vnet.Health) *directorypb.BackendHealth {
		return &directorypb.BackendHealth{Vni: uint32(h.VNI), Service: h.Service, Member: h.Member, Dead: h.Dead, Error: clean(h.Error)}
	})}
}

// ToHealth reads what a host found out.
func ToHealth(m *directorypb.Health) ([]vnet.Health, error) {
	var r reader
	out := each(m.GetBackends(), func(b *directorypb.BackendHealth) vnet.Health {
		return vnet.Health{
			VNI: r.vni("health.vni", b.GetVni()), Service: r.name("health.service", b.GetService()),
			Member: r.name("health.member", b.GetMember()), Dead: b.GetDead(), Error: b.GetError(),
		}
	})
	return out, r.err
}

func (r *reader) name(field, s string) string {
	if s == "" {
		r.fail(field, errors.New("is missing"))
	}
	return s
}

func (r *reader) protocol(field string, v uint32) vnet.Protocol {
	return vnet.Protocol(r.atMost(field, v, math.MaxUint8))
}

func (r *reader) atMost(field string, v, most uint32) uint32 {
	if v > most {
		r.fail(field, fmt.Errorf("%d is more than %d", v, most))
	}
	return v
}
