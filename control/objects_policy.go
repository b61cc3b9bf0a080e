package control

import (
	"context"
	"fmt"
	"slices"

	"replug/control/network"
	"replug/control/service"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// resolve returns security groups of a network by name and slot, and composes that
// they stay what they are until a port is in them.
func (r *reign) resolve(ctx context.Context, n *network.Network, names []string, txn *store.Txn) ([]string, vnet.Groups, error) {
	names, slots, conds, err := r.groups.Resolve(ctx, n.VNI, names)
	if err != nil {
		return nil, 0, fmt.Errorf("network %q: %w", n.Moniker, err)
	}
	txn.Add(conds)
	return names, slots, nil
}

// maxSeats bounds the services that one port stands behind, since it leaves all of
// them in one transaction: with 256 backends each that is 1.1 of the 1.5 MiB that
// etcd takes.
const maxSeats = 64

// checkServices returns an error when a port with some addresses can't be behind
// the services of a network that a swap names.
func (o objects) checkServices(ctx context.Context, net *network.Network, names []string, cas []vnet.CA) error {
	if len(names) > maxSeats {
		return fmt.Errorf("%w swap into %d services: a port stands behind %d at most", ErrInvalid, len(names), maxSeats)
	}
	for _, name := range names {
		s, err := o.r.services.Get(ctx, net.VNI, name)
		if err != nil {
			return fmt.Errorf("network %q: %w", net.Moniker, err)
		}
		if !slices.ContainsFunc(cas, func(ca vnet.CA) bool { return ca.Is4() == s.Value.VIP.Is4() }) {
			return fmt.Errorf("service %q: %w: it is at %s, and the port has no address of that family", name, service.ErrInvalid, s.Value.VIP)
		}
	}
	return nil
}

// Switch makes the port leave the services of its old network, and notes what it
// was behind them.
func (o objects) Switch(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	seats, left, err := o.r.services.Leave(ctx, rec.Before.VNI, rec.Port)
	if err != nil {
		return err
	}
	rec.Left = nil
	for _, s := range seats {
		rec.Left = append(rec.Left, swap.Seat{Service: s.Service, Backend: s.Backend})
	}
	txn.Add(left)
	if n := len(joins(rec)); n > maxSeats { // Join must not fail: nothing has changed yet
		return fmt.Errorf("port %s: %w: it would stand behind %d services of network %s, and %d is the most; name fewer, or remove it from some", rec.Port, ErrNotSo, n, rec.After.Network, maxSeats)
	}
	return nil
}

// joins are the services that a port joins once it is there: those that were asked
// for, and in a swap within one network those that it left.
func joins(rec *swap.Record) []string {
	names := slices.Clone(rec.Services)
	if rec.Before.VNI == rec.After.VNI {
		for _, s := range rec.Left {
			names = append(names, s.Service)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

// Join makes the port join services of its new network.
func (o objects) Join(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	was := make(map[string]service.Seat, len(rec.Left))
	for _, s := range rec.Left {
		was[s.Service] = service.Seat(s)
	}
	var seats []service.Seat
	for _, name := range joins(rec) {
		seat, ok := was[name] // in blue's web as in red's
		if !ok {
			seat = service.Seat{Service: name, Backend: vnet.Backend{Weight: service.DefaultWeight}}
		}
		seats = append(seats, seat)
	}
	joined, err := o.r.services.Join(ctx, rec.After.VNI, rec.Port, network.CAsOf(&rec.After), seats)
	if err == nil {
		txn.Add(joined)
	}
	return err
}

// leaveNew makes a port that goes home leave the services that it has joined.
func (o objects) leaveNew(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	_, left, err := o.r.services.Leave(ctx, rec.After.VNI, rec.Port)
	if err == nil {
		txn.Add(left)
	}
	return err
}

// rejoin makes a port that is home again what it was behind the services there.
func (o objects) rejoin(ctx context.Context, rec *swap.Record, txn *store.Txn) error {
	var seats []service.Seat
	for _, s := range rec.Left {
		seats = append(seats, service.Seat(s))
	}
	joined, err := o.r.services.Join(ctx, rec.Before.VNI, rec.Port, network.CAsOf(rec.Back), seats)
	if err == nil {
		txn.Add(joined)
	}
	return err
}

// composeLeave composes that a port which ends is behind no service of the networks
// that it is or was in.
func (r *reign) composeLeave(ctx context.Context, port string, in *vnet.Intent, rec *swap.Record, txn *store.Txn) error {
	vnis := []vnet.VNI{in.Current.VNI}
	if rec != nil {
		vnis = append(vnis, rec.Before.VNI, rec.After.VNI)
	}
	for _, v := range slices.Compact(slices.Sorted(slices.Values(vnis))) {
		_, left, err := r.services.Leave(ctx, v, port)
		if err != nil {
			return err
		}
		txn.Add(left)
	}
	return nil
}

// returning returns an error that names the swap, when one may bring its port back
// into a group of a network.
func (r *reign) returning(v vnet.VNI) func(group string) error {
	return func(group string) error {
		for _, rec := range r.swaps.Live() {
			if rec.Before.VNI == v && slices.Contains(rec.Before.Groups, group) {
				return fmt.Errorf("swap %s may bring port %s back into it; wait for its end or cancel it", rec.ID, rec.Port)
			}
		}
		return nil
	}
}
