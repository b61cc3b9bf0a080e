package control

import (
	"context"
	"errors"
	"time"

	"replug/control/compute"
	"replug/control/network"
	"replug/control/resource"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// composeDelete composes that a VM goes: its host is told, its swap is abandoned,
// nobody reaches it any more. The rows stay until the host has taken it down. The
// function it returns is to be called after the commit, however that ended.
func (r *reign) composeDelete(ctx context.Context, row store.Row[compute.VM], why string, txn *store.Txn) (func(), error) {
	vm := row.Value
	if vm.Phase != compute.Deleting {
		vm.Phase = compute.Deleting
		vm.Step("deleting", time.Now())
	}
	vm.Error = why
	if err := r.dropClaim(ctx, &vm, why, txn); err != nil {
		return nil, err
	}
	txn.Add(compute.Put(row, vm))
	return r.composeEnd(ctx, vm.Port, txn)
}

// dropClaim composes that a claim fails whose VM is deleted under it.
func (r *reign) dropClaim(ctx context.Context, vm *compute.VM, why string, txn *store.Txn) error {
	if vm.Claim == "" {
		return nil
	}
	row, err := r.tenants.GetClaim(ctx, vm.Claim)
	if errors.Is(err, resource.ErrNotFound) || err == nil && (row.Value.Done() || row.Value.VM != vm.ID) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.putClaim(ctx, row, row.Value.Fail("VM "+vm.ID+" was deleted: "+why, time.Now()), txn)
}

// composeEnd composes that a port's host takes it down, with its machine.
func (r *reign) composeEnd(ctx context.Context, port string, txn *store.Txn) (func(), error) {
	in, err := r.networks.GetIntent(ctx, port)
	if err != nil {
		return nil, err
	}
	rec, done, err := r.swaps.Abandon(ctx, port, "the port was deleted in mid-swap", txn)
	if err != nil {
		return done, err
	}
	gone := in.Value
	if rec == nil {
		unmap, err := r.networks.Unmap(ctx, port, &gone.Current)
		if err != nil {
			return done, err
		}
		txn.Add(unmap)
	} else {
		r.composeOther(rec, &gone, txn)
	}
	if err := r.composeLeave(ctx, port, &in.Value, rec, txn); err != nil {
		return done, err
	}
	gone.Gone, gone.Next = true, nil
	txn.Unchanged(in.Key, in.Revision).Put(in.Key, gone)
	return done, nil
}

// composeOther composes what becomes of the address that a port in mid-swap has
// beside the one of its current place.
func (r *reign) composeOther(rec *swap.Record, in *vnet.Intent, txn *store.Txn) {
	for _, p := range []*vnet.Place{&rec.Before, &rec.After} {
		for _, a := range p.Addrs {
			if p.VNI == in.Current.VNI && in.Current.Has(a.CA) {
				continue // rests once the host has taken the port down
			}
			txn.Add(r.networks.Retire(p.VNI, a.CA, in.Port))
		}
	}
}

// composeGone composes the end of a port that is taken down, and of its VM.
func (r *reign) composeGone(ctx context.Context, in store.Row[vnet.Intent], txn *store.Txn) error {
	port, err := r.networks.RemovePort(ctx, &in.Value)
	if err != nil {
		return err
	}
	txn.Unchanged(in.Key, in.Revision).Add(port).Delete(swap.EpochKey(in.Value.Port))
	if in.Value.VM == "" {
		return nil
	}
	row, err := r.vms.Get(ctx, in.Value.VM)
	if err != nil {
		return err
	}
	vm, err := r.vms.Remove(ctx, row)
	if err != nil {
		return err
	}
	disks, err := r.disks.Delete(ctx, in.Value.VM)
	txn.Add(vm, disks)
	return err
}

// endVM makes the host of a VM that is to be deleted know it.
func (r *reign) endVM(ctx context.Context, id string) error {
	var done func()
	err := r.retried(ctx, func() (*store.Txn, error) {
		row, err := r.vms.Get(ctx, id)
		if errors.Is(err, compute.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		in, err := r.networks.GetIntent(ctx, row.Value.Port)
		if err != nil || in.Value.Gone {
			return nil, ignoreMissing(err)
		}
		txn := (&store.Txn{}).Unchanged(row.Key, row.Revision)
		done, err = r.composeEnd(ctx, row.Value.Port, txn)
		return txn, err
	})
	if done != nil {
		done()
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, network.ErrNotFound) {
		return nil
	}
	return err
}
