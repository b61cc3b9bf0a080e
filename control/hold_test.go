package control

import (
	"fmt"
	"testing"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
)

// A pool may hold its VMs as saved states: they use no memory until one is claimed,
// and what is claimed stays awake. A host without the memory to wake one is passed over.
func TestPoolHolds(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	op := w.as("olga")
	info := hostInfo("h7", 7)
	info.Memory = 150 // of VMs of 64 each
	h := w.hostOf(info, 3)
	if _, err := op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "bad", Type: "tiny", Size: new(int32(3)), Hold: "frozen"}); err == nil {
		t.Error("frozen is a way to wait")
	}
	p := must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "p", Type: "tiny", Size: new(int32(3)), Hold: "snapshot"}))(t)
	if p.Hold != "snapshot" {
		t.Errorf("pool %v", p)
	}
	w.ready(3)
	used := func() int32 { return must(op.ListHosts(w.ctx, &pb.ListHostsRequest{}))(t).Hosts[0].MemoryUsedMib }
	if n := used(); n != 0 {
		t.Errorf("three that rest use %d MiB", n)
	}
	must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "fewer", Type: "tiny", Size: new(int32(1))}))(t)
	w.ready(1)
	w.wait("the room of those that go", func() error { // theirs until their host says that they are gone
		if n := used(); n != 0 {
			return fmt.Errorf("%d MiB", n)
		}
		return nil
	})
	claim := w.claimed("web-1", "red", "10.17.34.51")
	if claim.View.GetPort() == nil {
		t.Fatalf("claim %v", claim)
	}
	in, _ := h.intent(claim.View.Port.Name)
	if claim.Source != "pool" || in.Current.Hold != "" {
		t.Errorf("claim %v, holds %q", claim, in.Current.Hold)
	}
	slept := false
	h.mu.Lock()
	for _, i := range h.seen {
		slept = slept || i.Port == in.Port && i.Current.Hold == vnet.HoldSnapshot && i.Current.Document.Partial()
	}
	h.mu.Unlock()
	if !slept {
		t.Error("in the pool its host was not told to hold it")
	}
	w.ready(1)
	w.vm("full-1", "red", "10.17.34.52") // 128 MiB are used, 22 left
	claim = w.claimed("web-2", "red", "10.17.34.53")
	if claim.Phase != "failed" {
		t.Errorf("a host of 150 MiB woke a third VM of 64: %v", claim)
	}
}
