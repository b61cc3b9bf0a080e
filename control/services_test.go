package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

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
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "g", Network: "red", Service: "web", Backend: &pb.Backend{Member: "web-2", Weight: &zero, Draining: new(true)}}))(t)
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "g2", Network: "red", Service: "web", Backend: &pb.Backend{Member: "web-1", Draining: new(true)}}))(t)
	if got := w.behind("red", "web"); got != "web-1 10.17.34.2:8443/70, web-2 10.17.34.3:8443/0" {
		t.Errorf("drained: %s", got)
	}
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "g3", Network: "red", Service: "web", Backend: &pb.Backend{Member: "web-2", Port: 8443}}))(t)
	must(acme.RemoveBackend(w.ctx, &pb.RemoveBackendRequest{RequestId: "h", Network: "red", Service: "web", Member: "web-1"}))(t)
	_, err := acme.SetService(w.ctx, &pb.SetServiceRequest{RequestId: "i", Network: "red", Name: "web", Check: &pb.Check{}, NoCheck: true})
	code(t, "a check and none", err, codes.InvalidArgument, "one of them")
	must(acme.SetService(w.ctx, &pb.SetServiceRequest{RequestId: "i2", Network: "red", Name: "web", Check: &pb.Check{Port: new(uint32(7070))}}))(t)
	set := must(acme.SetService(w.ctx, &pb.SetServiceRequest{RequestId: "i3", Network: "red", Name: "web", Affinity: new(true)}))(t)
	if got := w.behind("red", "web"); got != "web-2 10.17.34.3:8443/0" || !set.Backends[0].GetDraining() || !set.Affinity || set.Check.GetPort() != 7070 || set.Check.Interval.AsDuration() != 5*time.Second || set.Check.GetFall() != 3 {
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

	w.wait("the guest's report is written", func() error { // which comes after the undo's end
		vm, err := store.Get[compute.VM](w.ctx, w.store, store.VMs+"vm-1")
		if err != nil {
			return err
		}
		if at := w.stored("vm-1.0").Current.Epoch; vm.Value.Guest == nil || vm.Value.Guest.Epoch != at {
			return fmt.Errorf("report %+v, epoch %s", vm.Value.Guest, at)
		}
		return nil
	})
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

// A port stands behind so many services that one transaction still takes it out of
// all of them.
func TestServicesOfOnePort(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	acme := w.as("acme")
	vm := w.vm("web-1", "red", "")
	txn := &store.Txn{}
	for i := range maxSeats {
		s := vnet.Service{VNI: vnet.VNI(vm.Port.Vni), Name: fmt.Sprint("s", i), VIP: vnet.CA{Addr: netip.MustParseAddr("10.17.34.200")}, Port: uint16(1000 + i), Protocol: vnet.TCP}
		s.Backends = []vnet.Backend{{Member: vm.Port.Name, CA: vnet.CA{Addr: netip.MustParseAddr("10.17.34.2")}, Port: 80, Weight: 100}}
		txn.Put(store.ServiceKey(s.VNI, s.Name), s)
	}
	must(w.store.Commit(w.ctx, txn))(t)
	one := []*pb.Backend{{Member: "web-1"}}
	more := &pb.Service{Name: "more", Network: "red", Ip: "10.17.34.201", Port: 443, Protocol: "tcp", Backends: one}
	_, err := acme.CreateService(w.ctx, &pb.CreateServiceRequest{RequestId: "a", Service: more})
	code(t, "a new service", err, codes.ResourceExhausted, "web-1", "64 services", "remove it")
	more.Backends = nil
	must(acme.CreateService(w.ctx, &pb.CreateServiceRequest{RequestId: "b", Service: more}))(t)
	_, err = acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "c", Network: "red", Service: "more", Backend: one[0]})
	code(t, "one more", err, codes.ResourceExhausted, "web-1", "64 services", "remove it")
	must(acme.SetBackend(w.ctx, &pb.SetBackendRequest{RequestId: "d", Network: "red", Service: "s7", Backend: &pb.Backend{Member: "web-1", Port: 81}}))(t)
	_, err = acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "e", Vm: "web-1", Network: "blue", Services: slices.Repeat([]string{"web"}, maxSeats+1)})
	code(t, "a swap into more", err, codes.InvalidArgument, "65 services", "64")
	if s := w.swapped(&pb.StartSwapRequest{RequestId: "f", Vm: "web-1", Network: "red", Ip: "10.17.34.77", Services: []string{"more"}}); s.Phase != "undone" || !strings.Contains(s.Error, "65 services") {
		t.Errorf("a swap that would join one more: %v", s)
	}
	if s := w.swapped(&pb.StartSwapRequest{Vm: "web-1", Network: "blue"}); !s.Ok || len(s.Before.Services) != maxSeats {
		t.Errorf("swap %v", s)
	}
	code(t, "too much at once", onWire(fmt.Errorf("commit: %w", store.ErrTooLarge)), codes.ResourceExhausted, "--max-txn-ops")
}
