package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// renewBatch and renewBytes bound what goes with one write, of which etcd takes 1.5
// MiB: an intent has its guest's document. renewFew is how many intents are read one
// by one rather than all at once.
const (
	renewBatch = 50
	renewBytes = 1 << 20
	renewFew   = 10
)

// renewPlaces makes the intents follow their networks: what is changed of a live
// network (routes, peers, subnets, flow log) is one row, and each port in it gets
// the change from here. An intent that a swap has just written is looked at too,
// since its place was made when the swap began.
func (r *reign) renewPlaces(ctx context.Context, keys []string, all bool) (time.Time, error) {
	all = all || len(keys) > renewFew
	for _, k := range keys {
		all = all || strings.HasPrefix(k, store.Networks)
	}
	if all {
		return time.Time{}, r.renewAll(ctx)
	}
	return time.Time{}, r.renewEach(ctx, keys)
}

// renewEach renews intents one by one. What is wrong with one is no reason to leave
// the others as they are, which may be another tenant's; a store that is away is.
func (r *reign) renewEach(ctx context.Context, keys []string) error {
	var failed error
	for _, k := range keys {
		err := r.retried(ctx, func() (*store.Txn, error) { return r.composeRenewal(ctx, k) })
		if storeAway(err) {
			return err
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("renew %s: %w", k, err))
		}
	}
	return failed
}

// storeAway reports whether no other write would fare better than the one that failed.
func storeAway(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrFenced) || errors.Is(err, context.Canceled)
}

// renewAll renews the intents of all networks, many with one write.
func (r *reign) renewAll(ctx context.Context) error {
	nets, _, err := store.List[network.Network](ctx, r.store, store.Networks)
	if err != nil {
		return err
	}
	of := make(map[vnet.VNI]*store.Row[network.Network], len(nets))
	for i := range nets {
		of[nets[i].Value.VNI] = &nets[i]
	}
	ports, _, err := store.List[network.Port](ctx, r.store, store.Ports)
	if err != nil {
		return err
	}
	port := make(map[string]network.Port, len(ports))
	for _, p := range ports {
		port[p.Value.Name] = p.Value
	}
	intents, _, err := store.List[vnet.Intent](ctx, r.store, store.Intents)
	if err != nil {
		return err
	}
	var stale []store.Row[vnet.Intent]
	for _, in := range intents {
		if net := of[in.Value.Current.VNI]; net != nil && renew(&in.Value, &net.Value, port[in.Value.Port]) {
			stale = append(stale, in)
		}
	}
	var failed error
	for len(stale) > 0 {
		n, err := r.renewBatch(ctx, stale, of)
		if storeAway(err) {
			return err
		}
		failed = errors.Join(failed, err)
		stale = stale[n:]
	}
	return failed
}

// renewBatch writes the first of some renewed intents, one by one if something has
// changed meanwhile or they are too much at once, and returns how many.
func (r *reign) renewBatch(ctx context.Context, rows []store.Row[vnet.Intent], of map[vnet.VNI]*store.Row[network.Network]) (int, error) {
	txn := &store.Txn{}
	var keys []string
	for _, in := range rows {
		if len(keys) == renewBatch || txn.Bytes() > renewBytes {
			break
		}
		net := of[in.Value.Current.VNI]
		txn.Unchanged(in.Key, in.Revision).Unchanged(net.Key, net.Revision).Put(in.Key, in.Value)
		keys = append(keys, in.Key)
	}
	err := r.commit(ctx, txn)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrTooLarge) {
		err = r.renewEach(ctx, keys)
	}
	return len(keys), err
}

// composeRenewal composes the renewal of one intent, or nothing.
func (r *reign) composeRenewal(ctx context.Context, key string) (*store.Txn, error) {
	in, err := store.Get[vnet.Intent](ctx, r.store, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	net, err := r.networks.Get(ctx, in.Value.Current.Tenant, in.Value.Current.Network)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	port, err := r.networks.GetPort(ctx, in.Value.Port)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	if net.Value.VNI != in.Value.Current.VNI || !renew(&in.Value, &net.Value, port.Value) {
		return nil, nil
	}
	return (&store.Txn{}).Unchanged(in.Key, in.Revision).Unchanged(net.Key, net.Revision).
		Unchanged(port.Key, port.Revision).Put(in.Key, in.Value), nil
}

// renew makes an intent's current place what network and port make it now, and
// reports whether that changed it.
func renew(in *vnet.Intent, net *network.Network, port network.Port) bool {
	next := net.Renew(in.Current, port)
	if in.Gone || same(in.Current, next) {
		return false
	}
	in.Current = next
	return true
}

// same compares places as the store has them.
func same(a, b vnet.Place) bool {
	a.Document, b.Document = nil, nil
	one, err := json.Marshal(a)
	other, err2 := json.Marshal(b)
	return err == nil && err2 == nil && bytes.Equal(one, other)
}
