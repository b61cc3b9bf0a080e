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
	create := &cobra.Command{Use: "create NAME", Short: "Make a VM type", Args: exact(1, "a NAME"),
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
	ls := &cobra.Command{Use: "list", Short: "List VM types", Args: exact(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				r, err := pb.NewVMTypesClient(conn).ListVMTypes(ctx, &pb.ListVMTypesRequest{})
				if err != nil {
					return err
				}
				return c.print(cmd, r, func() *table { return types(r.Types...) })
			})
		}}
	del := &cobra.Command{Use: "delete NAME", Short: "Delete a type without VMs", Args: exact(1, "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				_, err := pb.NewVMTypesClient(conn).DeleteVMType(ctx, &pb.DeleteVMTypeRequest{RequestId: c.id(), Name: args[0]})
				if err == nil {
					c.say(cmd, "type %s deleted", args[0])
				}
				return err
			})
		}}
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
	var size int32
	set := &cobra.Command{Use: "set TYPE --size N", Short: "Keep N VMs of a type ready", Args: exact(1, "a TYPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size < 0 {
				return usageError{errors.New("--size says how many are to be ready, 0 or more")}
			}
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				p, err := pb.NewPoolsClient(conn).SetPool(ctx, &pb.SetPoolRequest{RequestId: c.id(), Type: args[0], Size: size})
				if err != nil {
					return err
				}
				return c.print(cmd, p, func() *table { return pools(p) })
			})
		}}
	set.Flags().Int32Var(&size, "size", -1, "how many are to be ready")
	show := &cobra.Command{Use: "show TYPE", Short: "Show one pool", Args: exact(1, "a TYPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				p, err := pb.NewPoolsClient(conn).GetPool(ctx, &pb.GetPoolRequest{Type: args[0]})
				if err != nil {
					return err
				}
				return c.print(cmd, p, func() *table { return pools(p) })
			})
		}}
	ls := &cobra.Command{Use: "list", Short: "List pools", Args: exact(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				r, err := pb.NewPoolsClient(conn).ListPools(ctx, &pb.ListPoolsRequest{})
				if err != nil {
					return err
				}
				return c.print(cmd, r, func() *table { return pools(r.Pools...) })
			})
		}}
	return noun("pool", "Half-configured VMs that wait for a customer", "  replug pool set small --size 2", set, show, ls)
}

func pools(ps ...*pb.Pool) *table {
	t := &table{head: []string{"TYPE", "SIZE", "READY", "BOOTING", "ERROR"}}
	for _, p := range ps {
		t.add(p.Type, p.Size, p.Ready, p.Booting, p.Error)
	}
	return t
}
