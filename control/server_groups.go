package control

import (
	"cmp"
	"context"
	"fmt"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

type groupsAPI struct {
	pb.UnimplementedGroupsServer
	s *Server
}

// inNetwork reads a network that a call names, for what is in it.
func (c *caller) inNetwork(ctx context.Context, tenant, moniker string) (store.Row[network.Network], error) {
	tenant, m, err := c.networkName(tenant, moniker)
	if err != nil {
		return store.Row[network.Network]{}, err
	}
	return c.networks.Get(ctx, tenant, m)
}

// inCustomersNetwork reads a network that may have groups and services. The pool's
// has none, whoever asks: what waits there is nobody's yet.
func (c *caller) inCustomersNetwork(ctx context.Context, tenant, moniker string) (store.Row[network.Network], error) {
	net, err := c.inNetwork(ctx, tenant, moniker)
	if err == nil && net.Value.Isolated {
		err = fmt.Errorf("%w network %q: it is the pool's, and has no groups and no services; name a tenant's", ErrInvalid, moniker)
	}
	return net, err
}

func (groupsAPI) CreateGroup(ctx context.Context, q *pb.CreateGroupRequest) (*pb.Group, error) {
	c := callerOf(ctx)
	if err := compute.CheckName("security group", q.Name); err != nil {
		return nil, err
	}
	return c.changeGroup(ctx, q, q.Tenant, q.Network, q.Name, q.Rules,
		func(v vnet.VNI, rules []vnet.Rule) (*store.Txn, error) {
			if err := c.mayAllocate(); err != nil {
				return nil, err
			}
			return c.groups.Create(ctx, v, q.Name, rules)
		})
}

func (groupsAPI) SetRules(ctx context.Context, q *pb.SetRulesRequest) (*pb.Group, error) {
	c := callerOf(ctx)
	return c.changeGroup(ctx, q, q.Tenant, q.Network, q.Name, q.Rules,
		func(v vnet.VNI, rules []vnet.Rule) (*store.Txn, error) {
			return c.groups.SetRules(ctx, v, q.Name, rules)
		})
}

// changeGroup makes a group or sets its rules once, and returns it. The network
// must be there until then.
func (c *caller) changeGroup(ctx context.Context, q change, tenant, moniker, name string, all []*pb.Rule,
	compose func(vnet.VNI, []vnet.Rule) (*store.Txn, error)) (*pb.Group, error) {
	rules, err := rulesFrom(all)
	if err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) {
		net, err := c.inCustomersNetwork(ctx, tenant, moniker)
		if err != nil {
			return "", err
		}
		t, err := compose(net.Value.VNI, rules)
		if err == nil {
			txn.Unchanged(net.Key, net.Revision).Add(t)
		}
		return name, err
	})
	if err != nil {
		return nil, err
	}
	return c.groupView(ctx, tenant, moniker, name)
}

func (c *caller) groupView(ctx context.Context, tenant, moniker, name string) (*pb.Group, error) {
	net, err := c.inNetwork(ctx, tenant, moniker)
	if err != nil {
		return nil, err
	}
	g, err := c.groups.Get(ctx, net.Value.VNI, name)
	if err != nil {
		return nil, err
	}
	members, err := c.members(ctx, net.Value.VNI)
	return groupTo(networkTo(&net.Value), &g.Value, members[name]), err
}

// members returns who is in each group of a network, as callers call them.
func (c *caller) members(ctx context.Context, v vnet.VNI) (map[string][]string, error) {
	names, err := c.memberNames(ctx)
	if err != nil {
		return nil, err
	}
	members, err := c.groups.Members(ctx, v)
	for _, ports := range members {
		for i, p := range ports {
			ports[i] = cmp.Or(names[p], p)
		}
	}
	return members, err
}

func (groupsAPI) GetGroup(ctx context.Context, q *pb.GetGroupRequest) (*pb.Group, error) {
	return callerOf(ctx).groupView(ctx, q.Tenant, q.Network, q.Name)
}

func (groupsAPI) ListGroups(ctx context.Context, q *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	c := callerOf(ctx)
	net, err := c.inNetwork(ctx, q.Tenant, q.Network)
	if err != nil {
		return nil, err
	}
	all, err := c.groups.List(ctx, net.Value.VNI)
	if err != nil {
		return nil, err
	}
	members, err := c.members(ctx, net.Value.VNI)
	r, n := &pb.ListGroupsResponse{}, networkTo(&net.Value)
	for i := range all {
		r.Groups = append(r.Groups, groupTo(n, &all[i], members[all[i].Name]))
	}
	return r, err
}

func (groupsAPI) DeleteGroup(ctx context.Context, q *pb.DeleteGroupRequest) (*pb.DeleteGroupResponse, error) {
	c := callerOf(ctx)
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		net, err := c.inNetwork(ctx, q.Tenant, q.Network)
		if err != nil {
			return "", err
		}
		gone, err := c.groups.Delete(ctx, net.Value.VNI, q.Name, c.returning(net.Value.VNI))
		if err == nil {
			txn.Add(gone)
		}
		return q.Name, err
	})
	return &pb.DeleteGroupResponse{}, err
}
