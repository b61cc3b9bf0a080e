package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
)

func allow(name string, port uint32) *pb.Rule {
	return &pb.Rule{Name: name, Priority: 700, Direction: "in", Action: "allow", Protocol: "tcp", MinPort: port, Remote: "10.0.0.0/8"}
}

// group makes a security group of acme.
func (w *world) group(network, name string, rules ...*pb.Rule) *pb.Group {
	w.t.Helper()
	return must(w.as("acme").CreateGroup(w.ctx, &pb.CreateGroupRequest{RequestId: id("group", network, name), Network: network, Name: name, Rules: rules}))(w.t)
}

// service makes a service of acme with VMs behind it.
func (w *world) service(network, name, ip string, members ...string) *pb.Service {
	w.t.Helper()
	s := &pb.Service{Name: name, Network: network, Ip: ip, Port: 443, Protocol: "tcp"}
	for i, m := range members {
		weight := uint32(70 + i)
		s.Backends = append(s.Backends, &pb.Backend{Member: m, Port: 8443, Weight: &weight})
	}
	return must(w.as("acme").CreateService(w.ctx, &pb.CreateServiceRequest{RequestId: id("service", network, name), Service: s}))(w.t)
}

// behind prints who is behind a service of acme.
func (w *world) behind(network, name string) string {
	w.t.Helper()
	s := must(w.as("acme").GetService(w.ctx, &pb.GetServiceRequest{Network: network, Name: name}))(w.t)
	var out []string
	for _, b := range s.Backends {
		out = append(out, fmt.Sprintf("%s %s:%d/%d", b.Member, b.Ip, b.Port, b.GetWeight()))
	}
	return strings.Join(out, ", ")
}

// A group's rules are one row for all hosts; who is in it stands in places, for its
// host, and in mappings, for all others, at the same time.
func TestGroups(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	before := w.rows()
	acme := w.as("acme")
	w.group("red", "app")
	g := w.group("red", "web", allow("https", 443), &pb.Rule{Name: "ping", Priority: 7, Direction: "in", Action: "allow", Protocol: "icmp", IcmpType: proto.Uint32(8)},
		&pb.Rule{Name: "db", Priority: 9, Direction: "out", Action: "deny", Protocol: "tcp", MinPort: 5432, MaxPort: 5440, RemoteGroup: "app"})
	if g.Generation != 1 || g.Rules[0].MaxPort != 443 || g.Rules[1].GetIcmpType() != 8 || g.Rules[2].RemoteGroup != "app" {
		t.Errorf("group %v", g)
	}
	vm := w.made(&pb.CreateVMRequest{Name: "web-1", Type: "tiny", Network: "red", Groups: []string{"web", "app"}})
	in := w.stored(vm.Port.Name).Current
	if fmt.Sprint(vm.Port.Groups, in.Groups) != "[app web] [app web]" || w.mapped(vm.Port.Vni, vm.Port.Name) != "10.17.34.2 11" {
		t.Errorf("port %v, place %v, mapped %s", vm.Port.Groups, in.Groups, w.mapped(vm.Port.Vni, vm.Port.Name))
	}
	must(acme.SetPortGroups(w.ctx, &pb.SetPortGroupsRequest{RequestId: "a", Name: "web-1", Groups: []string{"web"}}))(t)
	if in := w.stored(vm.Port.Name).Current; fmt.Sprint(in.Groups) != "[web]" || in.Epoch.String() != vm.Port.Epoch || w.mapped(vm.Port.Vni, vm.Port.Name) != "10.17.34.2 10" {
		t.Errorf("in one group: place %+v, mapped %s", in, w.mapped(vm.Port.Vni, vm.Port.Name))
	}
	if g := must(acme.SetRules(w.ctx, &pb.SetRulesRequest{RequestId: "b", Network: "red", Name: "web", Rules: []*pb.Rule{allow("http", 80)}}))(t); g.Generation != 2 || len(g.Rules) != 1 || fmt.Sprint(g.Ports) != "[web-1]" {
		t.Errorf("with other rules: %v", g)
	}
	for _, c := range []struct {
		name string
		want codes.Code
		says string
		call func() error
	}{
		{"delete a group in use", codes.FailedPrecondition, "vm-1.0", func() error {
			_, err := acme.DeleteGroup(w.ctx, &pb.DeleteGroupRequest{RequestId: "c", Network: "red", Name: "web"})
			return err
		}},
		{"a group of another network", codes.NotFound, `"blue"`, func() error {
			_, err := acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "d", Vm: "web-1", Network: "blue", Groups: []string{"web"}})
			return err
		}},
		{"an unknown group", codes.NotFound, "ghosts", func() error {
			_, err := acme.SetPortGroups(w.ctx, &pb.SetPortGroupsRequest{RequestId: "e", Name: "web-1", Groups: []string{"ghosts"}})
			return err
		}},
		{"a claim with an unknown group", codes.NotFound, "ghosts", func() error {
			_, err := acme.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "f", Name: "web-2", Type: "tiny", Network: "red", Groups: []string{"ghosts"}})
			return err
		}},
		{"a rule without a name", codes.InvalidArgument, "name", func() error {
			_, err := acme.SetRules(w.ctx, &pb.SetRulesRequest{RequestId: "g", Network: "red", Name: "web", Rules: []*pb.Rule{allow("", 80)}})
			return err
		}},
		{"somebody else's network", codes.NotFound, "red", func() error {
			_, err := w.as("umbra").CreateGroup(w.ctx, &pb.CreateGroupRequest{RequestId: "h", Network: "red", Name: "evil"})
			return err
		}},
		{"somebody else's VM", codes.NotFound, "web-1", func() error {
			_, err := w.as("umbra").SetPortGroups(w.ctx, &pb.SetPortGroupsRequest{RequestId: "i", Name: "web-1"})
			return err
		}},
	} {
		code(t, c.name, c.call(), c.want, c.says)
	}
	if all := must(acme.ListGroups(w.ctx, &pb.ListGroupsRequest{Network: "red"}))(t); len(all.Groups) != 2 || all.Groups[0].Ports != nil || fmt.Sprint(all.Groups[1].Ports) != "[web-1]" {
		t.Errorf("list %v", all)
	}
	must(acme.SetPortGroups(w.ctx, &pb.SetPortGroupsRequest{RequestId: "j", Name: "web-1"}))(t)
	must(acme.DeleteGroup(w.ctx, &pb.DeleteGroupRequest{RequestId: "k", Network: "red", Name: "app"}))(t)
	must(acme.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "l", Name: "web-1"}))(t)
	must(acme.DeleteGroup(w.ctx, &pb.DeleteGroupRequest{RequestId: "m", Network: "red", Name: "web"}))(t)
	w.wait("nothing is left but the resting address", func() error { return onlyResting(before, w.rows()) })
	w.group("blue", "web", allow("https", 443))
	must(acme.DeleteNetwork(w.ctx, &pb.DeleteNetworkRequest{RequestId: "n", Moniker: "blue"}))(t)
	for k := range w.rows() {
		if under(k, "/replug/groups/") {
			t.Errorf("left of a deleted network: %s", k)
		}
	}
}

// A swap leaves the groups of the old network and enters those that it names; the
// way back restores them. Groups that a swap may come back to can't be deleted.
func TestGroupsInSwap(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	acme := w.as("acme")
	w.group("red", "spare")
	w.group("red", "web", allow("https", 443))
	w.group("blue", "web", allow("https", 443))
	vm := w.made(&pb.CreateVMRequest{Name: "web-1", Type: "tiny", Network: "red", Groups: []string{"web"}})
	is := func(what, groups, mapped string, v uint32) {
		t.Helper()
		if in := w.stored(vm.Port.Name).Current; fmt.Sprint(in.Groups) != groups || w.mapped(v, vm.Port.Name) != mapped {
			t.Errorf("%s: place in %v, mapped %s; want %s, %s", what, in.Groups, w.mapped(v, vm.Port.Name), groups, mapped)
		}
	}
	plan := must(acme.PlanSwap(w.ctx, &pb.StartSwapRequest{Vm: "web-1", Network: "blue"}))(t)
	if !strings.Contains(fmt.Sprint(plan.Changes), `what:"security groups"`) || !strings.Contains(fmt.Sprint(plan.Warnings), "all will pass") {
		t.Errorf("plan %v", plan)
	}
	s := w.swapped(&pb.StartSwapRequest{RequestId: "a", Vm: "web-1", Network: "blue", Groups: []string{"web"}})
	if fmt.Sprint(s.Before.Groups, s.After.Groups) != "[web] [web]" {
		t.Errorf("receipt %v", s)
	}
	is("after a swap", "[web]", "10.17.34.2 1", s.After.Vni)
	s = w.swapped(&pb.StartSwapRequest{RequestId: "b", Vm: "web-1", Network: "blue", Ip: "10.17.34.77"})
	is("after a swap within the network", "[web]", "10.17.34.77 1", s.After.Vni)

	h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
		if p.Undo {
			return vnet.StatusConfirmed
		}
		return vnet.StatusFlipped
	}})
	live := must(acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "c", Vm: "web-1", Network: "red", Groups: []string{"web", "spare"}, LeaseBudget: durationpb.New(time.Minute)}))(t)
	w.wait("it is on its way", func() error {
		if in := w.stored(vm.Port.Name); in.Current.Network != "red" {
			return fmt.Errorf("%+v", in.Current)
		}
		return nil
	})
	is("on its way", "[spare web]", "10.17.34.3 11", live.After.Vni)
	for _, network := range []string{"red", "blue"} {
		_, err := acme.DeleteGroup(w.ctx, &pb.DeleteGroupRequest{RequestId: "d" + network, Network: network, Name: "web"})
		code(t, "delete a group of a swap's side "+network, err, codes.FailedPrecondition, "vm-1.0")
	}
	_, err := acme.SetPortGroups(w.ctx, &pb.SetPortGroupsRequest{RequestId: "e", Name: "web-1"})
	code(t, "other groups in mid-swap", err, codes.FailedPrecondition, live.Id)
	must(acme.CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "f", Id: live.Id}))(t)
	if s := w.swapDone(live.Id); s.Phase != "undone" {
		t.Errorf("cancelled: %v", s)
	}
	is("back home", "[web]", "10.17.34.77 1", s.After.Vni)
}

// A claimed VM is in the groups of its new network from the flip on.
func TestGroupsInClaim(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	w.group("red", "web", allow("https", 443))
	op := w.as("olga")
	must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "p", Type: "tiny", Size: 1}))(t)
	w.wait("a pooled VM", func() error {
		p, err := op.GetPool(w.ctx, &pb.GetPoolRequest{Type: "tiny"})
		if err == nil && p.Ready != 1 {
			err = fmt.Errorf("%v", p)
		}
		return err
	})
	must(op.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "c", Tenant: "acme", Name: "web-1", Type: "tiny", Network: "red", Groups: []string{"web"}}))(t)
	if vm := w.inPhase("web-1", "ready"); fmt.Sprint(vm.Port.Groups) != "[web]" || w.mapped(vm.Port.Vni, vm.Port.Name) != "10.17.34.2 1" {
		t.Errorf("claimed VM %v, mapped %s", vm.Port, w.mapped(vm.Port.Vni, vm.Port.Name))
	}
}

// A service has an address that nobody else gets and backends by name; it goes
// without a trace, and so does what is behind it.
func TestServices(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	acme := w.as("acme")
	before := w.rows()
	w.vm("web-1", "red", "")
	w.vm("web-2", "red", "")
	w.vm("far", "blue", "")
	s := w.service("red", "web", "10.17.34.200", "web-1", "web-2")
	if got := w.behind("red", "web"); got != "web-1 10.17.34.2:8443/70, web-2 10.17.34.3:8443/71" || s.Protocol != "tcp" || s.Tenant != "acme" {
		t.Errorf("behind web: %s, %v", got, s)
	}
	ask := func(name string) *pb.Service {
		return &pb.Service{Name: name, Network: "red", Ip: "10.17.34.201", Port: 443, Protocol: "tcp"}
	}
	for _, c := range []struct {
		name string
		want codes.Code
		says string
		call func() error
	}{
		{"a VM takes its address", codes.FailedPrecondition, "service web", func() error {
			_, err := acme.CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "a", Name: "x", Type: "tiny", Network: "red", Ip: "10.17.34.200"})
			return err
		}},
		{"at a VM's address", codes.FailedPrecondition, "vm-1.0", func() error {
			s := ask("x")
			s.Ip = "10.17.34.2"
			_, err := acme.CreateService(w.ctx, &pb.CreateServiceRequest{RequestId: "b", Service: s})
			return err
		}},
		{"a backend of another network", codes.FailedPrecondition, "blue", func() error {
			s := ask("x")
			s.Backends = []*pb.Backend{{Member: "far"}}
			_, err := acme.CreateService(w.ctx, &pb.CreateServiceRequest{RequestId: "c", Service: s})
			return err
		}},
		{"a backend that is not there", codes.NotFound, "ghost", func() error {
			_, err := acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "d", Network: "red", Service: "web", Backend: &pb.Backend{Member: "ghost"}})
			return err
		}},
		{"somebody else's", codes.NotFound, "red", func() error {
			_, err := w.as("umbra").DeleteService(w.ctx, &pb.DeleteServiceRequest{RequestId: "e", Network: "red", Name: "web"})
			return err
		}},
		{"its network", codes.FailedPrecondition, "used", func() error {
			_, err := acme.DeleteNetwork(w.ctx, &pb.DeleteNetworkRequest{RequestId: "f", Moniker: "red"})
			return err
		}},
	} {
		code(t, c.name, c.call(), c.want, c.says)
	}
	zero := uint32(0)
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "g", Network: "red", Service: "web", Backend: &pb.Backend{Member: "web-2", Weight: &zero, Draining: true}}))(t)
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "g2", Network: "red", Service: "web", Backend: &pb.Backend{Member: "web-1", Draining: true}}))(t)
	if got := w.behind("red", "web"); got != "web-1 10.17.34.2:8443/70, web-2 10.17.34.3:8443/0" {
		t.Errorf("drained: %s", got)
	}
	must(acme.RemoveBackend(w.ctx, &pb.RemoveBackendRequest{RequestId: "h", Network: "red", Service: "web", Member: "web-1"}))(t)
	set := must(acme.SetService(w.ctx, &pb.SetServiceRequest{RequestId: "i", Network: "red", Name: "web", Affinity: true, Check: &pb.Check{Port: 7070}}))(t)
	if got := w.behind("red", "web"); got != "web-2 10.17.34.3:8443/0" || !set.Backends[0].Draining || !set.Affinity || set.Check.Interval.AsDuration() != 5*time.Second || set.Check.Fall != 3 {
		t.Errorf("after changes: %s, %v", got, set)
	}
	if p := must(acme.GetPort(w.ctx, &pb.GetPortRequest{Name: "web-2"}))(t); fmt.Sprint(p.Services) != "[web]" {
		t.Errorf("port %v", p)
	}
	must(acme.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "j", Name: "web-2"}))(t)
	if got := w.behind("red", "web"); got != "" {
		t.Errorf("after its VM was deleted: %s", got)
	}
	for _, name := range []string{"web-1", "far"} {
		must(acme.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "k" + name, Name: name}))(t)
	}
	must(acme.DeleteService(w.ctx, &pb.DeleteServiceRequest{RequestId: "l", Network: "red", Name: "web"}))(t)
	w.wait("nothing is left but resting addresses", func() error { return onlyResting(before, w.rows()) })
}

// The VM follows its service through a swap: it leaves the old network's with the
// flip, and is behind the new one's when it is confirmed; undone, it is what it was.
// All of that is in the five writes of a swap.
func TestServicesInSwap(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	acme := w.as("acme")
	w.vm("web-1", "red", "")
	w.vm("web-2", "red", "")
	w.service("red", "web", "10.17.34.200", "web-1", "web-2")
	w.service("red", "api", "10.17.34.201", "web-1")
	w.service("blue", "web", "10.17.34.200")
	w.service("blue", "shop", "10.17.34.202")
	are := func(what string, want ...string) {
		t.Helper()
		got := []string{w.behind("red", "web"), w.behind("red", "api"), w.behind("blue", "web"), w.behind("blue", "shop")}
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n got %q\nwant %q", what, got, want)
		}
	}
	red := []string{"web-1 10.17.34.2:8443/70, web-2 10.17.34.3:8443/71", "web-1 10.17.34.2:8443/70", "", ""}
	blue := []string{"web-2 10.17.34.3:8443/71", "", "web-1 10.17.34.55:8443/70", "web-1 10.17.34.55:443/100"}
	nowhere := []string{"web-2 10.17.34.3:8443/71", "", "", ""}
	q := &pb.StartSwapRequest{Tenant: "acme", Vm: "web-1", Network: "blue", Services: []string{"web", "shop"}}
	plan := must(acme.PlanSwap(w.ctx, q))(t)
	if !strings.Contains(fmt.Sprint(plan.Changes), `what:"services"`) || !strings.Contains(fmt.Sprint(plan.Changes), `"api, web"`) {
		t.Errorf("plan %v", plan)
	}
	_, err := acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "x", Vm: "web-1", Network: "blue", Services: []string{"ghost"}})
	code(t, "an unknown service", err, codes.NotFound, "ghost")

	// Undone: the guest is not seen.
	h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
		if p.Undo {
			return vnet.StatusConfirmed
		}
		return vnet.StatusFlipped
	}})
	q.RequestId, q.LeaseBudget = "a", durationpb.New(time.Minute)
	s := must(acme.StartSwap(w.ctx, q))(t)
	w.wait("the flip", func() error {
		s, err := acme.GetSwap(w.ctx, &pb.GetSwapRequest{Id: s.Id})
		if err == nil && s.Phase != "switched" {
			err = fmt.Errorf("%v", s)
		}
		return err
	})
	are("after the flip", nowhere...)
	must(acme.CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "b", Id: s.Id}))(t)
	if s := w.swapDone(s.Id); s.Phase != "undone" {
		t.Errorf("cancelled: %v", s)
	}
	red = []string{"web-2 10.17.34.3:8443/71, web-1 10.17.34.2:8443/70", "web-1 10.17.34.2:8443/70", "", ""}
	are("undone", red...)

	// Undone after the guest was proven to be there: it takes the caller's word to join.
	h.behave(manners{})
	q.RequestId, q.Confirm, q.LeaseBudget, q.Ip = "c", "caller", nil, "10.17.34.9"
	s = must(acme.StartSwap(w.ctx, q))(t)
	w.wait("it is seen", func() error {
		s, err := acme.GetSwap(w.ctx, &pb.GetSwapRequest{Id: s.Id})
		if err == nil && s.Phase != "leased" && s.Phase != "published" {
			err = fmt.Errorf("%v", s)
		}
		return err
	})
	are("seen", nowhere...)
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "put", Network: "blue", Service: "shop", Backend: &pb.Backend{Member: "web-1"}}))(t)
	must(acme.CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "d", Id: s.Id}))(t)
	w.swapDone(s.Id)
	are("undone from there", red...)

	txns := w.store.Txns()
	q.RequestId, q.Confirm, q.Ip = "e", "", "10.17.34.55"
	s = w.swapped(q)
	if n := w.store.Txns() - txns; n > 5 || !s.Ok {
		t.Errorf("%d durable writes, %v", n, s)
	}
	are("moved", blue...)
	if fmt.Sprint(s.Before.Services, s.After.Services) != "[api web] [web shop]" {
		t.Errorf("receipt %v", s)
	}

	// Within a network it stays behind its services, at its new address.
	s = w.swapped(&pb.StartSwapRequest{RequestId: "f", Vm: "web-1", Network: "blue", Ip: "10.17.34.99"})
	are("another address", "web-2 10.17.34.3:8443/71", "", "web-1 10.17.34.99:8443/70", "web-1 10.17.34.99:443/100")

	// Deleted in mid-swap it is behind nothing.
	h.behave(manners{upTo: func(vnet.Place) vnet.StatusPhase { return vnet.StatusFlipped }})
	must(acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "g", Vm: "web-1", Network: "red", Services: []string{"web"}}))(t)
	must(acme.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "h", Name: "web-1"}))(t)
	are("deleted", nowhere...)
}

// Limits, MTU and router of a live port.
func TestPortSettings(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	vm := w.vm("web-1", "red", "")
	op, acme := w.as("olga"), w.as("acme")
	limits := &pb.Limits{From: &pb.Rate{Bits: 100_000_000, Packets: 70_000}, To: &pb.Rate{Bits: 900_000_000}}
	_, err := acme.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "a", Name: "web-1", Limits: limits})
	code(t, "a tenant lifts its limits", err, codes.PermissionDenied)
	p := must(op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "b", Tenant: "acme", Name: "web-1", Limits: limits}))(t)
	in := w.stored(vm.Port.Name)
	if want := (vnet.Limits{From: vnet.Rate{Bits: 100_000_000, Packets: 70_000}, To: vnet.Rate{Bits: 900_000_000}}); in.Limits != want || !proto.Equal(p.Limits, &pb.Limits{From: limits.From, To: &pb.Rate{Bits: 900_000_000}}) {
		t.Errorf("limits %+v, port %v", in.Limits, p)
	}
	_, err = op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "c", Name: vm.Port.Name, Limits: &pb.Limits{To: &pb.Rate{Bits: 77}}})
	code(t, "77 bits a second", err, codes.InvalidArgument, "8000")
	must(acme.SetPort(w.ctx, &pb.SetPortRequest{RequestId: "d", Name: "web-1", Mtu: proto.Uint32(1300), Router: proto.Bool(true)}))(t)
	_, err = acme.SetPort(w.ctx, &pb.SetPortRequest{RequestId: "e", Name: "web-1", Mtu: proto.Uint32(1501)})
	code(t, "more than the underlay has", err, codes.FailedPrecondition, "1500")
	_, err = acme.SetPort(w.ctx, &pb.SetPortRequest{RequestId: "f", Name: "web-1"})
	code(t, "nothing", err, codes.InvalidArgument, "mtu or router")
	has := func(what string) {
		t.Helper()
		if in := w.stored(vm.Port.Name); in.Current.MTU != 1300 || !in.Current.Router || in.Limits.From.Packets != 70_000 {
			t.Errorf("%s: %+v, limits %+v", what, in.Current, in.Limits)
		}
	}
	has("set")
	w.swapped(&pb.StartSwapRequest{RequestId: "g", Vm: "web-1", Network: "blue"})
	has("after a swap")
	must(acme.SetPort(w.ctx, &pb.SetPortRequest{RequestId: "h", Name: "web-1", Router: proto.Bool(false)}))(t)
	if in := w.stored(vm.Port.Name); in.Current.MTU != 1300 || in.Current.Router {
		t.Errorf("no router any more: %+v", in.Current)
	}
}

// What becomes of old connections is part of the new place; a drain makes the swap's
// budget longer.
func TestOldConnections(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	vm := w.vm("web-1", "red", "")
	acme := w.as("acme")
	for i, c := range []struct {
		old   string
		drain time.Duration
		want  string
		says  string // the plan
	}{
		{"", 0, "reset 0s", "reset"}, {"silence", 0, "silence 0s", "time out"},
		{"drain", 0, "drain 30s", "30s to end"}, {"drain", 7 * time.Second, "drain 7s", "7s to end"},
	} {
		q := &pb.StartSwapRequest{RequestId: fmt.Sprint("s", i), Vm: "web-1", Network: []string{"blue", "red"}[i%2], OldConnections: c.old}
		if c.drain > 0 {
			q.Drain = durationpb.New(c.drain)
		}
		if plan := must(acme.PlanSwap(w.ctx, q))(t); !strings.Contains(fmt.Sprint(plan.Warnings), c.says) {
			t.Errorf("%s: plan %v", c.old, plan.Warnings)
		}
		w.swapped(q)
		if p := w.stored(vm.Port.Name).Current; fmt.Sprint(p.OldConnections, " ", p.Drain) != c.want {
			t.Errorf("%q %s: %s %s, want %s", c.old, c.drain, p.OldConnections, p.Drain, c.want)
		}
	}
	for _, bad := range []*pb.StartSwapRequest{
		{OldConnections: "burn"}, {OldConnections: "reset", Drain: durationpb.New(time.Second)}, {OldConnections: "drain", Drain: durationpb.New(-time.Second)},
	} {
		bad.RequestId, bad.Vm, bad.Network = "bad", "web-1", "blue"
		_, err := acme.StartSwap(w.ctx, bad)
		code(t, bad.String(), err, codes.InvalidArgument)
	}
}

// A server that dies in mid-swap leaves what the port was behind in the record: the
// next one brings it back.
func TestServicesOverRestart(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.vm("web-1", "red", "")
	w.service("red", "web", "10.17.34.200", "web-1")
	w.service("blue", "web", "10.17.34.200")
	h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
		if p.Undo {
			return vnet.StatusConfirmed
		}
		return vnet.StatusFlipped
	}})
	s := must(w.as("acme").StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "a", Vm: "web-1", Network: "blue", Services: []string{"web"}, LeaseBudget: durationpb.New(time.Minute)}))(t)
	w.wait("the flip", func() error {
		if got := w.behind("red", "web"); got != "" {
			return fmt.Errorf("behind red's: %s", got)
		}
		return nil
	})
	w.restart()
	must(w.as("acme").CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "b", Id: s.Id}))(t)
	if s := w.swapDone(s.Id); s.Phase != "undone" || fmt.Sprint(s.Before.Services) != "[web]" {
		t.Errorf("cancelled: %v", s)
	}
	if red, blue := w.behind("red", "web"), w.behind("blue", "web"); red != "web-1 10.17.34.2:8443/70" || blue != "" {
		t.Errorf("behind red's: %s, blue's: %s", red, blue)
	}
}
