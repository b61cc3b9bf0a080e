package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"replug/control/compute"
	"replug/control/network"
	"replug/control/resource"
	"replug/control/storage"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A vmSpec is what a new VM is to be.
type vmSpec struct {
	tenant   string
	name     string // "" of a pooled one
	typ      string
	network  vnet.Moniker
	ca       vnet.CA // zero: the next free one
	settings vnet.Document
	host     string // "": the one with most room
	data     []int64
	claim    string
	pool     bool
}

// composeVM composes a VM from scratch: its row, name, disks, port and intent.
func (r *reign) composeVM(ctx context.Context, s vmSpec, txn *store.Txn) (compute.VM, error) {
	if err := r.mayAllocate(); err != nil {
		return compute.VM{}, err
	}
	if err := compute.CheckSettings(&s.settings); err != nil {
		return compute.VM{}, err
	}
	typ, err := r.vms.GetType(ctx, s.typ)
	if err != nil {
		return compute.VM{}, err
	}
	net, err := r.networks.Get(ctx, s.tenant, s.network)
	if err != nil {
		return compute.VM{}, err
	}
	if err := routable(typ, &net.Value); err != nil {
		return compute.VM{}, err
	}
	host, err := r.choose(ctx, typ, s)
	if err != nil {
		return compute.VM{}, err
	}
	vm, vmTxn, err := r.vms.Create(ctx, compute.VM{
		Name: s.name, Tenant: s.tenant, Host: host.Name, Pool: s.pool, Claim: s.claim, Settings: s.settings,
	}, typ)
	if err != nil {
		return vm, err
	}
	txn.Add(vmTxn)
	return vm, r.composeParts(ctx, &vm, typ, net, host, s, txn)
}

// composeParts composes what belongs to a VM's row: name, disks, port, intent.
func (r *reign) composeParts(ctx context.Context, vm *compute.VM, typ compute.Type, net store.Row[network.Network],
	host vnet.HostInfo, s vmSpec, txn *store.Txn) error {
	if vm.Name != "" {
		name, err := r.vms.TakeName(ctx, vm)
		if err != nil {
			return err
		}
		txn.Add(name)
	}
	disks, diskTxn, err := r.disks.Create(vm.ID, vm.Tenant, typ.Disk, s.data)
	if err != nil {
		return err
	}
	in, portTxn, err := r.networks.NewPort(ctx, network.PortRequest{
		Port:    network.Port{Name: vm.Port, Tenant: vm.Tenant, VM: vm.ID},
		Network: net, CA: s.ca, Host: host, Claim: s.claim,
	})
	if err != nil {
		return err
	}
	in.Machine = vm.Machine(storage.Machine(disks))
	in.Current.Confirm = vnet.ConfirmGuest
	in.Current.Document = vm.Document(s.pool)
	in.Current.Document.Epoch = in.Current.Epoch
	txn.Add(diskTxn, portTxn, network.PutIntent(&in))
	return nil
}

// routable returns an error when a network doesn't offer the routing family that
// is part of the type: a swap must not change it silently.
func routable(t compute.Type, n *network.Network) error {
	if t.Routing != "ipv4" {
		return fmt.Errorf("VM type %q routes %s, but network %q has IPv4 only: %w; choose a type with routing ipv4", t.Name, t.Routing, n.Moniker, ErrNotSo)
	}
	return nil
}

// choose returns the host for a VM.
func (r *reign) choose(ctx context.Context, t compute.Type, s vmSpec) (vnet.HostInfo, error) {
	var candidates []compute.Candidate
	booting, err := r.bootingOf(ctx, s.pool)
	if err != nil {
		return vnet.HostInfo{}, err
	}
	full := 0
	for _, h := range r.s.up.all() {
		if booting[h.Name] >= r.cfg.BootsPerHost {
			full++
			continue
		}
		ports, _, err := store.List[string](ctx, r.store, store.PortIDs+h.Name+"/")
		if err != nil {
			return vnet.HostInfo{}, err
		}
		candidates = append(candidates, compute.Candidate{HostInfo: h, FreePorts: network.Capacity(h) - len(ports)})
	}
	best, err := r.vms.Choose(ctx, t, s.host, candidates)
	if err != nil && full > 0 {
		return vnet.HostInfo{}, errBusy
	}
	return best.HostInfo, err
}

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

// observeVM composes what a status changes of a VM and of the claim it is for.
func (r *reign) observeVM(ctx context.Context, in store.Row[vnet.Intent], s vnet.Status, txn *store.Txn) error {
	row, err := r.vms.Get(ctx, in.Value.VM)
	if err != nil {
		return err
	}
	now := time.Now()
	vm, changed := compute.Observe(row.Value, &in.Value, s, now)
	if !changed {
		return nil
	}
	return r.composeObserved(ctx, row, vm, txn)
}

// composeObserved composes a VM's change, and what it means for a claim from scratch.
func (r *reign) composeObserved(ctx context.Context, row store.Row[compute.VM], vm compute.VM, txn *store.Txn) error {
	if vm.Claim == "" || vm.Phase == row.Value.Phase {
		txn.Add(compute.Put(row, vm))
		return nil
	}
	claim, err := r.tenants.GetClaim(ctx, vm.Claim)
	if err != nil && !errors.Is(err, resource.ErrNotFound) {
		return err
	}
	if c := claim.Value; err == nil && c.Phase == resource.Creating && c.VM == vm.ID {
		next := c
		switch vm.Phase {
		case compute.Ready:
			next = c.Succeed(time.Now())
		case compute.Failed:
			vm.Phase = compute.Deleting
			next = c.Again(vm.Error, time.Now())
			if err := r.composeYield(ctx, &vm, txn); err != nil {
				return err
			}
		}
		if err := r.putClaim(ctx, claim, next, txn); err != nil {
			return err
		}
	}
	txn.Add(compute.Put(row, vm))
	return nil
}

// composeYield composes that a VM which is destroyed leaves its name and address to
// the VM that serves its claim next.
func (r *reign) composeYield(ctx context.Context, vm *compute.VM, txn *store.Txn) error {
	in, err := r.networks.GetIntent(ctx, vm.Port)
	if err != nil {
		return err
	}
	txn.Delete(compute.NameKey(vm.Tenant, vm.Name))
	for _, a := range in.Value.Current.Addrs {
		txn.Add(r.networks.Yield(in.Value.Current.VNI, a.CA, vm.Port, vm.Claim))
	}
	return nil
}

// tidyVMs ends VMs that are to be deleted, and fails those that take too long.
func (r *reign) tidyVMs(ctx context.Context, _ []string, _ bool) (time.Time, error) {
	rows, _, err := r.vms.List(ctx, "")
	if err != nil {
		return time.Time{}, err
	}
	var next time.Time
	for _, row := range rows {
		left, booting := compute.Overdue(&row.Value, r.cfg.BootBudget, time.Now())
		switch {
		case row.Value.Phase == compute.Deleting:
			err = errors.Join(err, r.endVM(ctx, row.Value.ID))
		case booting && left <= 0:
			err = errors.Join(err, r.failBoot(ctx, row.Value.ID))
		case booting && (next.IsZero() || time.Now().Add(left).Before(next)):
			next = time.Now().Add(left)
		}
	}
	return next, err
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

func (r *reign) failBoot(ctx context.Context, id string) error {
	return r.retried(ctx, func() (*store.Txn, error) {
		row, err := r.vms.Get(ctx, id)
		if err != nil || row.Value.Phase != compute.Creating {
			return nil, err
		}
		vm := row.Value
		why := strings.TrimSpace("no report of success within " + r.cfg.BootBudget.String() + "; " + vm.Error)
		vm.Phase, vm.Error = compute.Failed, strings.TrimSuffix(why, ";")
		txn := &store.Txn{}
		return txn, r.composeObserved(ctx, row, vm, txn)
	})
}
