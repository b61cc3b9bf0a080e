package dataplane

import (
	"fmt"
	"net/netip"
	"slices"

	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// traceFromVM composes what the VM would send, as its guest has it configured, and
// asks the datapath.
func (d *diagnosis) traceFromVM(q ask.TraceFromVM) (ask.Trace, error) {
	r, err := d.find(q.Port)
	if err != nil {
		return ask.Trace{}, err
	}
	s := q.Spec
	// Every other address of the subnet has the gateway's MAC, as ARP and ND say.
	s.SrcMAC, s.DstMAC = r.mac, vnet.GatewayMAC
	if !s.Src.IsValid() {
		if s.Src, err = source(r.place, s.Dst); err != nil {
			return ask.Trace{}, fmt.Errorf("port %s: %w", q.Port, err)
		}
	}
	sent, err := frame.Compose(s)
	if err != nil {
		return ask.Trace{}, err
	}
	t, err := d.witness.TraceFromVM(r.id, sent)
	if err != nil {
		return ask.Trace{}, fmt.Errorf("run the frame through the datapath: %w", err)
	}
	t.Port = r.id
	return d.trace(t, sent), nil
}

// source is the address that a guest would choose for a destination: the one of
// the same subnet, or the first of the family.
func source(p *vnet.Place, dst netip.Addr) (netip.Addr, error) {
	var first netip.Addr
	for _, a := range p.Addrs {
		switch {
		case a.CA.Is4() != dst.Is4():
		case a.Prefix().Contains(dst):
			return a.CA.Addr, nil
		case !first.IsValid():
			first = a.CA.Addr
		}
	}
	if !first.IsValid() {
		return first, fmt.Errorf("it has no address of the family of %s in network %s", dst, p.Network)
	}
	return first, nil
}

// traceFromWire asks the datapath what becomes of a frame that another host sends.
// The routers on its way would give it this host's MAC.
func (d *diagnosis) traceFromWire(q ask.TraceFromWire) (ask.Trace, error) {
	arrives := slices.Clone(q.Frame)
	copy(arrives, d.uplink[:])
	t, err := d.witness.TraceFromWire(arrives)
	if err != nil {
		return ask.Trace{}, fmt.Errorf("run the frame through the datapath: %w", err)
	}
	return d.trace(t, arrives), nil
}

// trace names what the datapath has numbers for.
func (d *diagnosis) trace(t Traced, sent []byte) ask.Trace {
	out := ask.Trace{
		Verdict: t.Verdict, Drop: t.Drop, Port: d.ref(t.Port), To: d.ref(t.To),
		RuleOut: d.decision(t.RuleOut, t.FlowOut, t.Drop == dropRuleOut, "allowed: no rule denies it"),
		RuleIn:  d.decision(t.RuleIn, t.FlowIn, t.Drop == dropRuleIn, "denied: no rule allows it"),
		Reset:   t.Reset,
		Service: t.Service, Backend: t.Backend, Route: t.Route, NextHop: t.NextHop, Mapping: t.Mapping,
		MTU: t.MTU, Sent: sent, Frame: t.Frame,
	}
	if t.Drop != "" {
		out.Why = d.witness.DropText(t.Drop)
	}
	if t.Ifindex != 0 || t.Verdict == ask.ToWire {
		out.Device = d.device(t.Ifindex)
	}
	return out
}

// Reasons that a rule gives.
const (
	dropRuleOut = "rule_out"
	dropRuleIn  = "rule_in"
)

func (d *diagnosis) decision(id int64, flow string, denied bool, otherwise string) ask.Decision {
	switch {
	case id == RuleUnasked:
		return ask.Decision{}
	case id == RuleNone:
		return ask.Decision{Flow: flow, Says: "allowed: the port is in no group"}
	case id == RuleDefault:
		return ask.Decision{Flow: flow, Says: otherwise}
	}
	name := ruleName(d.rules, id)
	if denied {
		return ask.Decision{Rule: name, Flow: flow, Says: "denied by " + name}
	}
	return ask.Decision{Rule: name, Flow: flow, Says: "allowed by " + name}
}

// ruleName is "group/rule", or what decided instead.
func ruleName(rules func(uint32) (RuleName, bool), id int64) string {
	switch id {
	case RuleDefault:
		return "no rule matched"
	case RuleNone, RuleUnasked:
		return "the port is in no group"
	}
	if n, ok := rules(uint32(id)); ok {
		return n.Group + "/" + n.Rule
	}
	return fmt.Sprintf("rule %d, which was deleted", id)
}
