package control

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

type swapsAPI struct {
	pb.UnimplementedSwapsServer
	s *Server
}

// swapRequest reads and completes what the caller wants swapped.
func (c *caller) swapRequest(ctx context.Context, q *pb.StartSwapRequest) (swap.Request, error) {
	out, err := swapFrom(q)
	if err != nil {
		return out, err
	}
	if out.Tenant, err = c.tenant(q.Tenant); err != nil {
		return out, err
	}
	if q.Port == "" {
		return out, nil
	}
	p, err := c.findPort(ctx, q.Tenant, q.Port)
	out.Port = p.Name
	return out, err
}

func (swapsAPI) PlanSwap(ctx context.Context, q *pb.StartSwapRequest) (*pb.Plan, error) {
	c := callerOf(ctx)
	want, err := c.swapRequest(ctx, q)
	if err != nil {
		return nil, err
	}
	rec, err := c.swaps.Plan(ctx, want)
	if err != nil {
		return nil, err
	}
	seats, err := c.seatsOf(ctx, rec.Before.VNI, rec.Port)
	if err != nil {
		return nil, err
	}
	plan := &pb.Plan{
		Vm: rec.VM, Port: rec.Port, Changes: changesOf(&rec, seats),
		Keeps: []string{"mac " + rec.MAC.String(), "pa " + rec.PA.String(), "host " + rec.Host},
	}
	if rec.VM != "" {
		plan.Keeps = append(plan.Keeps, "disks", "boot id")
	}
	if plan.PeersLost, err = c.peers(ctx, &rec.Before, rec.Port); err != nil {
		return nil, err
	}
	if plan.PeersNew, err = c.peers(ctx, &rec.After, rec.Port); err != nil {
		return nil, err
	}
	if rec.Before.VNI == rec.After.VNI {
		plan.PeersLost, plan.PeersNew = nil, nil
	}
	plan.Warnings = c.warnings(&rec)
	return plan, nil
}

// peers returns the CAs of a place's network that other ports have.
func (r *reign) peers(ctx context.Context, p *vnet.Place, port string) ([]string, error) {
	rows, _, err := store.List[vnet.Mapping](ctx, r.store, store.NetworkMappings(p.VNI))
	var out []string
	for _, m := range rows {
		if m.Value.Port != port {
			out = append(out, m.Value.CA.String())
		}
	}
	return out, err
}

// warnings says what may surprise whoever starts the swap.
func (r *reign) warnings(rec *swap.Record) []string {
	var out []string
	if live, ok := r.swaps.Of(rec.Port); ok {
		out = append(out, fmt.Sprintf("swap %s of it runs (%s): until that has ended this one is refused, and it may start from another place then; wait for it or cancel it", live.ID, live.Phase))
	}
	if !r.connected(rec.Host) {
		out = append(out, fmt.Sprintf("host %s is not connected: the swap would end undone after %s", rec.Host, rec.Budgets.Stage))
	}
	if rec.After.MTU != rec.Before.MTU {
		out = append(out, "the MTU changes: a guest that does not take it over by DHCP loses large frames")
	}
	if rec.Confirm == vnet.ConfirmLease {
		out = append(out, "only the guest's new address is proof: a guest that fails to apply its new settings is not noticed")
	}
	if len(rec.Before.Groups) > 0 && len(rec.After.Groups) == 0 {
		out = append(out, "it leaves its security groups and is in none of network "+string(rec.After.Network)+": all will pass")
	}
	return append(out, "connections that are open now "+fateOf(rec))
}

// fateOf says what becomes of the connections that a port has before a swap.
func fateOf(rec *swap.Record) string {
	switch rec.OldConnections {
	case vnet.DrainConnections:
		return fmt.Sprintf("have %s to end, the flip waits for them; then both ends get a reset", rec.Drain)
	case vnet.SilenceConnections:
		return "are left to time out, neither end is told"
	}
	return "are reset, both ends at once"
}

func (swapsAPI) StartSwap(ctx context.Context, q *pb.StartSwapRequest) (*pb.Swap, error) {
	c := callerOf(ctx)
	if err := checkRequest(q.RequestId); err != nil {
		return nil, err
	}
	want, err := c.swapRequest(ctx, q)
	if err != nil {
		return nil, err
	}
	want.ID = c.scope() + "/" + q.RequestId
	rec, err := c.swaps.Start(ctx, want)
	return swapTo(&rec), err
}

// swap reads a swap that the caller may see.
func (c *caller) swap(ctx context.Context, id string) (swap.Record, error) {
	missing := fmt.Errorf("swap %q: %w; list the swaps there are; an ended one is kept for a day, of a tenant with very many not so long", id, ErrMissing)
	rec, err := c.swaps.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) || err == nil && !c.sees(rec.Tenant) {
		return rec, missing
	}
	return rec, err
}

func (swapsAPI) GetSwap(ctx context.Context, q *pb.GetSwapRequest) (*pb.Swap, error) {
	rec, err := callerOf(ctx).swap(ctx, q.Id)
	if err != nil {
		return nil, err
	}
	return swapTo(&rec), nil
}

func (swapsAPI) ListSwaps(ctx context.Context, q *pb.ListSwapsRequest) (*pb.ListSwapsResponse, error) {
	c := callerOf(ctx)
	tenant, err := c.tenant(q.Tenant)
	if err != nil {
		return nil, err
	}
	all, err := c.swaps.List(ctx)
	r := &pb.ListSwapsResponse{}
	for _, rec := range all {
		if tenant == "" || rec.Tenant == tenant {
			r.Swaps = append(r.Swaps, swapTo(&rec))
		}
	}
	return r, err
}

func (swapsAPI) WatchSwap(q *pb.GetSwapRequest, ss grpc.ServerStreamingServer[pb.Swap]) error {
	c := callerOf(ss.Context())
	if _, err := c.swap(ss.Context(), q.Id); err != nil {
		return err
	}
	return c.swaps.Watch(ss.Context(), q.Id, func(r swap.Record) error { return ss.Send(swapTo(&r)) })
}

// ConfirmSwap and CancelSwap need no memory of their request ids: the swap's phase
// says whether the call was made, and making it again changes nothing.
func (swapsAPI) ConfirmSwap(ctx context.Context, q *pb.ConfirmSwapRequest) (*pb.Swap, error) {
	c := callerOf(ctx)
	if err := checkRequest(q.RequestId); err != nil {
		return nil, err
	}
	if _, err := c.swap(ctx, q.Id); err != nil {
		return nil, err
	}
	rec, err := c.swaps.Confirm(ctx, q.Id)
	return swapTo(&rec), err
}

func (swapsAPI) CancelSwap(ctx context.Context, q *pb.CancelSwapRequest) (*pb.Swap, error) {
	c := callerOf(ctx)
	if err := checkRequest(q.RequestId); err != nil {
		return nil, err
	}
	if _, err := c.swap(ctx, q.Id); err != nil {
		return nil, err
	}
	rec, err := c.swaps.Cancel(ctx, q.Id, "cancelled by "+string(c.who.Kind)+" "+c.who.Name)
	return swapTo(&rec), err
}
