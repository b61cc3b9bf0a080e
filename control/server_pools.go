package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	pb "replug/control/controlpb"
	"replug/control/pool"
	"replug/directory/store"
	"replug/directory/vnet"
)

type typesAPI struct {
	pb.UnimplementedVMTypesServer
	s *Server
}

func (typesAPI) CreateVMType(ctx context.Context, q *pb.CreateVMTypeRequest) (*pb.VMType, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	name, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		t, made, err := c.vms.CreateType(ctx, typeFrom(q.GetType()))
		if err == nil {
			txn.Add(made)
		}
		return t.Name, err
	})
	if err != nil {
		return nil, err
	}
	t, err := c.vms.GetType(ctx, name)
	return typeTo(&t), err
}

func (typesAPI) ListVMTypes(ctx context.Context, _ *pb.ListVMTypesRequest) (*pb.ListVMTypesResponse, error) {
	all, err := callerOf(ctx).vms.ListTypes(ctx)
	r := &pb.ListVMTypesResponse{}
	for _, t := range all {
		r.Types = append(r.Types, typeTo(&t))
	}
	return r, err
}

func (typesAPI) DeleteVMType(ctx context.Context, q *pb.DeleteVMTypeRequest) (*pb.DeleteVMTypeResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		if _, err := c.pools.Get(ctx, q.Name); err == nil {
			return "", fmt.Errorf("VM type %q: %w: it has a pool; set that to 0 first", q.Name, ErrNotSo)
		}
		gone, err := c.vms.DeleteType(ctx, q.Name)
		if err == nil {
			txn.Add(gone).Absent(pool.Key(q.Name))
		}
		return q.Name, err
	})
	return &pb.DeleteVMTypeResponse{}, err
}

type poolsAPI struct {
	pb.UnimplementedPoolsServer
	s *Server
}

func (poolsAPI) SetPool(ctx context.Context, q *pb.SetPoolRequest) (*pb.Pool, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	size, hold, err := poolFrom(q)
	if err != nil {
		return nil, err
	}
	_, err = c.once(ctx, q, func(txn *store.Txn) (string, error) { return q.Type, c.composePool(ctx, q.Type, size, hold, txn) })
	if err != nil {
		return nil, err
	}
	p, err := c.pools.Get(ctx, q.Type)
	if errors.Is(err, pool.ErrNotFound) { // its size is 0
		p, err = pool.Pool{Type: q.Type}, nil
	}
	if err != nil {
		return nil, err
	}
	return c.poolTo(ctx, p)
}

// warm is the API's word for the zero [vnet.Hold].
const warm = "warm"

// poolFrom reads what is said of a pool; nil: nothing.
func poolFrom(q *pb.SetPoolRequest) (size *int, hold *vnet.Hold, err error) {
	if q.Size == nil && q.Hold == "" {
		return nil, nil, fmt.Errorf("%w: nothing to set; say size or hold", ErrInvalid)
	}
	if q.Size != nil {
		size = new(int(*q.Size))
	}
	switch q.Hold {
	case "":
	case warm:
		hold = new(vnet.Hold(""))
	case string(vnet.HoldSnapshot):
		hold = new(vnet.HoldSnapshot)
	default:
		err = fmt.Errorf("%w hold %q: warm or snapshot", ErrInvalid, q.Hold)
	}
	return size, hold, err
}

func (c *caller) poolTo(ctx context.Context, p pool.Pool) (*pb.Pool, error) {
	n, err := c.pools.Count(ctx, p.Type)
	return &pb.Pool{Type: p.Type, Size: int32(p.Size), Ready: int32(n.Ready), Booting: int32(n.Booting), Error: n.Error,
		Hold: cmp.Or(string(p.Hold), warm)}, err
}

func (poolsAPI) GetPool(ctx context.Context, q *pb.GetPoolRequest) (*pb.Pool, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	p, err := c.pools.Get(ctx, q.Type)
	if err != nil {
		return nil, err
	}
	return c.poolTo(ctx, p)
}

func (poolsAPI) ListPools(ctx context.Context, _ *pb.ListPoolsRequest) (*pb.ListPoolsResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	all, err := c.pools.List(ctx)
	if err != nil {
		return nil, err
	}
	r := &pb.ListPoolsResponse{}
	for _, p := range all {
		one, err := c.poolTo(ctx, p)
		if err != nil {
			return nil, err
		}
		r.Pools = append(r.Pools, one)
	}
	return r, nil
}
