package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func typeCommand(c *caller) *cobra.Command {
	v := pb.VMType{}
	create := &cobra.Command{Use: "create NAME", Short: "Make a VM type (operator)", Args: exact(1, "a NAME"),
		Example: "  replug type create small --image tiny --cpus 1 --memory 128",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.Name = args[0]
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				made, err := pb.NewVMTypesClient(conn).CreateVMType(ctx, &pb.CreateVMTypeRequest{RequestId: c.id(), Type: &v})
				if err != nil {
					return err
				}
				return c.print(cmd, made, func() *table { return types(made) })
			})
		}}
	f := create.Flags()
	f.Int32Var(&v.Cpus, "cpus", 1, "virtual CPUs")
	f.Int32Var(&v.MemoryMib, "memory", 256, "MiB")
	f.StringVar(&v.Image, "image", "", "image in the hosts' image repository")
	f.StringVar(&v.Os, "os", "linux", "linux or windows")
	f.StringVar(&v.Storage, "storage", "standard", "standard or premium")
	f.StringVar(&v.Routing, "routing", "ipv4", "ipv4, ipv6 or dual: a swap never changes it")
	f.Int64Var(&v.DiskBytes, "disk", 0, "OS disk in bytes (default: the image's)")
	ls := ask(c, question[*pb.ListVMTypesResponse]{use: "list", short: "List VM types", example: "  replug type list", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListVMTypesResponse, error) {
			return pb.NewVMTypesClient(conn).ListVMTypes(ctx, &pb.ListVMTypesRequest{})
		},
		show: func(r *pb.ListVMTypesResponse) *table { return types(r.Types...) }})
	del := c.tell(order{use: "delete NAME", short: "Delete a type without VMs (operator)", example: "  replug type delete small", args: exact(1, "a NAME"), done: "type %s deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewVMTypesClient(conn).DeleteVMType(ctx, &pb.DeleteVMTypeRequest{RequestId: c.id(), Name: name})
			return err
		}})
	return noun("type", "What a VM can't change without a reboot", "  replug type create small --image tiny --cpus 1 --memory 128", create, ls, del)
}

func types(ts ...*pb.VMType) *table {
	t := &table{head: []string{"TYPE", "CPUS", "MEMORY MIB", "IMAGE", "OS", "STORAGE", "ROUTING"}}
	for _, v := range ts {
		t.add(v.Name, v.Cpus, v.MemoryMib, v.Image, v.Os, v.Storage, v.Routing)
	}
	return t
}

func poolCommand(c *caller) *cobra.Command {
	show := ask(c, question[*pb.Pool]{use: "show TYPE", short: "Show one pool", example: "  replug pool show small", args: exact(1, "a TYPE"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Pool, error) {
			return pb.NewPoolsClient(conn).GetPool(ctx, &pb.GetPoolRequest{Type: args[0]})
		},
		show: func(p *pb.Pool) *table { return pools(p) }})
	ls := ask(c, question[*pb.ListPoolsResponse]{use: "list", short: "List pools", example: "  replug pool list", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListPoolsResponse, error) {
			return pb.NewPoolsClient(conn).ListPools(ctx, &pb.ListPoolsRequest{})
		},
		show: func(r *pb.ListPoolsResponse) *table { return pools(r.Pools...) }})
	return noun("pool", "Half-configured VMs that wait for a customer (operator)", "  replug pool set small --size 2", poolSet(c), show, ls)
}

func poolSet(c *caller) *cobra.Command {
	q := &pb.SetPoolRequest{}
	var size int32
	cmd := &cobra.Command{Use: "set TYPE --size N", Short: "Keep N VMs of a type ready, or change how they wait; what is not said stays", Args: exact(1, "a TYPE"),
		Example: "  replug pool set small --size 4\n  replug pool set small --hold snapshot\n  replug pool set small --size 0    no pool any more",
		RunE: func(cmd *cobra.Command, args []string) error {
			q.RequestId, q.Type, q.Size = c.id(), args[0], given(cmd.Flags(), "size", size)
			if q.Size == nil && q.Hold == "" || q.GetSize() < 0 {
				return usageError{errors.New("--size says how many are to be ready, 0 or more; --hold how they wait")}
			}
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				p, err := pb.NewPoolsClient(conn).SetPool(ctx, q)
				if err != nil {
					return err
				}
				return c.print(cmd, p, func() *table { return pools(p) })
			})
		}}
	cmd.Flags().StringVar(&q.Hold, "hold", "", "how they wait: warm (they run), or snapshot (saved on disk, resumed at the claim) (default: as they do, at first warm)")
	cmd.Flags().Int32Var(&size, "size", 0, "how many are to be ready (default: as many as it is; 0: no pool any more)")
	return cmd
}

func pools(ps ...*pb.Pool) *table {
	t := &table{head: []string{"TYPE", "SIZE", "READY", "BOOTING", "HOLD", "ERROR"}}
	for _, p := range ps {
		t.add(p.Type, p.Size, p.Ready, p.Booting, p.Hold, p.Error)
	}
	return t
}
