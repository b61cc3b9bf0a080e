package control

import (
	"context"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// changePort makes a change of a live port's intent once, and returns the port.
func (c *caller) changePort(ctx context.Context, q change, tenant, name string,
	compose func(store.Row[vnet.Intent], *store.Txn) error) (*pb.Port, error) {
	port, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		p, err := c.findPort(ctx, tenant, name)
		if err != nil {
			return "", err
		}
		in, err := c.networks.GetIntent(ctx, p.Name)
		if err != nil {
			return "", err
		}
		if in.Value.Gone {
			return "", fmt.Errorf("port %s: %w: it is being deleted", p.Name, ErrNotSo)
		}
		return p.Name, compose(in, txn)
	})
	if err != nil {
		return nil, err
	}
	return c.fullPort(ctx, port)
}

func (portsAPI) SetPortGroups(ctx context.Context, q *pb.SetPortGroupsRequest) (*pb.Port, error) {
	c := callerOf(ctx)
	return c.changePort(ctx, q, q.Tenant, q.Name, func(in store.Row[vnet.Intent], txn *store.Txn) error {
		return c.composeGroups(ctx, in, q.Groups, txn)
	})
}

// composeGroups composes that a port is in these security groups of its network:
// its place says so to its host, its mappings to all others.
func (r *reign) composeGroups(ctx context.Context, in store.Row[vnet.Intent], names []string, txn *store.Txn) error {
	place := &in.Value.Current
	if rec, ok := r.swaps.Of(in.Value.Port); ok {
		return fmt.Errorf("port %s: %w: swap %s runs and brings groups of its own; wait for its end or cancel it", in.Value.Port, ErrNotSo, rec.ID)
	}
	if place.Isolated {
		return fmt.Errorf("port %s: %w: it is in the pool, where there are no groups", in.Value.Port, ErrNotSo)
	}
	net, err := r.networks.Get(ctx, place.Tenant, place.Network)
	if err != nil {
		return err
	}
	before := *place
	if place.Groups, place.Slots, err = r.resolve(ctx, &net.Value, names, txn); err != nil {
		return err
	}
	if same(before, *place) {
		return nil // nor tell its host, and all that have its mappings
	}
	txn.Absent(store.Live+in.Value.Port).Unchanged(in.Key, in.Revision).Add(network.PutIntent(&in.Value), r.networks.Map(&in.Value))
	return nil
}

// SetPortLimits is for operators: they pay for what a port may take.
func (portsAPI) SetPortLimits(ctx context.Context, q *pb.SetPortLimitsRequest) (*pb.Port, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	if proto.Size(q.Limits.GetFrom())+proto.Size(q.Limits.GetTo()) == 0 {
		return nil, fmt.Errorf("%w: nothing to set; say a rate, or 0 for no bound", ErrInvalid)
	}
	return c.changePort(ctx, q, q.Tenant, q.Name, func(in store.Row[vnet.Intent], txn *store.Txn) error {
		l, before := &in.Value.Limits, in.Value.Limits
		l.From, l.To = rateOver(l.From, q.Limits.From), rateOver(l.To, q.Limits.To)
		if err := checkLimits(*l); err != nil {
			return fmt.Errorf("port %s: %w", in.Value.Port, err)
		}
		if *l == before {
			return nil // nor tell its host
		}
		txn.Unchanged(in.Key, in.Revision).Add(network.PutIntent(&in.Value))
		return nil
	})
}

// Bounds of a rate: below it not even DHCP would work, above it no NIC is.
const (
	minBits    = 8_000
	maxBits    = 1_000_000_000_000
	minPackets = 10
	maxPackets = 1_000_000_000
)

func checkLimits(l vnet.Limits) error {
	for _, r := range []vnet.Rate{l.From, l.To} {
		if r.Bits != 0 && (r.Bits < minBits || r.Bits > maxBits) {
			return fmt.Errorf("%w rate of %d bits a second: %d to %d, or 0 for no bound", ErrInvalid, r.Bits, minBits, maxBits)
		}
		if r.Packets != 0 && (r.Packets < minPackets || r.Packets > maxPackets) {
			return fmt.Errorf("%w rate of %d packets a second: %d to %d, or 0 for no bound", ErrInvalid, r.Packets, minPackets, maxPackets)
		}
	}
	return nil
}

func (portsAPI) SetPort(ctx context.Context, q *pb.SetPortRequest) (*pb.Port, error) {
	c := callerOf(ctx)
	if q.Mtu == nil && q.Router == nil {
		return nil, fmt.Errorf("%w: nothing to set; say mtu or router", ErrInvalid)
	}
	if q.GetMtu() > math.MaxUint16 {
		return nil, fmt.Errorf("%w MTU %d: at most 65535", ErrInvalid, *q.Mtu)
	}
	return c.changePort(ctx, q, q.Tenant, q.Name, func(in store.Row[vnet.Intent], txn *store.Txn) error {
		return c.composePort(ctx, in, q, txn)
	})
}

// composePort composes what a port has of its own, in its index and its place.
func (r *reign) composePort(ctx context.Context, in store.Row[vnet.Intent], q *pb.SetPortRequest, txn *store.Txn) error {
	row, err := r.networks.GetPort(ctx, in.Value.Port)
	if err != nil {
		return err
	}
	port, place := row.Value, &in.Value.Current
	if q.Mtu != nil {
		port.MTU = uint16(*q.Mtu)
	}
	if q.Router != nil {
		port.Router = *q.Router
	}
	if err := network.CheckMTU(port.MTU, network.FamiliesOf(network.CAsOf(place))); err != nil {
		return fmt.Errorf("port %s: %w", port.Name, err)
	}
	net, err := r.networks.Get(ctx, place.Tenant, place.Network)
	if err != nil {
		return err
	}
	host, err := store.Get[vnet.HostInfo](ctx, r.store, store.Hosts+port.Host)
	if err != nil {
		return err
	}
	if err := fits(&net.Value, port.MTU, &host.Value); err != nil {
		return err
	}
	next := net.Value.Renew(*place, port)
	if port == row.Value && same(*place, next) {
		return nil // nor write the place with all of its document
	}
	in.Value.Current = next
	txn.Unchanged(row.Key, row.Revision).Put(row.Key, port).Unchanged(net.Key, net.Revision).
		Unchanged(in.Key, in.Revision).Add(network.PutIntent(&in.Value))
	return nil
}
