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
	"replug/directory/store"
	"replug/directory/vnet"
)

// Limits, MTU and router of a live port.
func TestPortSettings(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	vm := w.vm("web-1", "red", "")
	op, acme := w.as("olga"), w.as("acme")
	limits := &pb.Limits{From: &pb.Rate{Bits: new(uint64(100_000_000)), Packets: new(uint64(70_000))}, To: &pb.Rate{Bits: new(uint64(900_000_000)), Packets: new(uint64(0))}}
	_, err := acme.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "a", Name: "web-1", Limits: limits})
	code(t, "a tenant lifts its limits", err, codes.PermissionDenied)
	p := must(op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "b", Tenant: "acme", Name: "web-1", Limits: limits}))(t)
	in := w.stored(vm.Port.Name)
	if want := (vnet.Limits{From: vnet.Rate{Bits: 100_000_000, Packets: 70_000}, To: vnet.Rate{Bits: 900_000_000}}); in.Limits != want || !proto.Equal(p.Limits, limits) {
		t.Errorf("limits %+v, port %v", in.Limits, p)
	}
	_, err = op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "c", Name: vm.Port.Name, Limits: &pb.Limits{To: &pb.Rate{Bits: new(uint64(77))}}})
	code(t, "77 bits a second", err, codes.InvalidArgument, "8000")
	_, err = op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "c2", Name: vm.Port.Name, Limits: &pb.Limits{To: &pb.Rate{}}})
	code(t, "no rate at all", err, codes.InvalidArgument, "nothing to set")
	must(op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: "c3", Name: vm.Port.Name, Limits: &pb.Limits{From: &pb.Rate{Bits: new(uint64(0))}}}))(t)
	if l := w.stored(vm.Port.Name).Limits; l != (vnet.Limits{From: vnet.Rate{Packets: 70_000}, To: vnet.Rate{Bits: 900_000_000}}) {
		t.Errorf("one bound was ended: %+v", l)
	}
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

// A port that is told to be as it is already isn't written: neither its host nor those
// that have its mappings hear of it.
func TestPortStaysAsItIs(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	w.group("red", "web", allow("https", 443))
	vm := w.made(&pb.CreateVMRequest{Name: "web-1", Type: "tiny", Network: "red", Groups: []string{"web"}})
	op := w.as("olga")
	written := func() int64 {
		return must(store.Get[vnet.Intent](w.ctx, w.store, store.Intents+"h7/"+vm.Port.Name))(t).Revision
	}
	set := map[string]func(request string) error{
		"groups": func(request string) error {
			_, err := op.SetPortGroups(w.ctx, &pb.SetPortGroupsRequest{RequestId: request, Name: vm.Port.Name})
			return err
		},
		"limits": func(request string) error {
			_, err := op.SetPortLimits(w.ctx, &pb.SetPortLimitsRequest{RequestId: request, Name: vm.Port.Name, Limits: &pb.Limits{From: &pb.Rate{Packets: new(uint64(70_000))}}})
			return err
		},
		"router": func(request string) error {
			_, err := op.SetPort(w.ctx, &pb.SetPortRequest{RequestId: request, Name: vm.Port.Name, Router: proto.Bool(true)})
			return err
		},
	}
	for name, call := range set {
		before := written()
		if err := call(name + "-1"); err != nil {
			t.Fatal(err)
		}
		changed := written()
		if changed == before {
			t.Errorf("%s: a change isn't written", name)
		}
		if err := call(name + "-2"); err != nil {
			t.Fatal(err)
		}
		if written() != changed {
			t.Errorf("%s: written although nothing changes", name)
		}
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
