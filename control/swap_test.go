package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
)

// swapped starts a swap and watches it to its end.
func (w *world) swapped(q *pb.StartSwapRequest) *pb.Swap {
	w.t.Helper()
	if q.RequestId == "" {
		q.RequestId = id("swap", q.String())
	}
	q.Tenant = "acme"
	s := must(w.as("olga").StartSwap(w.ctx, q))(w.t)
	return w.swapDone(s.Id)
}

func (w *world) swapDone(id string) *pb.Swap {
	w.t.Helper()
	var last *pb.Swap
	// A watch ends with the server; the swap does not.
	w.wait("the end of swap "+id, func() error {
		stream, err := w.as("olga").WatchSwap(w.ctx, &pb.GetSwapRequest{Id: id})
		for err == nil {
			var s *pb.Swap
			if s, err = stream.Recv(); err == nil {
				last = s
			}
		}
		if last == nil || !last.Done {
			return fmt.Errorf("%v: %w", last, err)
		}
		return nil
	})
	return last
}

// S82, S84, S85: a customer's VM moves; its record names what it was and is. Plan
// says so before and changes nothing.
func TestSwap(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	vm := w.vm("web-1", "red", "10.17.34.51")
	w.vm("peer", "red", "10.17.34.61")
	w.vm("new-peer", "blue", "10.17.34.71")
	before := w.rows()
	q := &pb.StartSwapRequest{Tenant: "acme", Vm: "web-1", Network: "blue", Ip: "10.17.34.52", Hostname: "web-blue"}
	plan := must(w.as("acme").PlanSwap(w.ctx, q))(t)
	if d := differ(before, w.rows()); d != "" {
		t.Errorf("planning changed rows:\n%s", d)
	}
	changes := fmt.Sprint(plan.Changes)
	for _, want := range []string{"blue", "10.17.34.52/24", "web-blue"} {
		if !strings.Contains(changes, want) {
			t.Errorf("plan %v says nothing of %s", plan, want)
		}
	}
	if fmt.Sprint(plan.PeersLost, plan.PeersNew) != "[10.17.34.61] [10.17.34.71]" || !strings.Contains(fmt.Sprint(plan.Keeps), vm.Port.Mac) {
		t.Errorf("plan %v", plan)
	}
	txns := w.store.Txns()
	s := w.swapped(q)
	if n := w.store.Txns() - txns; n > 5 {
		t.Errorf("%d durable writes", n)
	}
	if !s.Ok || s.Before.Network != "red" || s.After.Addrs[0] != "10.17.34.52/24" || s.Rung != "bounce 20ms" || s.Blackout.AsDuration() != 17*time.Millisecond || s.Confirm != "guest" {
		t.Errorf("swap %v", s)
	}
	now := must(w.as("acme").GetVM(w.ctx, &pb.GetVMRequest{Name: "web-1"}))(t)
	if now.Port.Network != "blue" || now.Port.Mac != vm.Port.Mac || now.Port.Pa != vm.Port.Pa || now.Settings.Hostname != "web-blue" || now.Guest.Hostname != "web-blue" {
		t.Errorf("VM %v", now)
	}
	in, _ := h.intent(vm.Port.Name)
	if in.Current.VNI != vnet.VNI(s.After.Vni) || in.Current.Document.Epoch != in.Current.Epoch && in.Current.Document.Epoch != 0 {
		t.Errorf("intent %+v", in.Current)
	}
	_, err := w.as("olga").CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "r", Tenant: "acme", Name: "heir", Type: "tiny", Network: "red", Ip: "10.17.34.51"})
	code(t, "the old address at once", err, codes.FailedPrecondition, "rests")
}

// A swap whose guest does not follow is undone at its deadline: old network, old
// address, old document. Who looked for the new address finds it free again later.
func TestSwapUndone(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	vm := w.vm("web-1", "red", "10.17.34.51")
	h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
		if p.Network == "blue" {
			return vnet.StatusFlipped
		}
		return vnet.StatusConfirmed
	}})
	s := w.swapped(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Hostname: "web-blue", LeaseBudget: durationpb.New(200 * time.Millisecond)})
	if s.Ok || s.Phase != "undone" || s.Error == "" {
		t.Errorf("swap %v", s)
	}
	now := must(w.as("acme").GetVM(w.ctx, &pb.GetVMRequest{Name: "web-1"}))(t)
	if now.Port.Network != "red" || now.Port.Addrs[0] != "10.17.34.51/24" || now.Settings.Hostname != "web-1" || now.Phase != "ready" {
		t.Errorf("VM %v", now)
	}
	in, _ := h.intent(vm.Port.Name)
	if in.Current.Document.Hostname != "web-1" || !in.Current.Undo {
		t.Errorf("place %+v document %+v", in.Current, in.Current.Document)
	}
}

// A guest that is reset in mid-swap has the boot budget of the server.
func TestSwapOfAGuestThatIsReset(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.BootBudget = 3 * time.Second })
	w.furnish()
	h := w.host("h7", 7)
	w.vm("web-1", "red", "10.17.34.51")
	h.behave(manners{resets: true, upTo: func(p vnet.Place) vnet.StatusPhase {
		if p.Network == "blue" {
			return vnet.StatusFlipped
		}
		return vnet.StatusConfirmed
	}})
	s := w.swapped(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", LeaseBudget: durationpb.New(2 * time.Second)})
	if s.Phase != "undone" || !strings.Contains(s.Error, "within 2s, nor within 3s of its reset") {
		t.Errorf("swap %v", s)
	}
}

// A host that is full ends a swap at staged, with no impact; a second swap, a
// deleted network and a taken address wait for the first one's end.
func TestSwapRefusedAndBusy(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.vm("web-1", "red", "10.17.34.51")
	before := w.rows()
	h.behave(manners{refuse: "no room in the mappings' map: 1048576 of 1048576"})
	s := w.swapped(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "10.17.34.52"})
	if s.Phase != "undone" || !strings.Contains(s.Error, "no room") {
		t.Errorf("swap %v", s)
	}
	h.behave(manners{deaf: true})
	op := w.as("olga")
	q := &pb.StartSwapRequest{RequestId: "a", Tenant: "acme", Vm: "web-1", Network: "blue", Ip: "10.17.34.52", StageBudget: durationpb.New(time.Minute)}
	live := must(op.StartSwap(w.ctx, q))(t)
	if again := must(op.StartSwap(w.ctx, q))(t); again.Id != live.Id {
		t.Errorf("the same request led to %s and %s", live.Id, again.Id)
	}
	during := w.rows()
	_, err := op.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "b", Tenant: "acme", Vm: "web-1", Network: "blue", Ip: "10.17.34.77"})
	code(t, "a second swap", err, codes.FailedPrecondition, live.Id)
	_, err = op.DeleteNetwork(w.ctx, &pb.DeleteNetworkRequest{RequestId: "c", Tenant: "acme", Moniker: "blue"})
	code(t, "a network that a swap holds", err, codes.FailedPrecondition, "held")
	_, err = op.CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "d", Tenant: "acme", Name: "x", Type: "tiny", Network: "blue", Ip: "10.17.34.52"})
	code(t, "an address that a swap holds", err, codes.FailedPrecondition, "held")
	_, err = op.SetPower(w.ctx, &pb.SetPowerRequest{RequestId: "e", Tenant: "acme", Name: "web-1", Power: "off"})
	code(t, "power in mid-swap", err, codes.FailedPrecondition, live.Id)
	if d := differ(during, w.rows()); d != "" {
		t.Errorf("refused, but rows changed:\n%s", d)
	}
	must(op.CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "f", Id: live.Id}))(t)
	if s := w.swapDone(live.Id); s.Phase != "undone" {
		t.Errorf("cancelled: %v", s)
	}
	w.wait("nothing left of both swaps", func() error { return residue(before, w.rows()) })
}

// residue returns an error unless after has before's rows, with other epochs and
// records of ended swaps at most.
func residue(before, after map[string]string) error {
	var extra []string
	for k := range after {
		if _, ok := before[k]; !ok && !under(k, "/replug/swaps/", "/replug/cas/", "/replug/statuses/", "/replug/counters/epochs/") {
			extra = append(extra, k)
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			extra = append(extra, "lost "+k)
		}
	}
	if len(extra) > 0 {
		return errors.New(strings.Join(extra, "\n"))
	}
	return nil
}

// AttachPort: somebody else's tap is swapped with the lease as proof, and leaves
// nothing when it is detached. A tenant swaps its port, but can't say which devices
// and sockets of a host the agent takes, nor open its guest a way past the datapath.
func TestAttachedPort(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Rest = 20 * time.Millisecond })
	w.furnish()
	h := w.host("h7", 7)
	before := w.rows()
	acme, op := w.as("acme"), w.as("olga")
	_, err := acme.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "mine", Name: "nic-1", Host: "h7", Tap: "eth0", Mac: "52:54:00:1a:2b:3c", Network: "red"})
	code(t, "a tenant attaches", err, codes.PermissionDenied, "operators", "acme")
	if d := differ(before, w.rows()); d != "" {
		t.Errorf("a tenant attaches: refused, but rows changed:\n%s", d)
	}
	p := must(op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "a", Tenant: "acme", Name: "nic-1", Host: "h7", Tap: "tap-x", Mac: "52:54:00:1a:2b:3c",
		Monitor: "/run/x/qmp.sock", Network: "red", Ip: "10.17.34.51"}))(t)
	in, ok := h.intent(p.Name)
	w.wait("intent", func() error {
		if in, ok = h.intent(p.Name); !ok {
			return errors.New("not there")
		}
		return nil
	})
	if in.Tap != "tap-x" || in.Monitor != "/run/x/qmp.sock" || in.Machine != nil || in.MAC.String() != "52:54:00:1a:2b:3c" {
		t.Errorf("intent %+v", in)
	}
	_, err = op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "b", Tenant: "acme", Name: "nic-2", Host: "h7", Tap: "tap-x", Mac: "52:54:00:1a:2b:3d", Network: "red"})
	code(t, "a tap twice", err, codes.FailedPrecondition, "tap-x")
	s := w.swapped(&pb.StartSwapRequest{Port: "nic-1", Network: "blue", Ip: "10.17.34.52"})
	if !s.Ok || s.Confirm != "lease" || s.Mac != p.Mac || s.Vm != "" {
		t.Errorf("swap %v", s)
	}
	if got := must(acme.GetPort(w.ctx, &pb.GetPortRequest{Name: "nic-1"}))(t); got.Network != "blue" || got.Status != "leased" {
		t.Errorf("port %v", got)
	}
	h.behave(manners{refuse: "full"})
	if s := w.swapped(&pb.StartSwapRequest{RequestId: "full", Port: "nic-1", Network: "red"}); s.Phase != "undone" {
		t.Errorf("swap to a full host: %v", s)
	}
	h.behave(manners{})
	_, err = acme.DetachPort(w.ctx, &pb.DetachPortRequest{RequestId: "off", Name: "nic-1"})
	code(t, "a tenant detaches", err, codes.PermissionDenied, "operators", "acme")
	must(op.DetachPort(w.ctx, &pb.DetachPortRequest{RequestId: "c", Tenant: "acme", Name: "nic-1"}))(t)
	w.wait("nothing is left", func() error {
		after := w.rows()
		for k := range after {
			if under(k, "/replug/swaps/") {
				delete(after, k)
			}
		}
		if d := differ(before, after); d != "" {
			return errors.New(d)
		}
		return nil
	})
}

// confirm: caller waits for the caller's word.
func TestConfirmByCaller(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	w.vm("web-1", "red", "")
	acme := w.as("acme")
	s := must(acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "s", Vm: "web-1", Network: "blue", Confirm: "caller"}))(t)
	w.wait("it is there", func() error {
		s, err := acme.GetSwap(w.ctx, &pb.GetSwapRequest{Id: s.Id})
		if err == nil && s.Phase != "leased" && s.Phase != "published" {
			err = fmt.Errorf("%s", s.Phase)
		}
		return err
	})
	for range 2 {
		must(acme.ConfirmSwap(w.ctx, &pb.ConfirmSwapRequest{RequestId: "yes", Id: s.Id}))(t)
	}
	if s := w.swapDone(s.Id); !s.Ok {
		t.Errorf("swap %v", s)
	}
	_, err := acme.CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "no", Id: s.Id})
	code(t, "cancel what is committed", err, codes.FailedPrecondition, "committed")
}
