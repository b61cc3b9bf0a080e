package control

import (
	"context"
	"fmt"
	"slices"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/control/service"
	"replug/directory/store"
	"replug/directory/vnet"
)

type servicesAPI struct {
	pb.UnimplementedServicesServer
	s *Server
}

func (servicesAPI) CreateService(ctx context.Context, q *pb.CreateServiceRequest) (*pb.Service, error) {
	c := callerOf(ctx)
	s, err := serviceFrom(q.GetService())
	if err != nil {
		return nil, err
	}
	if err := compute.CheckName("service", s.Name); err != nil {
		return nil, err
	}
	return c.changeService(ctx, q, q.Service.Tenant, q.Service.Network, s.Name, func(net store.Row[network.Network], txn *store.Txn) error {
		return c.composeService(ctx, net, s, q.Service.Tenant, q.Service.Backends, txn)
	})
}

// composeService composes a new service with its address and backends.
func (c *caller) composeService(ctx context.Context, net store.Row[network.Network], s vnet.Service, tenant string, backends []*pb.Backend, txn *store.Txn) error {
	if err := c.mayAllocate(); err != nil {
		return err
	}
	seats, err := c.seats(ctx, net.Value.VNI)
	if err != nil {
		return err
	}
	s.VNI, s.Backends = net.Value.VNI, nil
	for _, b := range backends {
		one, err := c.backend(ctx, net, &s, tenant, b, seats, txn)
		if err != nil {
			return fmt.Errorf("service %q: %w", s.Name, err)
		}
		s.Backends = append(s.Backends, one)
	}
	vip, err := c.networks.TakeVIP(ctx, net, s.VIP, s.Name)
	if err != nil {
		return err
	}
	made, err := c.services.Create(ctx, s)
	if err == nil {
		txn.Add(vip, made)
	}
	return err
}

// changeService makes a change of a service once, and returns the service.
func (c *caller) changeService(ctx context.Context, q change, tenant, moniker, name string,
	compose func(store.Row[network.Network], *store.Txn) error) (*pb.Service, error) {
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		net, err := c.inCustomersNetwork(ctx, tenant, moniker)
		if err != nil {
			return "", err
		}
		return name, compose(net, txn)
	})
	if err != nil {
		return nil, err
	}
	return c.serviceView(ctx, tenant, moniker, name)
}

// seats counts the services of a network that each port stands behind.
func (r *reign) seats(ctx context.Context, v vnet.VNI) (map[string]int, error) {
	all, err := r.services.List(ctx, v)
	seats := make(map[string]int)
	for _, s := range all {
		for _, b := range s.Backends {
			seats[b.Member]++
		}
	}
	return seats, err
}

// backend reads who a backend is, a VM or a port of the network, and composes that
// it is there until the commit.
func (c *caller) backend(ctx context.Context, net store.Row[network.Network], s *vnet.Service, tenant string, b *pb.Backend, seats map[string]int, txn *store.Txn) (vnet.Backend, error) {
	out, err := backendFrom(b)
	if err != nil {
		return out, err
	}
	port, err := c.findPort(ctx, tenant, b.GetMember())
	if err != nil {
		return out, err
	}
	in, err := c.networks.GetIntent(ctx, port.Name)
	if err != nil {
		return out, err
	}
	place := &in.Value.Current
	i := slices.IndexFunc(place.Addrs, func(a vnet.Addr) bool { return a.CA.Is4() == s.VIP.Is4() })
	switch {
	case in.Value.Gone:
		return out, fmt.Errorf("backend %s: %w: it is being deleted", b.Member, ErrNotSo)
	case place.VNI != net.Value.VNI:
		return out, fmt.Errorf("backend %s: %w: it is in network %s; a service has backends of its own network", b.Member, ErrNotSo, place.Network)
	case i < 0:
		return out, fmt.Errorf("backend %s: %w: it has no address of the family of %s", b.Member, ErrNotSo, s.VIP)
	case seats[port.Name] >= maxSeats && !slices.ContainsFunc(s.Backends, func(o vnet.Backend) bool { return o.Member == port.Name }):
		return out, fmt.Errorf("backend %s: %w: it stands behind %d services of the network, as many as one may; remove it from another first", b.Member, service.ErrExhausted, seats[port.Name])
	}
	out.Member, out.CA = port.Name, place.Addrs[i].CA
	txn.Unchanged(in.Key, in.Revision)
	return out, nil
}

func (c *caller) serviceView(ctx context.Context, tenant, moniker, name string) (*pb.Service, error) {
	net, err := c.inNetwork(ctx, tenant, moniker)
	if err != nil {
		return nil, err
	}
	s, err := c.services.Get(ctx, net.Value.VNI, name)
	if err != nil {
		return nil, err
	}
	names, err := c.memberNames(ctx)
	return serviceTo(networkTo(&net.Value), &s.Value, names), err
}

func (servicesAPI) SetService(ctx context.Context, q *pb.SetServiceRequest) (*pb.Service, error) {
	c := callerOf(ctx)
	switch {
	case q.Affinity == nil && q.Check == nil && !q.NoCheck:
		return nil, fmt.Errorf("%w: nothing to set; say affinity, check or no_check", ErrInvalid)
	case q.Check != nil && q.NoCheck:
		return nil, fmt.Errorf("%w: both check and no_check are given; say one of them", ErrInvalid)
	}
	return c.changeService(ctx, q, q.Tenant, q.Network, q.Name, func(net store.Row[network.Network], txn *store.Txn) error {
		set, err := c.services.Set(ctx, net.Value.VNI, q.Name, func(s *vnet.Service) error { return setService(s, q) })
		if err == nil {
			txn.Add(set)
		}
		return err
	})
}

func (servicesAPI) SetBackend(ctx context.Context, q *pb.SetBackendRequest) (*pb.Service, error) {
	c := callerOf(ctx)
	return c.changeService(ctx, q, q.Tenant, q.Network, q.Service, func(net store.Row[network.Network], txn *store.Txn) error {
		s, err := c.services.Get(ctx, net.Value.VNI, q.Service)
		if err != nil {
			return err
		}
		seats, err := c.seats(ctx, net.Value.VNI)
		if err != nil {
			return err
		}
		b, err := c.backend(ctx, net, &s.Value, q.Tenant, q.Backend, seats, txn)
		if err != nil {
			return fmt.Errorf("service %q: %w", q.Service, err)
		}
		keepUnsaid(&b, &s.Value, q.Backend)
		set, err := c.services.SetBackend(ctx, net.Value.VNI, q.Service, b)
		if err == nil {
			txn.Add(set)
		}
		return err
	})
}

// keepUnsaid gives a backend that is there the port, weight and draining that it has,
// where the caller says nothing of them.
func keepUnsaid(b *vnet.Backend, s *vnet.Service, said *pb.Backend) {
	for _, old := range s.Backends {
		if old.Member != b.Member {
			continue
		}
		if said.GetPort() == 0 {
			b.Port = old.Port
		}
		if said.Weight == nil {
			b.Weight = old.Weight
		}
		if said.Draining == nil {
			b.Draining = old.Draining
		}
	}
}

func (servicesAPI) RemoveBackend(ctx context.Context, q *pb.RemoveBackendRequest) (*pb.Service, error) {
	c := callerOf(ctx)
	return c.changeService(ctx, q, q.Tenant, q.Network, q.Service, func(net store.Row[network.Network], txn *store.Txn) error {
		port, err := c.findPort(ctx, q.Tenant, q.Member)
		if err != nil {
			return err
		}
		set, err := c.services.RemoveBackend(ctx, net.Value.VNI, q.Service, port.Name)
		if err == nil {
			txn.Add(set)
		}
		return err
	})
}

func (servicesAPI) GetService(ctx context.Context, q *pb.GetServiceRequest) (*pb.Service, error) {
	return callerOf(ctx).serviceView(ctx, q.Tenant, q.Network, q.Name)
}

func (servicesAPI) ListServices(ctx context.Context, q *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
	c := callerOf(ctx)
	net, err := c.inNetwork(ctx, q.Tenant, q.Network)
	if err != nil {
		return nil, err
	}
	all, err := c.services.List(ctx, net.Value.VNI)
	if err != nil {
		return nil, err
	}
	names, err := c.memberNames(ctx)
	r, n := &pb.ListServicesResponse{}, networkTo(&net.Value)
	for i := range all {
		r.Services = append(r.Services, serviceTo(n, &all[i], names))
	}
	return r, err
}

func (servicesAPI) DeleteService(ctx context.Context, q *pb.DeleteServiceRequest) (*pb.DeleteServiceResponse, error) {
	c := callerOf(ctx)
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		net, err := c.inNetwork(ctx, q.Tenant, q.Network)
		if err != nil {
			return "", err
		}
		s, heir, gone, err := c.services.Delete(ctx, net.Value.VNI, q.Name)
		if err == nil {
			txn.Add(gone, c.networks.LeaveVIP(s.VNI, s.VIP, q.Name, heir))
		}
		return q.Name, err
	})
	return &pb.DeleteServiceResponse{}, err
}

// seatsOf returns the names of the services that a port is behind.
func (r *reign) seatsOf(ctx context.Context, v vnet.VNI, port string) ([]string, error) {
	seats, err := r.services.Of(ctx, v, port)
	var names []string
	for _, s := range seats {
		names = append(names, s.Service)
	}
	return names, err
}
