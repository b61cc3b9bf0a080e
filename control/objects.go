package control

import (
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
	if err := swappable(&vm, q.Confirm); err != nil {
		return nil, err
	}
	txn.Unchanged(row.Key, row.Revision)
	rec, err := o.reserve(ctx, q, vm.Tenant, vm.Port, txn)
	if err != nil {
		return nil, err
	}
	if q.Hostname != "" {
		vm.Settings.Hostname = q.Hostname
	}
	if err := compute.CheckSettings(&vm.Settings); err != nil {
		return nil, err
	}
	typ, err := o.r.vms.GetType(ctx, vm.Type)
	if err != nil {
		return nil, err
	}
	if err := o.routable(ctx, typ, vm.Tenant, q.Network); err != nil {
		return nil, err
	}
	rec.VM, rec.After.Document = vm.ID, vm.Document(false)
	orDefault(&rec.Confirm, vnet.ConfirmGuest)
	return rec, nil
}

// swappable returns why a VM can't be swapped now, or nil.
func swappable(vm *compute.VM, confirm vnet.Confirm) error {
	switch {
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

func (o objects) routable(ctx context.Context, t compute.Type, tenant string, m vnet.Moniker) error {
	net, err := o.r.networks.Get(ctx, tenant, m)
	if err != nil {
		return err
	}
	return routable(t, &net.Value)
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
	rec, err := o.reserve(ctx, q, port.Value.Tenant, q.Port, txn)
	if err == nil {
		orDefault(&rec.Confirm, vnet.ConfirmLease)
	}
	return rec, err
}

// reserve holds the new address of a port and computes its new place.
func (o objects) reserve(ctx context.Context, q swap.Request, tenant, port string, txn *store.Txn) (*swap.Record, error) {
	in, err := o.r.networks.GetIntent(ctx, port)
	if err != nil {
		return nil, err
	}
	if in.Value.Gone {
		return nil, fmt.Errorf("port %s: %w: it is being deleted", port, ErrNotSo)
	}
	net, err := o.r.networks.Get(ctx, tenant, q.Network)
	if err != nil {
		return nil, err
	}
	var want vnet.CA
	if q.CA != nil {
		want = *q.CA
	}
	cur := &in.Value.Current
	if cur.VNI == net.Value.VNI && (q.CA == nil || cur.Has(want)) {
		return nil, fmt.Errorf("port %s: %w: it is in network %s already, as %s; name another network or address", port, ErrNotSo, q.Network, addrsOf(cur))
	}
	host, err := store.Get[vnet.HostInfo](ctx, o.r.store, store.Hosts+in.Value.Host)
	if err != nil {
		return nil, err
	}
	if err := fits(&net.Value, &host.Value); err != nil {
		return nil, err
	}
	ca, take, err := o.r.networks.Take(ctx, net, want, network.Holder{Port: port, Claim: q.Claim, State: network.Held})
	if err != nil {
		return nil, err
	}
	txn.Add(take)
	return &swap.Record{
		Tenant: tenant, Port: port, Host: in.Value.Host, MAC: in.Value.MAC, PA: in.Value.PA,
		Confirm: q.Confirm, After: net.Value.Place(ca, 0),
	}, nil
}

func addrsOf(p *vnet.Place) string {
	s := ""
	for i, a := range p.Addrs {
		if i > 0 {
			s += ", "
		}
		s += a.CA.String()
	}
	return s
}

// Switch has nothing to add: load balancers' tables come with rules.
func (o objects) Switch(context.Context, *swap.Record, *store.Txn) error { return nil }

// Undo makes the old place anew from the network and the VM as they are now.
func (o objects) Undo(ctx context.Context, r *swap.Record, _ *store.Txn) (vnet.Place, error) {
	net, err := o.r.networks.Get(ctx, r.Before.Tenant, r.Before.Network)
	if err != nil {
		return vnet.Place{}, err
	}
	old, ok := r.Before.V4()
	if !ok {
		return vnet.Place{}, fmt.Errorf("port %s: its old place has no address: %w", r.Port, ErrMissing)
	}
	p := net.Value.Place(old.CA, 0)
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
	for _, a := range rec.Before.Addrs {
		txn.Add(o.r.networks.Retire(rec.Before.VNI, a.CA, rec.Port))
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
		vm.Guest, vm.Error = rec.Guest, ""
	}
	if vm.Phase == compute.Claimed {
		if err := o.associate(ctx, &vm, rec, txn); err != nil {
			return err
		}
	}
	txn.Add(compute.Put(row, vm))
	return nil
}

// Release lets the new place go: the address rests if the port was there.
func (o objects) Release(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	for _, a := range rec.After.Addrs {
		if rec.Back != nil {
			txn.Add(o.r.networks.Retire(rec.After.VNI, a.CA, rec.Port))
		} else {
			txn.Add(o.r.networks.Release(rec.After.VNI, a.CA))
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
