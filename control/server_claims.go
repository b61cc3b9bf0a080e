package control

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/control/resource"
	"replug/directory/store"
)

type claimsAPI struct {
	pb.UnimplementedClaimsServer
	s *Server
}

func (claimsAPI) CreateClaim(ctx context.Context, q *pb.CreateClaimRequest) (*pb.Claim, error) {
	c := callerOf(ctx)
	tenant, err := c.owner(q.Tenant)
	if err != nil {
		return nil, err
	}
	m, err := monikerFrom(q.Network)
	if err != nil {
		return nil, err
	}
	cas, err := casFrom(q.Ip, q.Ips)
	if err != nil {
		return nil, err
	}
	settings, err := settingsFrom(q.Settings)
	if err != nil {
		return nil, err
	}
	id, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		return c.composeClaim(ctx, resource.Claim{
			Tenant: tenant, Name: q.Name, Type: q.Type, Network: m, CAs: cas, Groups: q.Groups, Settings: settings, Data: q.DataDisks,
		}, txn)
	})
	if err != nil {
		return nil, err
	}
	return c.claimView(ctx, id)
}

// claimView reads a claim as callers see it.
func (c *caller) claimView(ctx context.Context, id string) (*pb.Claim, error) {
	row, err := c.tenants.GetClaim(ctx, id)
	if err == nil && !c.sees(row.Value.Tenant) {
		err = resource.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	claim := row.Value
	var view *pb.VM
	if claim.VM != "" {
		if view, err = c.vmView(ctx, claim.VM); err != nil && !errors.Is(err, compute.ErrNotFound) {
			return nil, err
		}
	}
	return claimTo(&claim, c.swapOf(&claim), view), nil
}

// swapOf returns the id of a claim's swap, also while it runs.
func (c *caller) swapOf(claim *resource.Claim) string {
	if rec, ok := c.swaps.Of(compute.PortName(claim.VM)); ok && rec.Claim == claim.ID {
		return rec.ID
	}
	return claim.Swap
}

func (claimsAPI) GetClaim(ctx context.Context, q *pb.GetClaimRequest) (*pb.Claim, error) {
	return callerOf(ctx).claimView(ctx, q.Id)
}

func (claimsAPI) ListClaims(ctx context.Context, q *pb.ListClaimsRequest) (*pb.ListClaimsResponse, error) {
	c := callerOf(ctx)
	tenant, err := c.tenant(q.Tenant)
	if err != nil {
		return nil, err
	}
	all, err := c.tenants.ListClaims(ctx, tenant)
	r := &pb.ListClaimsResponse{}
	for _, claim := range all {
		r.Claims = append(r.Claims, claimTo(&claim, c.swapOf(&claim), nil))
	}
	return r, err
}

func (claimsAPI) WatchClaim(q *pb.GetClaimRequest, ss grpc.ServerStreamingServer[pb.Claim]) error {
	ctx := ss.Context()
	c := callerOf(ctx)
	first, err := c.claimView(ctx, q.Id)
	if err != nil {
		return err
	}
	read := func() (*pb.Claim, bool, error) {
		v, err := c.claimView(ctx, first.Id)
		if err != nil {
			return nil, false, err
		}
		done := v.Phase == string(resource.Ready) || v.Phase == string(resource.Failed)
		return v, done, nil
	}
	return watch(ctx, c, read, ss.Send, resource.ClaimKey(first.Id), store.VMs, network.PortKey(""))
}
