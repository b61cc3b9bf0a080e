package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"replug/control/compute"
	"replug/control/network"
	"replug/control/pool"
	"replug/control/resource"
	"replug/directory/store"
	"replug/directory/vnet"
)

// Where pooled VMs are until they are claimed: one network of the platform, its
// ports isolated from one another.
const placeholder vnet.Moniker = "placeholder"

// placeholderSubnets have room for the pool of a large cluster; of each family one,
// since a VM has the families of its type from its first boot on. They are shared
// address space (RFC 6598) and a unique local prefix (RFC 4193), which no customer's
// network is likely to be mistaken for.
var placeholderSubnets = []network.Subnet{
	{Prefix: netip.MustParsePrefix("100.96.0.0/16")},
	{Prefix: netip.MustParsePrefix("fd64:6000:5247::/64")},
}

var errBusy = pool.ErrBusy

// A fleet makes and destroys VMs for the pool manager.
type fleet struct{ r *reign }

// Members returns the platform's VMs.
func (f fleet) Members(ctx context.Context) ([]pool.Member, error) {
	rows, _, err := f.r.vms.List(ctx, resource.Platform)
	var members []pool.Member
	for _, row := range rows {
		vm := row.Value
		m := pool.Member{ID: vm.ID, Type: vm.Type, Since: vm.Ready, Because: vm.Error}
		switch vm.Phase {
		case compute.Creating:
			m.State = pool.Booting
		case compute.Pooled:
			m.State = pool.Waiting
		case compute.Failed:
			m.State = pool.Broken
		default:
			continue // on its way out
		}
		members = append(members, m)
	}
	return members, err
}

// Boot begins to make a VM for the pool.
func (f fleet) Boot(ctx context.Context, typ string) error {
	r := f.r
	return r.alone(ctx, func() error {
		return r.retried(ctx, func() (*store.Txn, error) {
			p, err := r.pools.Get(ctx, typ)
			if err != nil {
				return nil, err
			}
			txn := &store.Txn{}
			_, err = r.composeVM(ctx, vmSpec{tenant: resource.Platform, typ: typ, network: placeholder, pool: true, hold: p.Hold}, txn)
			return txn, err
		})
	})
}

// Destroy begins to delete a VM of the pool, unless it was claimed meanwhile.
func (f fleet) Destroy(ctx context.Context, id string) error {
	var done func()
	err := f.r.retried(ctx, func() (*store.Txn, error) {
		row, err := f.r.vms.Get(ctx, id)
		if errors.Is(err, compute.ErrNotFound) || err == nil && (row.Value.Tenant != resource.Platform || row.Value.Phase == compute.Deleting) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		txn := &store.Txn{}
		done, err = f.r.composeDelete(ctx, row, row.Value.Error, txn)
		return txn, err
	})
	if done != nil {
		done()
	}
	return err
}

// bootingOf returns how many VMs boot on each host for the pool. It bounds what
// the pool does, not what customers ask for. A host on which a claim is under way
// counts as full: a boot beside it would take the CPU that the customer waits for.
// The claim's end changes its VM's row, and the pool looks again.
func (r *reign) bootingOf(ctx context.Context, pooled bool) (map[string]int, error) {
	booting := make(map[string]int)
	if !pooled {
		return booting, nil
	}
	rows, _, err := r.vms.List(ctx, "")
	for _, row := range rows {
		switch vm := row.Value; {
		case vm.Phase == compute.Claimed:
			booting[vm.Host] += r.cfg.BootsPerHost
		case vm.Phase == compute.Creating && vm.Tenant == resource.Platform:
			booting[vm.Host]++
		}
	}
	return booting, err
}

// composePool composes what is said of a pool, and the placeholder network when it is
// the first one.
func (r *reign) composePool(ctx context.Context, typ string, size *int, hold *vnet.Hold, txn *store.Txn) error {
	t, err := r.vms.GetType(ctx, typ)
	if err != nil {
		return err
	}
	if size != nil && *size > 0 {
		if err := r.canPool(t); err != nil {
			return err
		}
	}
	set, err := r.pools.Set(ctx, typ, size, hold)
	if err != nil {
		return err
	}
	txn.Exists(compute.TypeKey(typ)).Add(set)
	row, err := r.networks.Get(ctx, resource.Platform, placeholder)
	if err == nil {
		return r.completePlaceholder(ctx, &row.Value, txn)
	}
	if !errors.Is(err, network.ErrNotFound) {
		return err
	}
	_, made, err := r.networks.Create(ctx, network.Network{
		Moniker: placeholder, Tenant: resource.Platform, Isolated: true,
		Subnets: placeholderSubnets, Lease: network.DefaultLease,
	})
	if err == nil {
		txn.Add(made)
	}
	return err
}

// canPool refuses a pool of guests that could not become anybody's. Of a host that comes
// later the pool itself says so.
func (r *reign) canPool(t compute.Type) error {
	for _, h := range r.s.up.all() {
		if p := h.Personalities[t.Image]; !p.Pools() {
			return fmt.Errorf("pool of %q: %w: host %s has an image %s", t.Name, ErrNotSo, h.Name, bootsOnce(t.Image, p))
		}
	}
	return nil
}

// completePlaceholder composes the subnet that a placeholder network from before
// there was IPv6 lacks.
func (r *reign) completePlaceholder(ctx context.Context, n *network.Network, txn *store.Txn) error {
	if n.Families() == network.Dual {
		return nil
	}
	added, err := r.networks.AddSubnet(ctx, resource.Platform, placeholder, placeholderSubnets[1])
	if err == nil {
		txn.Add(added)
	}
	return err
}

// takePooled returns a VM of a type that waits, the oldest, on a host that is
// there and carries the network's frames, and keeps others from it until put back.
// It returns "" for none.
func (r *reign) takePooled(ctx context.Context, typ string, net *network.Network) (id string, putBack func(), err error) {
	members, err := (fleet{r}).Members(ctx)
	if err != nil {
		return "", nil, err
	}
	used, err := r.vms.UsedRoom(ctx)
	if err != nil {
		return "", nil, err
	}
	r.takingMu.Lock()
	defer r.takingMu.Unlock()
	for _, m := range pool.Ready(members, typ) {
		row, err := r.vms.Get(ctx, m.ID)
		if err != nil || r.taking[m.ID] || !r.claimable(&row.Value, net, used) {
			continue
		}
		r.taking[m.ID] = true
		return m.ID, func() {
			r.takingMu.Lock()
			defer r.takingMu.Unlock()
			delete(r.taking, m.ID)
		}, nil
	}
	return "", nil, nil
}

// claimable reports whether a pooled VM's host is there, carries the network's
// frames, and has the memory for the VM if it rests.
func (r *reign) claimable(vm *compute.VM, net *network.Network, used map[string]compute.Room) bool {
	for _, h := range r.s.up.all() {
		if h.Name == vm.Host {
			return fits(net, 0, &h) == nil && (!vm.Rests() || h.Memory-used[h.Name].Memory >= vm.Memory)
		}
	}
	return false
}
