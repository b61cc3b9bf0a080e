package control

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/control/storage"
	"replug/directory/store"
	"replug/directory/vnet"
)

type vmsAPI struct {
	pb.UnimplementedVMsServer
	s *Server
}

func (vmsAPI) CreateVM(ctx context.Context, q *pb.CreateVMRequest) (*pb.VM, error) {
	c := callerOf(ctx)
	tenant, err := c.owner(q.Tenant)
	if err != nil {
		return nil, err
	}
	m, err := monikerFrom(q.Network)
	if err != nil {
		return nil, err
	}
	cas, err := casFrom(q.Ip, q.Ips)
	if err != nil {
		return nil, err
	}
	if err := compute.CheckName("VM", q.Name); err != nil {
		return nil, err
	}
	settings, err := settingsFrom(q.Settings)
	if err != nil {
		return nil, err
	}
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	id, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		vm, err := c.composeVM(ctx, vmSpec{
			tenant: tenant, name: q.Name, typ: q.Type, network: m, cas: cas, groups: q.Groups, router: q.Router,
			settings: settings, host: q.Host, data: q.DataDisks,
		}, txn)
		return vm.ID, err
	})
	if err != nil {
		return nil, err
	}
	return c.vmView(ctx, id)
}

// vmView reads a VM as callers see it.
func (r *reign) vmView(ctx context.Context, id string) (*pb.VM, error) {
	row, err := r.vms.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	disks, err := r.disks.Of(ctx, id)
	if err != nil {
		return nil, err
	}
	port, err := r.portView(ctx, row.Value.Port)
	return fullVMTo(&row.Value, disks, port), ignoreMissing(err)
}

func (vmsAPI) GetVM(ctx context.Context, q *pb.GetVMRequest) (*pb.VM, error) {
	c := callerOf(ctx)
	row, err := c.findVM(ctx, q.Tenant, q.Name)
	if err != nil {
		return nil, err
	}
	return c.vmView(ctx, row.Value.ID)
}

// findVM reads a VM of the caller's by name or id.
func (c *caller) findVM(ctx context.Context, tenant, name string) (store.Row[compute.VM], error) {
	tenant, err := c.tenant(tenant)
	if err != nil {
		return store.Row[compute.VM]{}, err
	}
	return c.vms.Find(ctx, tenant, name)
}

func (vmsAPI) ListVMs(ctx context.Context, q *pb.ListVMsRequest) (*pb.ListVMsResponse, error) {
	c := callerOf(ctx)
	tenant, err := c.tenant(q.Tenant)
	if err != nil {
		return nil, err
	}
	rows, _, err := c.vms.List(ctx, tenant)
	if err != nil {
		return nil, err
	}
	ports, err := c.allPorts(ctx)
	if err != nil {
		return nil, err
	}
	disks, _, err := store.List[storage.Disk](ctx, c.store, store.Disks)
	of := make(map[string][]storage.Disk)
	for _, d := range disks {
		of[d.Value.VM] = append(of[d.Value.VM], d.Value)
	}
	r := &pb.ListVMsResponse{}
	for _, row := range rows {
		r.Vms = append(r.Vms, vmTo(&row.Value, of[row.Value.ID], ports[row.Value.Port]))
	}
	return r, err
}

func (vmsAPI) WatchVM(q *pb.GetVMRequest, ss grpc.ServerStreamingServer[pb.VM]) error {
	ctx := ss.Context()
	c := callerOf(ctx)
	row, err := c.findVM(ctx, q.Tenant, q.Name)
	if err != nil {
		return err
	}
	vm := row.Value
	read := func() (*pb.VM, bool, error) {
		v, err := c.vmView(ctx, vm.ID)
		return v, false, err
	}
	return watch(ctx, c, read, ss.Send, compute.Key(vm.ID), network.PortKey(vm.Port), store.IntentKey(vm.Host, vm.Port))
}

// watch sends what read returns, now and whenever one of the keys has changed and
// it has become different, until read says that it is the last, or the leadership
// ends.
func watch[T proto.Message](ctx context.Context, c *caller, read func() (T, bool, error), send func(T) error, keys ...string) error {
	l := c.s.feed.listen(append(keys, store.Leader)...)
	defer l.close()
	var last T
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ready:
			l.take()
		}
		if c.s.reign.Load() != c.reign {
			return c.s.standby()
		}
		v, final, err := read()
		if err != nil {
			return err
		}
		if first || !proto.Equal(v, last) {
			if err := send(v); err != nil {
				return err
			}
		}
		if final {
			return nil
		}
		last = v
	}
}

func (vmsAPI) SetPower(ctx context.Context, q *pb.SetPowerRequest) (*pb.VM, error) {
	c := callerOf(ctx)
	power := vnet.Power(q.Power)
	if power != vnet.PowerOn && power != vnet.PowerOff {
		return nil, fmt.Errorf("%w power %q: on or off", ErrInvalid, q.Power)
	}
	id, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		row, err := c.findVM(ctx, q.Tenant, q.Name)
		if err != nil {
			return "", err
		}
		return row.Value.ID, c.composePower(ctx, row, power, txn)
	})
	if err != nil {
		return nil, err
	}
	return c.vmView(ctx, id)
}

// composePower composes that a VM is to be on or off.
func (r *reign) composePower(ctx context.Context, row store.Row[compute.VM], power vnet.Power, txn *store.Txn) error {
	vm := row.Value
	if vm.Phase != compute.Ready && vm.Phase != compute.Stopped {
		return fmt.Errorf("VM %s: %w: it is %s; wait until it is ready", nameOf(&vm), ErrNotSo, vm.Phase)
	}
	if rec, ok := r.swaps.Of(vm.Port); ok {
		return fmt.Errorf("VM %s: %w: swap %s runs; wait for its end or cancel it", nameOf(&vm), ErrNotSo, rec.ID)
	}
	in, err := r.networks.GetIntent(ctx, vm.Port)
	if err != nil {
		return err
	}
	machine := *in.Value.Machine
	machine.Power, vm.Power = power, power
	in.Value.Machine = &machine
	vm.Step("power_"+string(power), time.Now())
	txn.Add(compute.Put(row, vm)).Unchanged(in.Key, in.Revision).Add(network.PutIntent(&in.Value))
	return nil
}

func (vmsAPI) DeleteVM(ctx context.Context, q *pb.DeleteVMRequest) (*pb.DeleteVMResponse, error) {
	c := callerOf(ctx)
	done := func() {}
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		row, err := c.findVM(ctx, q.Tenant, q.Name)
		if err != nil {
			return "", err
		}
		if row.Value.Phase != compute.Deleting {
			done, err = c.composeDelete(ctx, row, "", txn)
		}
		return row.Value.ID, err
	})
	if done != nil {
		done()
	}
	return &pb.DeleteVMResponse{}, err
}
