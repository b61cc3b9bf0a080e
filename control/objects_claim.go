package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replug/control/compute"
	"replug/control/resource"
	"replug/control/swap"
	"replug/directory/store"
)

// reserveClaim is Reserve for a pooled VM that a tenant claims.
func (o objects) reserveClaim(ctx context.Context, q swap.Request, c claiming, txn *store.Txn) (*swap.Record, error) {
	claim, err := o.r.tenants.GetClaim(ctx, c.claim)
	if err != nil {
		return nil, err
	}
	row, err := o.r.vms.Get(ctx, c.vm)
	if err != nil || row.Value.Phase != compute.Pooled || claim.Value.Phase != resource.Accepted {
		return nil, fmt.Errorf("VM %s: %w", c.vm, errNotPooled)
	}
	now, vm := time.Now(), row.Value
	vm.Phase, vm.Tenant, vm.Name, vm.Claim = compute.Claimed, claim.Value.Tenant, claim.Value.Name, c.claim
	vm.Settings, vm.Ready = claim.Value.Settings, time.Time{}
	orDefault(&vm.Settings.Hostname, vm.Name)
	vm.Step("claimed", now)
	name, err := o.r.vms.TakeName(ctx, &vm)
	if err != nil {
		return nil, err
	}
	rec, err := o.reserveVM(ctx, q, &vm, txn)
	if err != nil {
		return nil, err
	}
	txn.Add(compute.Put(row, vm), name)
	if err := o.r.putClaim(ctx, claim, claim.Value.Take(vm.ID, unconfirmed(&vm), now), txn); err != nil {
		return nil, err
	}
	rec.VM, rec.After.Document, rec.Confirm = vm.ID, vm.Document(false), vm.Confirm(true)
	return rec, nil
}

// unconfirmed says on a claim what nobody will say of its guest, or "".
func unconfirmed(vm *compute.VM) string {
	if vm.Personality.Reports() {
		return ""
	}
	return fmt.Sprintf("the image's personality is %q: its lease and its traffic are the proof, whether it has taken its settings is not known", vm.Personality)
}

// associate composes that a claimed VM is the tenant's for good.
func (o objects) associate(ctx context.Context, vm *compute.VM, rec *swap.Record, txn *store.Txn) error {
	now := time.Now()
	vm.Phase, vm.Ready = compute.Ready, now
	for _, s := range rec.Timeline {
		vm.Timeline = append(vm.Timeline, compute.Hop{Name: s.Name, At: s.At, By: s.By})
	}
	port, err := o.r.networks.GetPort(ctx, rec.Port)
	if err != nil {
		return err
	}
	owned := port.Value
	owned.Tenant = vm.Tenant
	_, disks, err := o.r.disks.Associate(ctx, vm.ID, vm.Tenant, nil)
	if err != nil {
		return err
	}
	txn.Unchanged(port.Key, port.Revision).Put(port.Key, owned).Add(disks)
	claim, err := o.r.tenants.GetClaim(ctx, vm.Claim)
	if err != nil {
		return err
	}
	c := claim.Value
	c.Swap = rec.ID
	return o.r.putClaim(ctx, claim, c.Succeed(now), txn)
}

// destroy composes that the VM of a failed claim is deleted and the claim served
// by another one: nobody knows what the guest has taken in.
func (o objects) destroy(ctx context.Context, row store.Row[compute.VM], rec *swap.Record, txn *store.Txn) error {
	vm := row.Value
	vm.Phase, vm.Error = compute.Deleting, rec.Error
	txn.Add(compute.Put(row, vm)).Delete(compute.NameKey(vm.Tenant, vm.Name))
	claim, err := o.r.tenants.GetClaim(ctx, rec.Claim)
	if errors.Is(err, resource.ErrNotFound) || err == nil && claim.Value.Done() {
		return nil
	}
	if err != nil {
		return err
	}
	return o.r.putClaim(ctx, claim, claim.Value.Again(rec.Error, time.Now()), txn)
}
