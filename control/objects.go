package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"replug/control/compute"
	"replug/control/network"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// objects composes into a swap's transactions what the managers own.
type objects struct{ r *reign }

// Reserve checks a swap and holds the new address. For a claim it makes the pooled
// VM the tenant's in the same transaction, so that no VM is handed out twice.
func (o objects) Reserve(ctx context.Context, q swap.Request, txn *store.Txn) (*swap.Record, error) {
	if err := o.r.mayAllocate(); err != nil {
		return nil, err
	}
	if c, ok := q.Settings.(claiming); ok {
		return o.reserveClaim(ctx, q, c, txn)
	}
	if q.Port != "" {
		return o.reservePort(ctx, q, txn)
	}
	row, err := o.r.vms.Find(ctx, q.Tenant, q.VM)
	if err != nil {
		return nil, err
	}
	vm := row.Value
	if err := swappable(&vm, cmp.Or(q.Confirm, vm.Confirm(false))); err != nil {
		return nil, err
	}
	txn.Unchanged(row.Key, row.Revision)
	if q.Hostname != "" {
		vm.Settings.Hostname = q.Hostname
	}
	if err := compute.CheckSettings(&vm.Settings); err != nil {
		return nil, err
	}
	rec, err := o.reserveVM(ctx, q, &vm, txn)
	if err != nil {
		return nil, err
	}
	rec.VM, rec.After.Document = vm.ID, vm.Document(false)
	orDefault(&rec.Confirm, vm.Confirm(false))
	return rec, nil
}

// swappable returns why a VM can't be swapped now, or nil.
func swappable(vm *compute.VM, confirm vnet.Confirm) error {
	switch {
	case confirm == vnet.ConfirmGuest && vm.Confirm(false) != vnet.ConfirmGuest:
		return fmt.Errorf("VM %s: %w: its image's personality is %q, so its guest reports on no later network; use confirm: lease or caller", nameOf(vm), ErrNotSo, vm.Personality)
	case vm.Phase == compute.Ready, vm.Phase == compute.Stopped && confirm == vnet.ConfirmLease:
		return nil
	case vm.Phase == compute.Stopped:
		return fmt.Errorf("VM %s: %w: it is off, so its guest can't confirm; start it, or swap it unproven with confirm: lease", nameOf(vm), ErrNotSo)
	}
	return fmt.Errorf("VM %s: %w: it is %s; wait until it is ready", nameOf(vm), ErrNotSo, vm.Phase)
}

func nameOf(vm *compute.VM) string {
	if vm.Name != "" {
		return vm.Name
	}
	return vm.ID
}

// reserveVM is reserve for a VM: its type says which families of addresses it has.
func (o objects) reserveVM(ctx context.Context, q swap.Request, vm *compute.VM, txn *store.Txn) (*swap.Record, error) {
	typ, err := o.r.vms.GetType(ctx, vm.Type)
	if err != nil {
		return nil, err
	}
	net, err := o.r.networks.Get(ctx, vm.Tenant, q.Network)
	if err != nil {
		return nil, err
	}
	families, err := routable(typ, &net.Value)
	if err != nil {
		return nil, err
	}
	return o.reserve(ctx, q, vm.Port, net, families, txn)
}

// reservePort is Reserve for a port whose VM is somebody else's.
func (o objects) reservePort(ctx context.Context, q swap.Request, txn *store.Txn) (*swap.Record, error) {
	port, err := o.r.networks.GetPort(ctx, q.Port)
	if err != nil || q.Tenant != "" && port.Value.Tenant != q.Tenant {
		return nil, fmt.Errorf("port %q: %w; list the ports there are", q.Port, network.ErrNotFound)
	}
	switch {
	case port.Value.VM != "":
		return nil, fmt.Errorf("port %q: %w: it is VM %s's; name the VM", q.Port, ErrInvalid, port.Value.VM)
	case q.Hostname != "":
		return nil, fmt.Errorf("port %q: %w: the host name of a VM that is not ours can't be changed", q.Port, ErrInvalid)
	case q.Confirm == vnet.ConfirmGuest:
		return nil, fmt.Errorf("port %q: %w: no guest agent of ours is behind it; use confirm: lease or caller", q.Port, ErrInvalid)
	}
	net, err := o.r.networks.Get(ctx, port.Value.Tenant, q.Network)
	if err != nil {
		return nil, err
	}
	// Nobody has said what its guest routes: it keeps the families it has, and gets
	// another one only if that is asked for.
	rec, err := o.reserve(ctx, q, q.Port, net, network.FamiliesOf(q.CAs), txn)
	if err == nil {
		orDefault(&rec.Confirm, vnet.ConfirmLease)
	}
	return rec, err
}

// reserve holds the new addresses of a port, of the families it has and those that
// are given, and computes its new place in net.
func (o objects) reserve(ctx context.Context, q swap.Request, port string, net store.Row[network.Network], families network.Families, txn *store.Txn) (*swap.Record, error) {
	in, err := o.r.networks.GetIntent(ctx, port)
	if err != nil {
		return nil, err
	}
	if in.Value.Gone {
		return nil, fmt.Errorf("port %s: %w: it is being deleted", port, ErrNotSo)
	}
	index, err := o.r.networks.GetPort(ctx, port)
	if err != nil {
		return nil, err
	}
	host, err := store.Get[vnet.HostInfo](ctx, o.r.store, store.Hosts+in.Value.Host)
	if err != nil {
		return nil, err
	}
	if err := fits(&net.Value, index.Value.MTU, &host.Value); err != nil {
		return nil, err
	}
	cas, take, err := o.take(ctx, q, &in.Value, net, families)
	if err != nil {
		return nil, err
	}
	place := net.Value.Place(index.Value, cas, 0)
	groups := q.Groups
	if groups == nil && place.VNI == in.Value.Current.VNI {
		groups = in.Value.Current.Groups
	}
	if place.Groups, place.Slots, err = o.r.resolve(ctx, &net.Value, groups, txn); err != nil {
		return nil, err
	}
	if err := o.checkServices(ctx, &net.Value, q.Services, cas); err != nil {
		return nil, err
	}
	if err := network.CheckMTU(index.Value.MTU, network.FamiliesOf(cas)); err != nil {
		return nil, fmt.Errorf("port %s: %w", port, err)
	}
	txn.Add(take)
	return &swap.Record{
		Tenant: net.Value.Tenant, Port: port, Host: in.Value.Host, MAC: in.Value.MAC, PA: in.Value.PA,
		Confirm: q.Confirm, After: place,
	}, nil
}

// Undo makes the old place anew from the network, the port and the VM as they are
// now. Its groups are those of before: none of them can have been deleted.
func (o objects) Undo(ctx context.Context, r *swap.Record, txn *store.Txn) (vnet.Place, error) {
	if err := o.leaveNew(ctx, r, txn); err != nil {
		return vnet.Place{}, err
	}
	net, err := o.r.networks.Get(ctx, r.Before.Tenant, r.Before.Network)
	if err != nil {
		return vnet.Place{}, err
	}
	port, err := o.r.networks.GetPort(ctx, r.Port)
	if err != nil {
		return vnet.Place{}, err
	}
	p := net.Value.Place(port.Value, network.CAsOf(&r.Before), 0)
	p.Groups, p.Slots = r.Before.Groups, r.Before.Slots
	if r.VM == "" {
		return p, nil
	}
	vm, err := o.r.vms.Get(ctx, r.VM)
	if err != nil {
		return p, err
	}
	p.Document = vm.Value.Document(r.Before.Document != nil && r.Before.Document.Partial())
	return p, nil
}

// Settle makes the new place the port's own and lets the old address rest. It
// makes VM, disks and port the tenant's (S51, S53, S56), or, when a claimed guest
// has failed, has the VM destroyed and the claim served again.
func (o objects) Settle(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	for _, a := range rec.After.Addrs {
		if rec.Phase == swap.Committed {
			txn.Add(o.r.networks.Use(rec.After.VNI, a.CA, rec.Port))
		} else {
			txn.Add(o.r.networks.Yield(rec.After.VNI, a.CA, rec.Port, rec.Claim))
		}
	}
	for _, ca := range only(&rec.Before, &rec.After) {
		txn.Add(o.r.networks.Retire(rec.Before.VNI, ca, rec.Port))
	}
	if rec.VM == "" {
		return nil
	}
	row, err := o.r.vms.Get(ctx, rec.VM)
	if err != nil {
		return err
	}
	if rec.Phase != swap.Committed {
		return o.destroy(ctx, row, rec, txn)
	}
	vm := row.Value
	if rec.After.Document != nil {
		vm.Settings.Hostname = rec.After.Document.Hostname
	}
	if rec.Guest != nil {
		vm.Guest, vm.Error = rec.Guest, compute.Complaint(rec.Guest)
	}
	if vm.Phase == compute.Claimed {
		if err := o.associate(ctx, &vm, rec, txn); err != nil {
			return err
		}
	}
	txn.Add(compute.Put(row, vm))
	return nil
}

// Release lets the new place go: the address rests if the port was there, and it is
// what it was in its old network.
func (o objects) Release(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	for _, ca := range only(&rec.After, &rec.Before) {
		if rec.Back != nil {
			txn.Add(o.r.networks.Retire(rec.After.VNI, ca, rec.Port))
			continue
		}
		free, err := o.r.networks.Release(ctx, rec.After.VNI, ca)
		if err != nil {
			return err
		}
		txn.Add(free)
	}
	if rec.Back != nil && rec.Phase == swap.Undone {
		if err := o.rejoin(ctx, rec, txn); err != nil {
			return err
		}
	}
	if rec.Claim == "" {
		return nil
	}
	row, err := o.r.vms.Get(ctx, rec.VM)
	if errors.Is(err, compute.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return o.destroy(ctx, row, rec, txn)
}
