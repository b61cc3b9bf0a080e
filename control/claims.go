package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"replug/control/compute"
	"replug/control/network"
	"replug/control/resource"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// claimsAtOnce bounds how many claims are served at the same time.
const claimsAtOnce = 8

// A claiming is what a swap for a claim hands to Reserve.
type claiming struct {
	claim string
	vm    string
}

var errNotPooled = errors.New("not in the pool any more")

// putClaim composes the writing of a claim.
func (r *reign) putClaim(ctx context.Context, row store.Row[resource.Claim], c resource.Claim, txn *store.Txn) error {
	lease, err := r.requests.shared(ctx)
	txn.Add(resource.PutClaim(row, c, lease))
	return err
}

// composeClaim checks all that can be known of a claim and composes it.
func (r *reign) composeClaim(ctx context.Context, c resource.Claim, txn *store.Txn) (string, error) {
	if err := r.mayAllocate(); err != nil {
		return "", err
	}
	if err := compute.CheckSettings(&c.Settings); err != nil {
		return "", err
	}
	typ, err := r.vms.GetType(ctx, c.Type)
	if err != nil {
		return "", err
	}
	net, err := r.networks.Get(ctx, c.Tenant, c.Network)
	if err != nil {
		return "", err
	}
	families, err := routable(typ, &net.Value)
	if err != nil {
		return "", err
	}
	// Name and address are taken when a VM is found; here only what is plainly
	// impossible is refused at once.
	if _, err := r.vms.TakeName(ctx, &compute.VM{Name: c.Name, Tenant: c.Tenant}); err != nil {
		return "", err
	}
	if _, _, err := r.networks.Take(ctx, net, c.CAs, families, vnet.MAC{}, network.Holder{}); err != nil {
		return "", err
	}
	if _, _, err := r.resolve(ctx, &net.Value, c.Groups, &store.Txn{}); err != nil {
		return "", err
	}
	if _, _, err := r.disks.Create("", c.Tenant, 0, c.Data); err != nil {
		return "", err
	}
	c, row, err := r.tenants.Accept(ctx, c, time.Now())
	if err != nil {
		return "", err
	}
	txn.Add(row)
	return c.ID, nil
}

// serveClaims gives a VM to each claim that waits for one.
func (r *reign) serveClaims(ctx context.Context, keys []string, all bool) (time.Time, error) {
	if all {
		claims, err := r.tenants.ListClaims(ctx, "")
		if err != nil {
			return time.Time{}, err
		}
		keys = keys[:0]
		for _, c := range claims {
			keys = append(keys, resource.ClaimKey(c.ID))
		}
	}
	settled, err := r.settled(ctx)
	if err != nil {
		return time.Time{}, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(claimsAtOnce)
	for _, k := range keys {
		g.Go(func() error { return r.serveClaim(ctx, strings.TrimPrefix(k, store.Claims), settled) })
	}
	err = g.Wait()
	if err == nil && !settled {
		return time.Now().Add(retryPause), nil
	}
	return time.Time{}, err
}

// serveClaim gives a VM to a claim. While it is not settled which hosts are there,
// only a pooled VM will do: most of them may be on hosts that are about to come.
func (r *reign) serveClaim(ctx context.Context, id string, settled bool) error {
	row, err := r.tenants.GetClaim(ctx, id)
	if errors.Is(err, resource.ErrNotFound) || err == nil && row.Value.Phase != resource.Accepted {
		return nil
	}
	if err != nil {
		return err
	}
	why := "no pooled VM of type " + row.Value.Type + " was ready: made from scratch"
	if len(row.Value.Data) > 0 {
		why = "data disks can't be added to a VM that runs: made from scratch"
	} else if served, err := r.claimPooled(ctx, row.Value); served || err != nil {
		return r.claimFailed(ctx, id, err)
	}
	if !settled {
		return nil
	}
	return r.claimFailed(ctx, id, r.claimScratch(ctx, id, why))
}

// claimPooled begins to swap a pooled VM to the claim's tenant. It returns false
// when there is none.
func (r *reign) claimPooled(ctx context.Context, c resource.Claim) (bool, error) {
	net, err := r.networks.Get(ctx, c.Tenant, c.Network)
	if err != nil {
		return false, err
	}
	for {
		vm, putBack, err := r.takePooled(ctx, c.Type, &net.Value)
		if err != nil || vm == "" {
			return false, err
		}
		q := swap.Request{
			ID: fmt.Sprintf("claim/%s/%d/%s", c.ID, c.Tries+1, vm), Tenant: c.Tenant, VM: vm, Network: c.Network,
			CAs: c.CAs, Groups: c.Groups, Claim: c.ID, Settings: claiming{claim: c.ID, vm: vm},
		}
		_, err = r.swaps.Start(ctx, q)
		putBack()
		if err == nil || passing(ctx, err) {
			return true, err
		}
		if errors.Is(err, errNotPooled) || errors.Is(err, swap.ErrBusy) {
			continue
		}
		// Whatever it was: of a VM that has left the pool meanwhile it says nothing of the claim.
		row, gone := r.vms.Get(ctx, vm)
		if gone == nil && row.Value.Phase == compute.Pooled || gone != nil && !errors.Is(gone, compute.ErrNotFound) {
			return true, errors.Join(err, gone)
		}
	}
}

// claimScratch begins to make a VM for the claim.
func (r *reign) claimScratch(ctx context.Context, id, why string) error {
	return r.alone(ctx, func() error {
		return r.retried(ctx, func() (*store.Txn, error) {
			row, err := r.tenants.GetClaim(ctx, id)
			if err != nil || row.Value.Phase != resource.Accepted {
				return nil, err
			}
			c, txn := row.Value, &store.Txn{}
			vm, err := r.composeVM(ctx, vmSpec{
				tenant: c.Tenant, name: c.Name, typ: c.Type, network: c.Network, cas: c.CAs, groups: c.Groups,
				settings: c.Settings, data: c.Data, claim: c.ID,
			}, txn)
			if err != nil {
				return nil, err
			}
			note := why
			if said := unconfirmed(&vm); said != "" {
				note += "; " + said
			}
			return txn, r.putClaim(ctx, row, c.Make(vm.ID, note, time.Now()), txn)
		})
	})
}

// passing reports whether an error is none of the claim's own: it will be served
// when the store, or the next leader, can.
func passing(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrFenced) ||
		errors.Is(err, store.ErrConflict) || errors.Is(err, swap.ErrStopped)
}

// claimFailed ends a claim that can't be served, for a reason that trying again
// won't change.
func (r *reign) claimFailed(ctx context.Context, id string, cause error) error {
	if cause == nil || passing(ctx, cause) {
		return cause
	}
	return r.retried(ctx, func() (*store.Txn, error) {
		row, err := r.tenants.GetClaim(ctx, id)
		if err != nil || row.Value.Phase != resource.Accepted {
			return nil, err
		}
		txn := &store.Txn{}
		return txn, r.putClaim(ctx, row, row.Value.Fail(cause.Error(), time.Now()), txn)
	})
}
