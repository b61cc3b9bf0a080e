package control

import (
	"context"

	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

// changeNetwork makes a change of a live network once, and returns the network.
func (c *caller) changeNetwork(ctx context.Context, q change, tenant, moniker string,
	compose func(tenant string, m vnet.Moniker) (*store.Txn, error)) (*pb.Network, error) {
	tenant, m, err := c.networkName(tenant, moniker)
	if err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) {
		t, err := compose(tenant, m)
		if err == nil {
			txn.Add(t)
		}
		return string(m), err
	})
	if err != nil {
		return nil, err
	}
	return c.getNetwork(ctx, tenant, m)
}

func (networksAPI) AddSubnet(ctx context.Context, q *pb.AddSubnetRequest) (*pb.Network, error) {
	c, r := callerOf(ctx), reader{}
	s := r.subnet(q.Subnet)
	if r.err != nil {
		return nil, r.err
	}
	return c.changeNetwork(ctx, q, q.Tenant, q.Moniker, func(tenant string, m vnet.Moniker) (*store.Txn, error) {
		return c.networks.AddSubnet(ctx, tenant, m, s)
	})
}

func (networksAPI) AddRoute(ctx context.Context, q *pb.AddRouteRequest) (*pb.Network, error) {
	c, r := callerOf(ctx), reader{}
	route := r.route(q.Route)
	if r.err != nil {
		return nil, r.err
	}
	return c.changeNetwork(ctx, q, q.Tenant, q.Moniker, func(tenant string, m vnet.Moniker) (*store.Txn, error) {
		return c.networks.AddRoute(ctx, tenant, m, route)
	})
}

func (networksAPI) RemoveRoute(ctx context.Context, q *pb.RemoveRouteRequest) (*pb.Network, error) {
	c, r := callerOf(ctx), reader{}
	prefix := r.prefix("route", q.Prefix)
	if r.err != nil {
		return nil, r.err
	}
	return c.changeNetwork(ctx, q, q.Tenant, q.Moniker, func(tenant string, m vnet.Moniker) (*store.Txn, error) {
		return c.networks.RemoveRoute(ctx, tenant, m, prefix)
	})
}

func (networksAPI) SetFlowLog(ctx context.Context, q *pb.SetFlowLogRequest) (*pb.Network, error) {
	c := callerOf(ctx)
	return c.changeNetwork(ctx, q, q.Tenant, q.Moniker, func(tenant string, m vnet.Moniker) (*store.Txn, error) {
		return c.networks.SetFlowLog(ctx, tenant, m, q.On)
	})
}

func (networksAPI) Peer(ctx context.Context, q *pb.PeerRequest) (*pb.Network, error) {
	c := callerOf(ctx)
	other, err := monikerFrom(q.Peer)
	if err != nil {
		return nil, err
	}
	return c.changeNetwork(ctx, q, q.Tenant, q.Moniker, func(tenant string, m vnet.Moniker) (*store.Txn, error) {
		return c.networks.Peer(ctx, tenant, m, other)
	})
}

func (networksAPI) Unpeer(ctx context.Context, q *pb.UnpeerRequest) (*pb.Network, error) {
	c := callerOf(ctx)
	other, err := monikerFrom(q.Peer)
	if err != nil {
		return nil, err
	}
	return c.changeNetwork(ctx, q, q.Tenant, q.Moniker, func(tenant string, m vnet.Moniker) (*store.Txn, error) {
		return c.networks.Unpeer(ctx, tenant, m, other)
	})
}
