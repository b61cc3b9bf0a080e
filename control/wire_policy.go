package control

import (
	"cmp"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/control/service"
	"replug/directory/vnet"
)

func rulesFrom(all []*pb.Rule) ([]vnet.Rule, error) {
	rules := make([]vnet.Rule, 0, len(all))
	for _, x := range all {
		r, err := ruleFrom(x)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", x.GetName(), err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func ruleFrom(x *pb.Rule) (vnet.Rule, error) {
	var r reader
	out := vnet.Rule{
		Name: x.GetName(), Priority: r.u16("priority", x.GetPriority()), Direction: vnet.Direction(x.GetDirection()),
		Action: vnet.Action(x.GetAction()), Protocol: r.protocol(x.GetProtocol()), RemoteGroup: x.GetRemoteGroup(),
		MinPort: r.u16("port", x.GetMinPort()), MaxPort: r.u16("port", x.GetMaxPort()),
	}
	if x.GetRemote() != "" {
		out.Remote = r.prefix("remote", x.GetRemote())
	}
	if x != nil && x.IcmpType != nil {
		if *x.IcmpType > math.MaxUint8 {
			return out, fmt.Errorf("%w ICMP type %d: 0 to 255", ErrInvalid, *x.IcmpType)
		}
		t := uint8(*x.IcmpType)
		out.ICMPType = &t
	}
	return out, r.err
}

func (r *reader) u16(what string, v uint32) uint16 {
	if v > math.MaxUint16 && r.err == nil {
		r.err = fmt.Errorf("%w %s %d: at most 65535", ErrInvalid, what, v)
	}
	return uint16(v)
}

func (r *reader) protocol(s string) vnet.Protocol {
	p, err := vnet.ParseProtocol(s)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w protocol: %w", ErrInvalid, err)
	}
	return p
}

func groupTo(n *pb.Network, g *vnet.Group, ports []string) *pb.Group {
	out := &pb.Group{Name: g.Name, Tenant: n.Tenant, Network: n.Moniker, Generation: g.Generation, Ports: ports}
	for i := range g.Rules {
		out.Rules = append(out.Rules, ruleTo(&g.Rules[i]))
	}
	return out
}

func ruleTo(r *vnet.Rule) *pb.Rule {
	out := &pb.Rule{
		Name: r.Name, Priority: uint32(r.Priority), Direction: string(r.Direction), Action: string(r.Action), Protocol: r.Protocol.String(),
		RemoteGroup: r.RemoteGroup, MinPort: uint32(r.MinPort), MaxPort: uint32(r.MaxPort),
	}
	if r.Remote.IsValid() {
		out.Remote = r.Remote.String()
	}
	if r.ICMPType != nil {
		t := uint32(*r.ICMPType)
		out.IcmpType = &t
	}
	return out
}

// serviceFrom reads a service but for its network and its backends' members.
func serviceFrom(s *pb.Service) (vnet.Service, error) {
	var r reader
	out := vnet.Service{
		Name: s.GetName(), Port: r.u16("port", s.GetPort()), Protocol: r.protocol(s.GetProtocol()), Affinity: s.GetAffinity(),
	}
	vip, err := vnet.ParseCA(s.GetIp())
	if err != nil {
		return out, fmt.Errorf("%w address: %w", ErrInvalid, err)
	}
	out.VIP = vip
	if out.Check, err = checkOver(nil, s.GetCheck()); err != nil {
		return out, err
	}
	return out, r.err
}

// setService makes of a service what the caller says of it.
func setService(s *vnet.Service, q *pb.SetServiceRequest) (err error) {
	if q.Affinity != nil {
		s.Affinity = *q.Affinity
	}
	if q.NoCheck {
		s.Check = nil
	}
	s.Check, err = checkOver(s.Check, q.Check)
	return err
}

// checkOver reads what is said of a check, over what it is; nil: there is none.
func checkOver(old *vnet.Check, c *pb.Check) (*vnet.Check, error) {
	if c == nil {
		return old, nil
	}
	var out vnet.Check
	if old != nil {
		out = *old
	}
	var r reader
	if c.Port != nil {
		out.Port = r.u16("check port", *c.Port)
	}
	if c.Interval != nil {
		out.Interval = c.Interval.AsDuration()
	}
	if c.Timeout != nil {
		out.Timeout = c.Timeout.AsDuration()
	}
	if c.Rise != nil {
		out.Rise = int(*c.Rise)
	}
	if c.Fall != nil {
		out.Fall = int(*c.Fall)
	}
	return &out, r.err
}

func checkTo(c *vnet.Check) *pb.Check {
	if c == nil {
		return nil
	}
	return &pb.Check{Port: proto.Uint32(uint32(c.Port)), Interval: durationpb.New(c.Interval), Timeout: durationpb.New(c.Timeout),
		Rise: proto.Int32(int32(c.Rise)), Fall: proto.Int32(int32(c.Fall))}
}

// backendFrom reads a backend but for who it is and where.
func backendFrom(b *pb.Backend) (vnet.Backend, error) {
	var r reader
	out := vnet.Backend{Port: r.u16("port", b.GetPort()), Weight: service.DefaultWeight, Draining: b.GetDraining()}
	if b != nil && b.Weight != nil {
		out.Weight = r.u16("weight", *b.Weight)
	}
	return out, r.err
}

// serviceTo makes a service's message; names are what callers call its members.
func serviceTo(n *pb.Network, s *vnet.Service, names map[string]string) *pb.Service {
	out := &pb.Service{
		Name: s.Name, Tenant: n.Tenant, Network: n.Moniker, Ip: s.VIP.String(), Port: uint32(s.Port), Protocol: s.Protocol.String(), Affinity: s.Affinity,
		Check: checkTo(s.Check),
	}
	for _, b := range s.Backends {
		out.Backends = append(out.Backends, &pb.Backend{
			Member: cmp.Or(names[b.Member], b.Member), Ip: b.CA.String(), Port: uint32(b.Port), Weight: proto.Uint32(uint32(b.Weight)),
			Draining: proto.Bool(b.Draining), Dead: b.Dead, Away: b.Away,
		})
	}
	return out
}

// rateOver reads what is said of a rate, over what it is.
func rateOver(old vnet.Rate, r *pb.Rate) vnet.Rate {
	if r != nil && r.Bits != nil {
		old.Bits = *r.Bits
	}
	if r != nil && r.Packets != nil {
		old.Packets = *r.Packets
	}
	return old
}

func rateTo(r vnet.Rate) *pb.Rate {
	return &pb.Rate{Bits: proto.Uint64(r.Bits), Packets: proto.Uint64(r.Packets)}
}

func limitsTo(l *vnet.Limits) *pb.Limits {
	if *l == (vnet.Limits{}) {
		return nil
	}
	return &pb.Limits{From: rateTo(l.From), To: rateTo(l.To)}
}
