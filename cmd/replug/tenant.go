package main

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func tenantCommand(c *caller) *cobra.Command {
	create := &cobra.Command{Use: "create NAME", Short: "Make a tenant", Args: exact(1, "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				t, err := pb.NewTenantsClient(conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: c.id(), Name: args[0]})
				if err != nil {
					return err
				}
				return c.print(cmd, t, func() *table { return tenants(t) })
			})
		}}
	ls := &cobra.Command{Use: "list", Short: "List tenants", Args: exact(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				r, err := pb.NewTenantsClient(conn).ListTenants(ctx, &pb.ListTenantsRequest{})
				if err != nil {
					return err
				}
				return c.print(cmd, r, func() *table { return tenants(r.Tenants...) })
			})
		}}
	del := &cobra.Command{Use: "delete NAME", Short: "Delete a tenant that owns nothing", Args: exact(1, "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				_, err := pb.NewTenantsClient(conn).DeleteTenant(ctx, &pb.DeleteTenantRequest{RequestId: c.id(), Name: args[0]})
				if err == nil {
					c.say(cmd, "tenant %s deleted", args[0])
				}
				return err
			})
		}}
	return noun("tenant", "Who owns networks and VMs", "  replug tenant create acme", create, ls, del)
}

func tenants(ts ...*pb.Tenant) *table {
	t := &table{head: []string{"TENANT"}}
	for _, x := range ts {
		t.add(x.Name)
	}
	return t
}
