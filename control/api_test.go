package control

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "replug/control/controlpb"
)

// furnish makes tenant acme with two networks of the same range, and a type.
func (w *world) furnish() {
	w.t.Helper()
	op := w.as("olga")
	must(op.CreateTenant(w.ctx, &pb.CreateTenantRequest{RequestId: "t", Name: "acme"}))(w.t)
	for _, m := range []string{"red", "blue"} {
		must(op.CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: m, Network: &pb.Network{
			Moniker: m, Tenant: "acme", Subnets: []*pb.Subnet{{Prefix: "10.17.34.0/24"}}, Dns: []string{"10.17.34.53"},
		}}))(w.t)
	}
	must(op.CreateVMType(w.ctx, &pb.CreateVMTypeRequest{RequestId: "type", Type: &pb.VMType{
		Name: "tiny", Cpus: 1, MemoryMib: 64, Image: "small",
	}}))(w.t)
}

// vm makes a VM of acme from scratch and waits until it is ready.
func (w *world) vm(name, network, ip string) *pb.VM {
	w.t.Helper()
	op := w.as("olga")
	must(op.CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: id("vm", name), Tenant: "acme", Name: name, Type: "tiny", Network: network, Ip: ip}))(w.t)
	return w.inPhase(name, "ready")
}

func (w *world) inPhase(name, phase string) *pb.VM {
	w.t.Helper()
	op := w.as("olga")
	var vm *pb.VM
	w.wait(name+" "+phase, func() (err error) {
		if vm, err = op.GetVM(w.ctx, &pb.GetVMRequest{Tenant: "acme", Name: name}); err == nil && vm.Phase != phase {
			err = fmt.Errorf("is %s: %s", vm.Phase, vm.Error)
		}
		return err
	})
	return vm
}

// S15, S35: a VM from scratch gets a MAC and a physical address, is mapped, and is
// ready when its guest reports final success.
func TestCreateVM(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	vm := w.vm("web-1", "red", "10.17.34.51")
	in, ok := h.intent(vm.Port.Name)
	if !ok || in.Machine == nil || in.Machine.Image != "small" || in.Current.Document.Hostname != "web-1" || in.Current.Document.Partial() {
		t.Fatalf("intent %+v, document %+v", in, in.Current.Document)
	}
	if vm.Port.Addrs[0] != "10.17.34.51/24" || vm.Port.Pa != in.PA.String() || vm.Port.Status != "confirmed" || vm.Host != "h7" {
		t.Errorf("port %v", vm.Port)
	}
	if vm.Guest.BootId != "boot-of-"+vm.Id || vm.Ready == nil || len(vm.Disks) != 1 || !vm.Disks[0].Os {
		t.Errorf("VM %v", vm)
	}
	next := w.vm("web-2", "red", "")
	if next.Port.Addrs[0] != "10.17.34.2/24" || next.Port.Mac == vm.Port.Mac || next.Port.Pa == vm.Port.Pa || next.Port.Id == vm.Port.Id {
		t.Errorf("next free: %v after %v", next.Port, vm.Port)
	}
}

// Invariant 4: the same id gives the same answer and one object, at the same time
// too; with other content it is refused.
func TestIdempotency(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	op := w.as("olga")
	q := &pb.CreateVMRequest{RequestId: "only-once", Tenant: "acme", Name: "web-1", Type: "tiny", Network: "red"}
	ids := make([]string, 9)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			vm, err := op.CreateVM(w.ctx, q)
			if err != nil {
				t.Errorf("duplicate %d: %v", i, err)
				return
			}
			ids[i] = vm.Id
		})
	}
	all.Wait()
	for _, got := range ids {
		if got != ids[0] {
			t.Errorf("duplicates led to %v", ids)
			break
		}
	}
	vms := must(op.ListVMs(w.ctx, &pb.ListVMsRequest{}))(t)
	if len(vms.Vms) != 1 {
		t.Errorf("%d VMs", len(vms.Vms))
	}
	other := proto.Clone(q).(*pb.CreateVMRequest)
	other.Name = "web-2"
	_, err := op.CreateVM(w.ctx, other)
	code(t, "same id, other content", err, codes.AlreadyExists, "only-once")
	_, err = op.CreateTenant(w.ctx, &pb.CreateTenantRequest{RequestId: "only-once", Name: "web-1"})
	code(t, "same id, other call", err, codes.AlreadyExists)
	w.restart()
	vm, err := w.as("olga").CreateVM(w.ctx, q)
	if err != nil || vm.Id != ids[0] {
		t.Errorf("after a restart: %v, %v; want %s", vm.GetId(), err, ids[0])
	}
	// Another caller's id of the same name is another id.
	must(w.as("acme").CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: "only-once", Network: &pb.Network{
		Moniker: "green", Subnets: []*pb.Subnet{{Prefix: "10.91.0.0/16"}}}}))(t)
}

// A tenant sees and changes its own; a host nothing at all.
func TestTenantIsolation(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	must(w.as("olga").CreateTenant(w.ctx, &pb.CreateTenantRequest{RequestId: "t2", Name: "umbra"}))(t)
	vm := w.vm("web-1", "red", "")
	acme, umbra, host := w.as("acme"), w.as("umbra"), w.as("h9")
	if got := must(acme.GetVM(w.ctx, &pb.GetVMRequest{Name: "web-1"}))(t); got.Id != vm.Id {
		t.Errorf("acme sees %v", got)
	}
	before := w.rows()
	for _, c := range []struct {
		name string
		want codes.Code
		call func() error
	}{
		{"umbra reads acme's VM by id", codes.NotFound, func() error { _, err := umbra.GetVM(w.ctx, &pb.GetVMRequest{Name: vm.Id}); return err }},
		{"umbra reads acme's VM as acme", codes.PermissionDenied, func() error {
			_, err := umbra.GetVM(w.ctx, &pb.GetVMRequest{Tenant: "acme", Name: "web-1"})
			return err
		}},
		{"umbra deletes acme's VM", codes.NotFound, func() error {
			_, err := umbra.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "x", Name: vm.Id})
			return err
		}},
		{"umbra swaps acme's VM", codes.NotFound, func() error {
			_, err := umbra.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "x", Vm: vm.Id, Network: "red"})
			return err
		}},
		{"umbra swaps acme's port", codes.NotFound, func() error {
			_, err := umbra.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "x", Port: vm.Port.Name, Network: "red"})
			return err
		}},
		{"umbra reads acme's network", codes.NotFound, func() error {
			_, err := umbra.GetNetwork(w.ctx, &pb.GetNetworkRequest{Moniker: "red"})
			return err
		}},
		{"umbra reads acme's port", codes.NotFound, func() error { _, err := umbra.GetPort(w.ctx, &pb.GetPortRequest{Name: vm.Port.Name}); return err }},
		{"a tenant makes a tenant", codes.PermissionDenied, func() error {
			_, err := umbra.CreateTenant(w.ctx, &pb.CreateTenantRequest{RequestId: "x", Name: "evil"})
			return err
		}},
		{"a tenant sets a pool", codes.PermissionDenied, func() error {
			_, err := umbra.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "x", Type: "tiny", Size: new(int32(3))})
			return err
		}},
		{"a tenant lists hosts", codes.PermissionDenied, func() error { _, err := umbra.ListHosts(w.ctx, &pb.ListHostsRequest{}); return err }},
		{"a tenant takes a backup", codes.PermissionDenied, func() error {
			s, err := umbra.Backup(w.ctx, &pb.BackupRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}},
		{"a host lists VMs", codes.PermissionDenied, func() error { _, err := host.ListVMs(w.ctx, &pb.ListVMsRequest{}); return err }},
	} {
		code(t, c.name, c.call(), c.want)
	}
	if got := must(umbra.ListVMs(w.ctx, &pb.ListVMsRequest{}))(t); len(got.Vms) != 0 {
		t.Errorf("umbra lists %v", got.Vms)
	}
	if got := must(umbra.ListTenants(w.ctx, &pb.ListTenantsRequest{}))(t); len(got.Tenants) != 1 || got.Tenants[0].Name != "umbra" {
		t.Errorf("umbra sees tenants %v", got.Tenants)
	}
	if d := differ(before, w.rows()); d != "" {
		t.Errorf("refused calls changed rows:\n%s", d)
	}
}

// Power is followed by the VM's phase, and a VM that is gone leaves nothing.
func TestPowerAndDelete(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	before := w.rows()
	w.vm("web-1", "red", "")
	op := w.as("olga")
	stream := must(op.WatchVM(w.ctx, &pb.GetVMRequest{Tenant: "acme", Name: "web-1"}))(t)
	// The stream tells the newest state, not each one: it is read as the VM changes.
	watched := func(phase string) {
		for vm := must(stream.Recv())(t); vm.Phase != phase; vm = must(stream.Recv())(t) {
		}
	}
	watched("ready")
	must(op.SetPower(w.ctx, &pb.SetPowerRequest{RequestId: "off", Tenant: "acme", Name: "web-1", Power: "off"}))(t)
	watched("stopped")
	_, err := op.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "s", Tenant: "acme", Vm: "web-1", Network: "blue"})
	code(t, "swap of a VM that is off", err, codes.FailedPrecondition, "off", "lease")
	must(op.SetPower(w.ctx, &pb.SetPowerRequest{RequestId: "on", Tenant: "acme", Name: "web-1", Power: "on"}))(t)
	watched("ready")
	must(op.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "del", Tenant: "acme", Name: "web-1"}))(t)
	must(op.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "del", Tenant: "acme", Name: "web-1"}))(t)
	for {
		vm, err := stream.Recv()
		if err != nil {
			code(t, "watching a VM until it is gone", err, codes.NotFound)
			break
		}
		if vm.Phase != "ready" && vm.Phase != "deleting" {
			t.Errorf("watched %q as it was deleted", vm.Phase)
		}
	}
	w.wait("no rows left but the resting address", func() error { return onlyResting(before, w.rows()) })
}

// onlyResting returns an error unless after has before's rows and resting CAs.
func onlyResting(before, after map[string]string) error {
	rest := make(map[string]string)
	for k, v := range after {
		if !under(k, "/replug/cas/", "/replug/slots/") { // a network's next group gets another slot
			rest[k] = v
		}
	}
	if d := differ(before, rest); d != "" {
		return errors.New(d)
	}
	return nil
}

func TestBackupStreams(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	s := must(w.as("olga").Backup(w.ctx, &pb.BackupRequest{}))(t)
	size := 0
	for {
		c, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		size += len(c.Data)
	}
	if size < 500 {
		t.Errorf("the backup has %d bytes", size)
	}
}
