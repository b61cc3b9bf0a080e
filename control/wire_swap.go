package control

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/control/swap"
	"replug/directory/vnet"
)

func swapFrom(q *pb.StartSwapRequest) (swap.Request, error) {
	m, err := monikerFrom(q.Network)
	if err != nil {
		return swap.Request{}, err
	}
	cas, err := casFrom(q.Ip, q.Ips)
	if err != nil {
		return swap.Request{}, err
	}
	if (q.Vm == "") == (q.Port == "") {
		return swap.Request{}, fmt.Errorf("%w swap: name either a VM or an attached port", ErrInvalid)
	}
	out := swap.Request{
		Tenant: q.Tenant, VM: q.Vm, Port: q.Port, Network: m, Hostname: q.Hostname,
		CAs: cas, Groups: q.Groups, Services: q.Services, Confirm: vnet.Confirm(q.Confirm), Trigger: vnet.Trigger(q.Trigger),
		OldConnections: vnet.OldConnections(q.OldConnections), Drain: q.Drain.AsDuration(),
		Budgets: swap.Budgets{Stage: q.StageBudget.AsDuration(), Lease: q.LeaseBudget.AsDuration(), Confirm: q.ConfirmBudget.AsDuration()},
	}
	for _, b := range []time.Duration{out.Budgets.Stage, out.Budgets.Lease, out.Budgets.Confirm, out.Drain} {
		if b < 0 || b > maxBudget {
			return out, fmt.Errorf("%w budget %s: must be positive, at most %s", ErrInvalid, b, maxBudget)
		}
	}
	return out, nil
}

// maxBudget bounds how long a swap may hold two places.
const maxBudget = 24 * time.Hour

func swapTo(r *swap.Record) *pb.Swap {
	out := &pb.Swap{
		Id: r.ID, Phase: r.Phase.String(), Done: r.Phase.Ended(), Ok: r.OK(), Error: r.Error, Vm: r.VM, Port: r.Port,
		Host: r.Host, Before: placeTo(&r.Before), After: placeTo(&r.After), Mac: r.MAC.String(), Pa: r.PA.String(),
		Confirm: string(r.Confirm), Trigger: string(r.Trigger), Rung: r.Rung, Guest: reportTo(r.Guest),
		Started: timeTo(r.Started), Ended: timeTo(r.Ended), Claim: r.Claim,
	}
	for _, s := range r.Left {
		out.Before.Services = append(out.Before.Services, s.Service)
	}
	out.After.Services = r.Services
	if r.Blackout > 0 {
		out.Blackout = durationpb.New(r.Blackout)
	}
	if r.Alarm != "" {
		out.Error = strings.TrimPrefix(out.Error+"; "+r.Alarm, "; ")
	}
	for _, s := range r.Timeline {
		out.Timeline = append(out.Timeline, &pb.Hop{Name: s.Name, At: timeTo(s.At), By: s.By})
	}
	return out
}

func placeTo(p *vnet.Place) *pb.SidedPlace {
	out := &pb.SidedPlace{Network: string(p.Network), Vni: uint32(p.VNI), Addrs: addrTexts(p), Epoch: p.Epoch.String(), Groups: p.Groups}
	if p.Document != nil {
		out.Hostname = p.Document.Hostname
	}
	return out
}

// changesOf lists what a swap makes different for the guest, which is behind some
// services now.
func changesOf(rec *swap.Record, seats []string) []*pb.Change {
	before, after := &rec.Before, &rec.After
	var out []*pb.Change
	add := func(what, from, to string) {
		if from != to {
			out = append(out, &pb.Change{What: what, From: from, To: to})
		}
	}
	add("network", string(before.Network), string(after.Network))
	add("vni", fmt.Sprint(before.VNI), fmt.Sprint(after.VNI))
	add("address", strings.Join(addrTexts(before), ", "), strings.Join(addrTexts(after), ", "))
	add("gateway", gateways(before), gateways(after))
	add("routes", routes(before), routes(after))
	add("mtu", mtu(before), mtu(after))
	add("dns", strings.Join(texts(before.DHCP.DNS), ", "), strings.Join(texts(after.DHCP.DNS), ", "))
	add("domain", before.DHCP.Domain, after.DHCP.Domain)
	add("ntp", strings.Join(texts(before.DHCP.NTP), ", "), strings.Join(texts(after.DHCP.NTP), ", "))
	add("security groups", strings.Join(before.Groups, ", "), strings.Join(after.Groups, ", "))
	if next := rec.Services; before.VNI != after.VNI || len(next) > 0 {
		add("services", strings.Join(seats, ", "), strings.Join(next, ", "))
	}
	add("router", fmt.Sprint(before.Router), fmt.Sprint(after.Router))
	add("lease", before.DHCP.Lease.String(), after.DHCP.Lease.String())
	add("hostname", placeTo(before).Hostname, placeTo(after).Hostname)
	return out
}

func gateways(p *vnet.Place) string {
	var out []string
	for _, a := range p.Addrs {
		out = append(out, a.Gateway.String())
	}
	return strings.Join(out, ", ")
}

func routes(p *vnet.Place) string {
	var out []string
	for _, r := range p.Routes {
		if r.Peer != 0 {
			out = append(out, fmt.Sprintf("%s via peer VNI %d", r.Prefix, r.Peer))
			continue
		}
		out = append(out, r.Prefix.String()+" via "+r.NextHop.String())
	}
	return strings.Join(out, ", ")
}

func mtu(p *vnet.Place) string {
	if p.MTU == 0 {
		return "what the underlay leaves"
	}
	return fmt.Sprint(p.MTU)
}
