package dataplane

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"replug/bpf"
	"replug/dataplane/flowlog"
	"replug/directory/vnet"
)

// rulesFor returns the rules that come into force with a row: those it says, or
// those that are in force in the same network.
func (m *maps) rulesFor(r Row) (*bpf.RuleSet, error) {
	if r.Rules != nil {
		return ruleSet(r.Rules), nil
	}
	p, err := m.bpf.Port(uint16(r.Port))
	return p.Rules, err
}

// SetRules leaves those in force alone that say the same, as after a restart of
// the agent: flows that have begun need not be judged again.
func (m *maps) SetRules(id vnet.PortID, rules *Ruleset) error {
	want := ruleSet(rules)
	p, err := m.bpf.Port(uint16(id))
	if err == nil && reflect.DeepEqual(p.Rules, want) {
		return nil
	}
	err = m.bpf.SetRules(uint16(id), want)
	m.unsettled()
	return err
}

func (m *maps) Rejudge(id vnet.PortID) error { return m.bpf.Rejudge(uint16(id)) }

func (m *maps) ReleaseRules(id vnet.PortID) { m.bpf.ReleaseRules(uint16(id)) }

func (m *maps) StageRules(id vnet.PortID, rules *Ruleset) error {
	if rules == nil {
		rules = open
	}
	return m.bpf.StageRules(uint16(id), ruleSet(rules))
}

// ruleSet translates a set as the datapath reads it back.
func ruleSet(r *Ruleset) *bpf.RuleSet {
	if r.Open {
		return nil
	}
	return &bpf.RuleSet{In: ruleList(r.In), Out: ruleList(r.Out)}
}

func ruleList(rules []Rule) []bpf.Rule {
	var out []bpf.Rule
	for _, r := range rules {
		b := bpf.Rule{ID: r.ID, Deny: r.Deny, Protocol: uint8(r.Protocol), Remote: r.Remote.Masked(), MinPort: r.MinPort, MaxPort: r.MaxPort}
		switch {
		case !r.Remote.IsValid():
		case r.Remote.Addr().Is4():
			b.Family = bpf.IPv4
		default:
			b.Family = bpf.IPv6
			if r.Remote.Bits() == 0 {
				b.Remote = netip.Prefix{} // the family says it all
			}
		}
		if r.Group >= 0 {
			b.Groups = 1 << r.Group
		}
		if r.ICMPType >= 0 {
			t := uint8(r.ICMPType)
			b.ICMPType = &t
		}
		out = append(out, b)
	}
	return out
}

func (m *maps) SetLimits(id vnet.PortID, l vnet.Limits) error {
	return m.bpf.SetLimits(uint16(id), bpf.Limits{From: bpf.Rate(l.From), To: bpf.Rate(l.To)})
}

func (m *maps) SetMembers(list []Member) NotSet {
	not := NotSet{}
	for _, v := range list {
		if err := m.bpf.SetMembers(bpf.MappingKey{VNI: uint32(v.VNI), CA: v.CA.Addr}, uint64(v.Groups)); err != nil {
			not[v.MappingKey] = roomFor(errMemberRoom, err)
		}
	}
	return not
}

func (m *maps) EachMember(f func(Member)) error {
	return m.bpf.EachMember(func(k bpf.MappingKey, groups uint64) {
		f(Member{mappingKey(k), vnet.Groups(groups)})
	})
}

func (m *maps) SetService(s vnet.Service) error {
	return roomFor(errServiceRoom, m.bpf.SetService(serviceRow(&s)))
}

// serviceRow translates a service.
func serviceRow(s *vnet.Service) bpf.Service {
	out := bpf.Service{ServiceKey: serviceKey(keyOf(s)), Affinity: s.Affinity}
	for _, b := range s.Backends {
		out.Backends = append(out.Backends, bpf.Backend{CA: b.CA.Addr, Port: b.Port, Weight: b.Weight, Draining: b.Draining || b.Away, Dead: b.Dead})
	}
	return out
}

func (m *maps) DeleteService(k ServiceKey) error { return m.bpf.DeleteService(serviceKey(k)) }

func (m *maps) ForgetBackends() error { return m.bpf.ForgetBackends() }

func (m *maps) Services() ([]ServiceKey, error) {
	var all []ServiceKey
	for _, k := range m.bpf.Services() {
		all = append(all, ServiceKey{vnet.VNI(k.VNI), vnet.CA{Addr: k.VIP}, k.Port, vnet.Protocol(k.Protocol)})
	}
	return all, nil
}

func serviceKey(k ServiceKey) bpf.ServiceKey {
	return bpf.ServiceKey{VNI: uint32(k.VNI), VIP: k.VIP.Addr, Port: k.Port, Protocol: uint8(k.Protocol)}
}

func (m *maps) SetDraining(id vnet.PortID, on bool) error {
	if on {
		return m.bpf.SetPortFlags(uint16(id), bpf.Draining, 0)
	}
	return m.bpf.SetPortFlags(uint16(id), 0, bpf.Draining)
}

func (m *maps) Connections(id vnet.PortID, epoch vnet.Epoch) ([]Connection, error) {
	open, err := m.bpf.Connections(uint16(id), uint64(epoch))
	all := make([]Connection, 0, len(open))
	for _, f := range open {
		c := Connection{Local: f.Local, Remote: f.Remote, Peer: f.Remote, LocalAck: f.LocalAck, RemoteAck: f.RemoteAck}
		if f.Service.IsValid() {
			c.Peer = f.Service
		}
		all = append(all, c)
	}
	return slices.Clip(all), err
}

func (m *maps) ServiceOf(ifindex int, guest, backend netip.AddrPort) (netip.AddrPort, bool) {
	return m.bpf.ServiceOf(ifindex, guest, backend)
}

func (m *maps) Sweep(ended func(FlowEvent)) (Swept, error) {
	s, err := m.bpf.Sweep(nil, func(f bpf.Flow) {
		if f.Answers {
			return // the other side of a flow through a service
		}
		last := time.Now().Add(-f.Idle)
		began := time.Now().Add(f.Began - bpf.Now())
		ended(FlowEvent{
			Kind: flowlog.End, Port: vnet.PortID(f.Port), Epoch: vnet.Epoch(f.Epoch), Protocol: vnet.Protocol(f.Protocol),
			Local: f.Local, Remote: f.Remote, Inbound: f.Inbound, Rule: int64(f.Rule), At: last, Lasted: last.Sub(began),
			Packets: f.From.Packets + f.To.Packets, Bytes: f.From.Bytes + f.To.Bytes,
		})
	})
	return Swept{Alive: s.Alive, Ended: s.Ended, Full: [...]float64{ipv4: s.Full4, ipv6: s.Full6}}, err
}
