package main

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func tenantCommand(c *caller) *cobra.Command {
	create := ask(c, question[*pb.Tenant]{use: "create NAME", short: "Make a tenant (operator)", example: "  replug tenant create acme", args: exact(1, "a NAME"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Tenant, error) {
			return pb.NewTenantsClient(conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: c.id(), Name: args[0]})
		},
		show: func(t *pb.Tenant) *table { return tenants(t) }})
	ls := ask(c, question[*pb.ListTenantsResponse]{use: "list", short: "List tenants", example: "  replug tenant list", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListTenantsResponse, error) {
			return pb.NewTenantsClient(conn).ListTenants(ctx, &pb.ListTenantsRequest{})
		},
		show: func(r *pb.ListTenantsResponse) *table { return tenants(r.Tenants...) }})
	del := c.tell(order{use: "delete NAME", short: "Delete a tenant that owns nothing (operator)", example: "  replug tenant delete acme", args: exact(1, "a NAME"), done: "tenant %s deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewTenantsClient(conn).DeleteTenant(ctx, &pb.DeleteTenantRequest{RequestId: c.id(), Name: name})
			return err
		}})
	return noun("tenant", "Who owns networks and VMs", "  replug tenant create acme", create, ls, del)
}

func tenants(ts ...*pb.Tenant) *table {
	t := &table{head: []string{"TENANT"}}
	for _, x := range ts {
		t.add(x.Name)
	}
	return t
}
