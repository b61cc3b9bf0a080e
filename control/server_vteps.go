package control

import (
	"context"
	"fmt"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// AddVTEP is for operators: who names an underlay address opens the network to
// whatever is there.
func (networksAPI) AddVTEP(ctx context.Context, q *pb.AddVTEPRequest) (*pb.VTEP, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	tenant, m, err := c.networkName(q.Tenant, q.GetVtep().GetNetwork())
	if err != nil {
		return nil, err
	}
	v, err := vtepFrom(q.Vtep)
	if err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) {
		if err := c.mayAllocate(); err != nil {
			return "", err
		}
		net, err := c.networks.Get(ctx, tenant, m)
		if err != nil {
			return "", err
		}
		added, err := c.networks.AddVTEP(ctx, net, v)
		if err == nil {
			txn.Add(added)
		}
		return v.Name, err
	})
	return vtepTo(m, &v), err
}

func vtepFrom(v *pb.VTEP) (network.VTEP, error) {
	out := network.VTEP{Name: v.Name}
	err := compute.CheckName("VTEP", v.Name)
	if err != nil {
		return out, err
	}
	if out.CA, err = vnet.ParseCA(v.Ip); err != nil {
		return out, fmt.Errorf("%w address: %w", ErrInvalid, err)
	}
	if out.PA, err = vnet.ParsePA(v.Pa); err != nil {
		return out, fmt.Errorf("%w underlay address: %w", ErrInvalid, err)
	}
	if out.MAC, err = vnet.ParseMAC(v.Mac); err != nil {
		return out, fmt.Errorf("%w MAC: %w", ErrInvalid, err)
	}
	return out, nil
}

func vtepTo(m vnet.Moniker, v *network.VTEP) *pb.VTEP {
	return &pb.VTEP{Name: v.Name, Network: string(m), Ip: v.CA.String(), Pa: v.PA.String(), Mac: v.MAC.String()}
}

func (networksAPI) ListVTEPs(ctx context.Context, q *pb.ListVTEPsRequest) (*pb.ListVTEPsResponse, error) {
	c := callerOf(ctx)
	tenant, m, err := c.networkName(q.Tenant, q.Network)
	if err != nil {
		return nil, err
	}
	net, err := c.networks.Get(ctx, tenant, m)
	if err != nil {
		return nil, err
	}
	all, err := c.networks.VTEPs(ctx, &net.Value)
	r := &pb.ListVTEPsResponse{}
	for _, v := range all {
		r.Vteps = append(r.Vteps, vtepTo(m, &v))
	}
	return r, err
}

func (networksAPI) RemoveVTEP(ctx context.Context, q *pb.RemoveVTEPRequest) (*pb.RemoveVTEPResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	tenant, m, err := c.networkName(q.Tenant, q.Network)
	if err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) {
		net, err := c.networks.Get(ctx, tenant, m)
		if err != nil {
			return "", err
		}
		gone, err := c.networks.RemoveVTEP(ctx, &net.Value, q.Name)
		if err == nil {
			txn.Add(gone)
		}
		return q.Name, err
	})
	return &pb.RemoveVTEPResponse{}, err
}
