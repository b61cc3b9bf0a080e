package control

import (
	"context"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

type tenantsAPI struct {
	pb.UnimplementedTenantsServer
	s *Server
}

func (tenantsAPI) CreateTenant(ctx context.Context, q *pb.CreateTenantRequest) (*pb.Tenant, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	name, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		if err := compute.CheckName("tenant", q.Name); err != nil {
			return "", err
		}
		t, made, err := c.tenants.CreateTenant(ctx, q.Name)
		if err == nil {
			txn.Add(made)
		}
		return t.Name, err
	})
	return &pb.Tenant{Name: name}, err
}

func (tenantsAPI) ListTenants(ctx context.Context, _ *pb.ListTenantsRequest) (*pb.ListTenantsResponse, error) {
	c := callerOf(ctx)
	all, err := c.tenants.ListTenants(ctx)
	r := &pb.ListTenantsResponse{}
	for _, t := range all {
		if c.sees(t.Name) {
			r.Tenants = append(r.Tenants, &pb.Tenant{Name: t.Name})
		}
	}
	return r, err
}

func (tenantsAPI) DeleteTenant(ctx context.Context, q *pb.DeleteTenantRequest) (*pb.DeleteTenantResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		gone, err := c.tenants.DeleteTenant(ctx, q.Name)
		if err == nil {
			txn.Add(gone)
		}
		return q.Name, err
	})
	return &pb.DeleteTenantResponse{}, err
}

type networksAPI struct {
	pb.UnimplementedNetworksServer
	s *Server
}

func (networksAPI) CreateNetwork(ctx context.Context, q *pb.CreateNetworkRequest) (*pb.Network, error) {
	c := callerOf(ctx)
	want, err := networkFrom(q.GetNetwork())
	if err != nil {
		return nil, err
	}
	if want.Tenant, err = c.owner(want.Tenant); err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) {
		if err := c.mayAllocate(); err != nil {
			return "", err
		}
		owner, err := c.tenants.Tenant(ctx, want.Tenant)
		if err != nil {
			return "", err
		}
		n, made, err := c.networks.Create(ctx, want)
		if err == nil {
			txn.Add(owner, made)
		}
		return string(n.Moniker), err
	})
	if err != nil {
		return nil, err
	}
	return c.getNetwork(ctx, want.Tenant, want.Moniker)
}

func (c *caller) getNetwork(ctx context.Context, tenant string, m vnet.Moniker) (*pb.Network, error) {
	row, err := c.networks.Get(ctx, tenant, m)
	if err != nil {
		return nil, err
	}
	return networkTo(&row.Value), nil
}

func (networksAPI) GetNetwork(ctx context.Context, q *pb.GetNetworkRequest) (*pb.Network, error) {
	c := callerOf(ctx)
	tenant, m, err := c.networkName(q.Tenant, q.Moniker)
	if err != nil {
		return nil, err
	}
	return c.getNetwork(ctx, tenant, m)
}

// networkName checks how a call names a network.
func (c *caller) networkName(tenant, moniker string) (string, vnet.Moniker, error) {
	tenant, err := c.owner(tenant)
	if err != nil {
		return "", "", err
	}
	if err := compute.CheckName("tenant", tenant); err != nil {
		return "", "", err
	}
	m, err := monikerFrom(moniker)
	return tenant, m, err
}

func (networksAPI) ListNetworks(ctx context.Context, q *pb.ListNetworksRequest) (*pb.ListNetworksResponse, error) {
	c := callerOf(ctx)
	tenant, err := c.tenant(q.Tenant)
	if err != nil {
		return nil, err
	}
	all, err := c.networks.List(ctx, tenant)
	r := &pb.ListNetworksResponse{}
	for _, n := range all {
		r.Networks = append(r.Networks, networkTo(&n))
	}
	return r, err
}

func (networksAPI) DeleteNetwork(ctx context.Context, q *pb.DeleteNetworkRequest) (*pb.DeleteNetworkResponse, error) {
	c := callerOf(ctx)
	tenant, m, err := c.networkName(q.Tenant, q.Moniker)
	if err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) {
		gone, err := c.networks.Delete(ctx, tenant, m)
		if err == nil {
			txn.Add(gone)
		}
		return network.Key(tenant, m), err
	})
	return &pb.DeleteNetworkResponse{}, err
}
