package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"replug/control/compute"
	"replug/control/network"
	"replug/control/resource"
	"replug/control/storage"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A vmSpec is what a new VM is to be.
type vmSpec struct {
	tenant   string
	name     string // "" of a pooled one
	typ      string
	network  vnet.Moniker
	cas      []vnet.CA // asked for; the next free ones of the other families
	groups   []string
	router   bool
	settings vnet.Document
	host     string // "": the one with most room
	data     []int64
	claim    string
	pool     bool
	hold     vnet.Hold // how it waits in the pool
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
	if _, err := routable(typ, &net.Value); err != nil {
		return compute.VM{}, err
	}
	host, err := r.choose(ctx, typ, &net.Value, s)
	if err != nil {
		return compute.VM{}, err
	}
	vm, vmTxn, err := r.vms.Create(ctx, compute.VM{
		Name: s.name, Tenant: s.tenant, Host: host.Name, Pool: s.pool, Claim: s.claim, Settings: s.settings,
		Personality: host.Personalities[typ.Image], Hold: s.hold,
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
	families, err := routable(typ, &net.Value)
	if err != nil {
		return err
	}
	groups, slots, err := r.resolve(ctx, &net.Value, s.groups, txn)
	if err != nil {
		return err
	}
	in, portTxn, err := r.networks.NewPort(ctx, network.PortRequest{
		Port:    network.Port{Name: vm.Port, Tenant: vm.Tenant, VM: vm.ID, Router: s.router},
		Network: net, Families: families, CAs: s.cas, Groups: groups, Slots: slots, Host: host, Claim: s.claim,
	})
	if err != nil {
		return err
	}
	in.Machine = vm.Machine(storage.Machine(disks))
	in.Current.Confirm, in.Current.Hold = vm.Confirm(true), s.hold
	in.Current.Document = vm.Document(s.pool)
	in.Current.Document.Epoch = in.Current.Epoch
	txn.Add(diskTxn, portTxn, network.PutIntent(&in))
	return nil
}

// routable returns the families of addresses that a VM of a type has, or an error
// when a network doesn't offer them: the routing is part of the type, and a swap
// never changes it silently (S18, X3).
func routable(t compute.Type, n *network.Network) (network.Families, error) {
	f, err := network.ParseFamilies(t.Routing)
	if err == nil && !n.Families().Has(f) {
		return f, fmt.Errorf("VM type %q routes %s, but network %q has %s subnets only: %w; choose another type or network, or add a subnet",
			t.Name, f, n.Moniker, n.Families(), ErrNotSo)
	}
	return f, err
}

// fits returns an error when a host's underlay can't carry the frames of a network,
// or of a port that has an MTU of its own.
func fits(n *network.Network, own uint16, h *vnet.HostInfo) error {
	if mtu := cmp.Or(own, n.MTU); mtu > h.MTU {
		return fmt.Errorf("network %q or the port has an MTU of %d bytes, host %s's underlay leaves %d: %w; lower the MTU or raise the underlay's",
			n.Moniker, mtu, h.Name, h.MTU, ErrNotSo)
	}
	return nil
}

// choose returns the host for a VM in a network.
func (r *reign) choose(ctx context.Context, t compute.Type, net *network.Network, s vmSpec) (vnet.HostInfo, error) {
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
		c := compute.Candidate{HostInfo: h, FreePorts: network.Capacity(h) - len(ports)}
		switch p := h.Personalities[t.Image]; {
		case s.pool && !p.Pools():
			c.Unfit = "has an image " + bootsOnce(t.Image, p)
		case fits(net, 0, &h) != nil:
			c.Unfit = fmt.Sprintf("has an underlay that leaves guests %d bytes, network %q has an MTU of %d", h.MTU, net.Moniker, net.MTU)
		}
		candidates = append(candidates, c)
	}
	best, err := r.vms.Choose(ctx, t, s.host, candidates)
	if err != nil && full > 0 {
		return vnet.HostInfo{}, errBusy
	}
	return best.HostInfo, err
}

// bootsOnce says why an image makes no pool.
func bootsOnce(image string, p vnet.Personality) string {
	return fmt.Sprintf("%q of personality %q, whose guests read their metadata at their first boot and never again: claims of it are made from scratch", image, p)
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
