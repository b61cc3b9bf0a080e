package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// renewBatch is how many intents go with one write, and renewFew how many are read
// one by one rather than all at once.
const (
	renewBatch = 50
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
	for _, k := range keys {
		if err := r.retried(ctx, func() (*store.Txn, error) { return r.composeRenewal(ctx, k) }); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, nil
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
	for len(stale) > 0 {
		n := min(renewBatch, len(stale))
		if err := r.renewBatch(ctx, stale[:n], of); err != nil {
			return err
		}
		stale = stale[n:]
	}
	return nil
}

// renewBatch writes renewed intents, one by one if something has changed meanwhile.
func (r *reign) renewBatch(ctx context.Context, rows []store.Row[vnet.Intent], of map[vnet.VNI]*store.Row[network.Network]) error {
	txn := &store.Txn{}
	for _, in := range rows {
		net := of[in.Value.Current.VNI]
		txn.Unchanged(in.Key, in.Revision).Unchanged(net.Key, net.Revision).Put(in.Key, in.Value)
	}
	err := r.commit(ctx, txn)
	if !errors.Is(err, store.ErrConflict) {
		return err
	}
	for _, in := range rows {
		if err := r.retried(ctx, func() (*store.Txn, error) { return r.composeRenewal(ctx, in.Key) }); err != nil {
			return err
		}
	}
	return nil
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
