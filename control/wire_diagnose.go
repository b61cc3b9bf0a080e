package control

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/ask"
	"replug/directory/frame"
)

// What hosts say of frames, as callers hear it. Tenants hear nothing of the
// underlay, and no other tenant's names.

func (d *diagnoser) hopTo(host, program string, t *ask.Trace) *pb.TraceHop {
	// Of what comes from the wire only a port's has left its outer headers behind: the
	// kernel takes them off what is sent up, and the answer to what is refused has new ones.
	came := program == "from_wire"
	wrapped := t.Verdict == ask.ToWire || came && t.Verdict != ask.ToPort
	h := &pb.TraceHop{
		Host: host, Program: program, Port: d.portName(t.Port), ToPort: d.portName(t.To),
		Verdict: t.Verdict, Drop: t.Drop, Why: t.Why, RuleOut: t.RuleOut.Rule, RuleIn: t.RuleIn.Rule, FlowOut: t.RuleOut.Flow, FlowIn: t.RuleIn.Flow,
		Service: textOf(t.Service), Backend: textOf(t.Backend), Route: textOf(t.Route), NextHop: textOf(t.NextHop),
		Sent: d.visible(t.Sent, came), Frame: d.visible(t.Frame, wrapped),
	}
	if t.Mapping != nil {
		h.Vni = uint32(t.Mapping.VNI)
		if d.underlay() {
			h.Pa = textOf(t.Mapping.PA)
		}
	}
	h.Steps = d.steps(program, t)
	return h
}

func (d *diagnoser) portName(p ask.PortRef) string {
	if !d.sees(p.Tenant) {
		return ""
	}
	return p.Name
}

// called is the port for people: by the name of its VM, if it has one.
func (d *diagnoser) called(p ask.PortRef) string {
	name := d.portName(p)
	if vm := d.vmName(p); vm != "" {
		return fmt.Sprintf("%s (%s)", vm, name)
	}
	return name
}

// vmName is the name of a port's VM, as [diagnoser.learn] found it; "": it has none.
func (d *diagnoser) vmName(p ask.PortRef) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vmOf[portOf{p.Name, p.Tenant}]
}

// learn finds out whose ports are: those that the caller may see, each once. One
// that can't be found out is called by its own name.
func (d *diagnoser) learn(ctx context.Context, ports ...ask.PortRef) {
	for _, p := range ports {
		key := portOf{p.Name, p.Tenant}
		d.mu.Lock()
		_, known := d.vmOf[key]
		d.mu.Unlock()
		if known || d.portName(p) == "" {
			continue
		}
		name := ""
		if port, err := d.networks.GetPort(ctx, p.Name); err == nil && port.Value.VM != "" && d.sees(port.Value.Tenant) {
			if vm, err := d.vms.Get(ctx, port.Value.VM); err == nil {
				name = vm.Value.Name
			}
		}
		d.mu.Lock()
		d.vmOf[key] = name
		d.mu.Unlock()
	}
}

// visible takes the underlay's headers off for those who may not see them.
func (d *diagnoser) visible(b []byte, wrapped bool) []byte {
	if d.underlay() || !wrapped {
		return b
	}
	inner, _, _ := frame.Inner(b)
	return inner
}

// textOf prints what is valid.
func textOf[T interface {
	comparable
	fmt.Stringer
}](v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return v.String()
}

// steps are what the datapath asked on the frame's way, in its order: only what it
// came to.
func (d *diagnoser) steps(program string, t *ask.Trace) (out []*pb.TraceStep) {
	step := func(stage, says string) {
		if says != "" {
			out = append(out, &pb.TraceStep{Stage: stage, Says: says})
		}
	}
	if program == "from_wire" {
		step("port", d.portText(t.To, "for"))
	} else {
		step("port", d.portText(t.Port, "from"))
	}
	step("rules out", decisionText(t.RuleOut))
	if t.Service.IsValid() {
		step("service", fmt.Sprintf("%s leads to %s", t.Service, t.Backend))
	}
	step("route", routeText(t))
	if t.Mapping != nil {
		step("mapping", d.place(t.Mapping))
	}
	if t.MTU > 0 {
		step("mtu", fmt.Sprintf("only %d bytes fit", t.MTU))
	}
	if program == "from_vm" && t.To.Name != "" {
		step("to port", d.portText(t.To, "for"))
	}
	step("rules in", decisionText(t.RuleIn))
	step("verdict", d.verdict(t))
	switch {
	case t.Verdict != ask.Dropped:
	case t.Reset:
		step("sender", "gets a TCP reset")
	case len(t.Frame) > 0:
		step("sender", "is told")
	}
	return out
}

// decisionText says what decided, and whether the flow was known: then its first
// packet decided.
func decisionText(d ask.Decision) string {
	if d.Says == "" || d.Flow == "" {
		return d.Says
	}
	return fmt.Sprintf("%s (%s flow)", d.Says, d.Flow)
}

func (d *diagnoser) portText(p ask.PortRef, role string) string {
	if name := d.called(p); name != "" {
		return fmt.Sprintf("%s %s in network %s (VNI %d)", role, name, p.Network, p.VNI)
	}
	return ""
}

func routeText(t *ask.Trace) string {
	switch {
	case !t.Route.IsValid():
		return ""
	case t.NextHop.IsValid():
		return fmt.Sprintf("%s by way of %s", t.Route, t.NextHop)
	}
	return fmt.Sprintf("%s, on link", t.Route)
}

// place says where a mapping leads.
func (d *diagnoser) place(m *ask.Mapping) string {
	if m == nil {
		return "an unknown place"
	}
	if !d.underlay() {
		return fmt.Sprintf("known, VNI %d", m.VNI)
	}
	return fmt.Sprintf("PA %s, MAC %s, VNI %d", m.PA, m.MAC, m.VNI)
}

func (d *diagnoser) verdict(t *ask.Trace) string {
	device := ""
	if d.underlay() && t.Device != "" {
		device = " by " + t.Device
	}
	switch t.Verdict {
	case ask.Dropped:
		return fmt.Sprintf("dropped: %s (%s)", t.Drop, t.Why)
	case ask.Trapped:
		return "handed to the host's agent, which answers it"
	case ask.Answered:
		return "answered by the gateway"
	case ask.ToIMDS:
		return "handed to the metadata service"
	case ask.ToPort:
		return "delivered to " + d.called(t.To) + device
	case ask.ToWire:
		return "sent to the underlay" + device
	case ask.SentUp:
		return "unwrapped by the kernel's VXLAN device, then to " + d.called(t.To)
	case ask.Passed:
		return "none of Replug's: left to the host's own stack"
	}
	return t.Verdict
}

func (d *diagnoser) dropsTo(host string, r ask.Refused) *pb.DropReport {
	out := &pb.DropReport{Host: host, Lost: r.Lost}
	for _, row := range r.Rows {
		out.Rows = append(out.Rows, &pb.DropRow{Reason: row.Reason, Why: row.Why, Port: d.portName(row.Port), Vm: d.vmName(row.Port), Tuple: row.Tuple, Count: row.Count})
	}
	if d.underlay() {
		for _, t := range r.Totals {
			out.Totals = append(out.Totals, &pb.DropTotal{Reason: t.Reason, Count: t.Count})
		}
	}
	return out
}

func flowsTo(flows []ask.Flow) *pb.ListFlowsResponse {
	out := &pb.ListFlowsResponse{}
	for _, f := range flows {
		out.Flows = append(out.Flows, &pb.Flow{
			Protocol: f.Protocol.String(), Local: endText(f.Local), Remote: endText(f.Remote), Inbound: f.Inbound, State: f.State,
			Age: durationpb.New(f.Age), Idle: durationpb.New(f.Idle), Packets: f.Packets, Bytes: f.Bytes,
		})
	}
	return out
}

// endText leaves out a port number that there is none of.
func endText(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}
