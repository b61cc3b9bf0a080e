package control

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

const hash = "$6$saltsalt$secretsecretsecret"

// largeVM makes a VM whose owner has much to say, secrets too.
func (w *world) largeVM(name, network string, kib int) {
	w.t.Helper()
	var files []*pb.File
	for i := range (kib + 15) / 16 {
		files = append(files, &pb.File{Path: fmt.Sprint("/srv/", i), Mode: 0o644, Content: strings.Repeat("x", 16<<10)})
	}
	must(w.as("olga").CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: id("vm", name), Tenant: "acme", Name: name, Type: "tiny", Network: network,
		Settings: &pb.Settings{User: "alice", PasswordHash: hash, Files: files}}))(w.t)
	w.inPhase(name, "ready")
}

// Swaps of VMs with long settings don't fill the store, and a server that finds it
// full leads all the same. Receipts keep nothing of the settings.
func TestManySwapsOfLongSettings(t *testing.T) {
	w := newWorld(t, nil)
	w.stop()
	w.quota = 20 << 20
	w.start()
	w.furnish()
	h := w.host("h7", 7)
	w.largeVM("web-1", "red", 150)
	const swaps = 14
	for i := range swaps {
		network := []string{"blue", "red"}[i%2]
		if s := w.swapped(&pb.StartSwapRequest{RequestId: fmt.Sprint("s", i), Vm: "web-1", Network: network, Confirm: "lease"}); !s.Ok {
			t.Fatalf("swap %d: %v", i, s)
		}
		if in, _ := h.intent("vm-1.0"); in.Current.Document.PasswordHash != hash {
			t.Fatalf("swap %d has lost the guest's settings: %+v", i, in.Current)
		}
	}
	h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
		if p.Undo {
			return vnet.StatusConfirmed
		}
		return vnet.StatusFlipped
	}})
	if s := w.swapped(&pb.StartSwapRequest{RequestId: "vain", Vm: "web-1", Network: "blue", LeaseBudget: durationpb.New(time.Millisecond)}); s.Phase != "undone" {
		t.Errorf("a swap that was not followed: %v", s)
	}
	h.behave(manners{})
	w.noSecretIn("receipt", store.Swaps)
	if in, _ := h.intent("vm-1.0"); in.Current.Document.PasswordHash != hash {
		t.Errorf("the guest has lost its settings: %+v", in.Current)
	}
	u := must(w.db.Usage(w.ctx))(t)
	t.Logf("after %d swaps with 160 KiB of settings: %d KiB, %d in use", swaps, u.Bytes>>10, u.InUse>>10)
	w.retire()
	raw, err := store.New(w.db.Client()), error(nil)
	for i := 0; err == nil && i < 100; i++ {
		_, err = raw.Commit(w.ctx, (&store.Txn{}).Put(store.Counters+"long", strings.Repeat("x", 1<<20)))
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("100 MiB fit into the store: %v", err)
	}
	w.restart()
	if s := w.swapped(&pb.StartSwapRequest{RequestId: "after", Vm: "web-1", Network: "blue", Confirm: "lease"}); !s.Ok {
		t.Errorf("a swap after the store was full: %v", s)
	}
}

// What changes nothing of a port writes nothing of it; asked again it is remembered.
func TestSetPortToWhatItIs(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	vm := w.vm("web-1", "red", "")
	key := store.IntentKey("h7", vm.Port.Name)
	set := func(n int, router bool) int64 {
		must(w.as("olga").SetPort(w.ctx, &pb.SetPortRequest{RequestId: fmt.Sprint("set", n), Name: vm.Port.Name, Router: &router}))(t)
		return must(store.Get[any](w.ctx, w.store, key))(t).Revision
	}
	first := set(0, true)
	if again := set(1, true); again != first {
		t.Errorf("the intent was written at %d, and again at %d for nothing", first, again)
	}
	if other := set(2, false); other == first {
		t.Error("a change was not written")
	}
	set(1, true) // the same request, late
	if must(w.as("olga").GetPort(w.ctx, &pb.GetPortRequest{Name: vm.Port.Name}))(t).Router {
		t.Error("a call that had nothing to do was made again, and undid a later one")
	}
}

// noSecretIn fails the test if a row under a prefix says the password's hash.
func (w *world) noSecretIn(what, prefix string) {
	w.t.Helper()
	r := must(w.db.Client().Get(w.ctx, prefix, clientv3.WithPrefix()))(w.t)
	for _, kv := range r.Kvs {
		if bytes.Contains(kv.Value, []byte("secretsecret")) {
			w.t.Errorf("the %s %s has the hash of the password", what, kv.Key)
		}
	}
}

// A change of networks reaches all ports, whatever their owners have said of them.
func TestRouteOfLongSettings(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	for i := range 9 {
		w.largeVM(fmt.Sprint("web-", i), "blue", 170)
	}
	w.vm("behind", "red", "")
	for _, network := range []string{"blue", "red"} {
		must(w.as("olga").AddRoute(w.ctx, &pb.AddRouteRequest{RequestId: network + "-route", Tenant: "acme", Moniker: network,
			Route: &pb.Route{Prefix: "192.0.2.0/24", NextHop: "10.17.34.9"}}))(t)
	}
	w.wait("the routes", func() error {
		for i := range 10 {
			if in, _ := h.intent(fmt.Sprintf("vm-%d.0", i+1)); len(in.Current.Routes) == 0 {
				return fmt.Errorf("port %s in %s has none", in.Port, in.Current.Network)
			}
		}
		return nil
	})
}
