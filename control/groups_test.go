package control

import (
	"fmt"
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
	kept := w.rows()
	w.group("blue", "web", allow("https", 443))
	must(acme.DeleteNetwork(w.ctx, &pb.DeleteNetworkRequest{RequestId: "n", Moniker: "blue"}))(t)
	for k := range w.rows() {
		if under(k, "/replug/groups/") || under(k, "/replug/slots/") && kept[k] == "" {
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
	away := &pb.StartSwapRequest{RequestId: "g", Vm: "web-1", Network: "blue", Ip: "10.17.34.99"}
	_, err = acme.StartSwap(w.ctx, away)
	code(t, "another swap in mid-swap", err, codes.FailedPrecondition, live.Id)
	if plan := must(acme.PlanSwap(w.ctx, away))(t); !strings.Contains(fmt.Sprint(plan.Warnings), "swap "+live.Id+" of it runs") {
		t.Errorf("a plan in mid-swap warns %q, want %s named", plan.Warnings, live.Id)
	}
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
	must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "p", Type: "tiny", Size: new(int32(1))}))(t)
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
