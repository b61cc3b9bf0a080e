package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func vmClaim(c *caller) *cobra.Command {
	w := &wish{}
	cmd := &cobra.Command{Use: "claim NAME", Short: "Take a VM from the pool; from scratch if none is ready", Args: exact(1, "a NAME"),
		Example: "  replug vm claim web-1 --tenant acme --type small --network red --ip 10.0.0.10 --user ann --ssh-key ann.pub --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.read(); err != nil {
				return err
			}
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				client := pb.NewClaimsClient(conn)
				claim, err := client.CreateClaim(ctx, &pb.CreateClaimRequest{RequestId: c.id(), Tenant: c.tenant, Name: args[0],
					Type: w.kind, Network: w.network, Ips: w.ips, Groups: w.groups, Settings: &w.settings, DataDisks: w.dataDisks})
				if err != nil {
					return err
				}
				if w.wait {
					return c.watchClaim(ctx, cmd, client, claim.Id)
				}
				return c.print(cmd, claim, func() *table { return claims(claim) })
			})
		}}
	w.flags(cmd.Flags())
	return cmd
}

// watchClaim prints the live timeline until the claim is ready or failed.
func (c *caller) watchClaim(ctx context.Context, cmd *cobra.Command, client pb.ClaimsClient, id string) error {
	stream, err := client.WatchClaim(ctx, &pb.GetClaimRequest{Id: id})
	if err != nil {
		return err
	}
	line := newTimeline(cmd, c.output == "table")
	for {
		claim, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch claim %s (it goes on; see 'replug claim show %s'): %w", id, id, err)
		}
		line.show(claim.Timeline)
		if claim.Phase != "ready" && claim.Phase != "failed" {
			continue
		}
		if claim.Phase == "failed" {
			return outcomeError{fmt.Errorf("claim %s failed: %s", id, claim.Error), exitError}
		}
		return c.print(cmd, claim, func() *table { return claims(claim) })
	}
}

func claimCommand(c *caller) *cobra.Command {
	show := ask(c, question[*pb.Claim]{use: "show CLAIM", short: "Show one claim", example: "  replug claim show claim-7", args: exact(1, "a CLAIM"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Claim, error) {
			return pb.NewClaimsClient(conn).GetClaim(ctx, &pb.GetClaimRequest{Id: args[0]})
		},
		show: func(claim *pb.Claim) *table { return claims(claim) }})
	watch := &cobra.Command{Use: "watch CLAIM", Short: "Follow a claim until it has ended", Args: exact(1, "a CLAIM"), Example: "  replug claim watch claim-7",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				return c.watchClaim(ctx, cmd, pb.NewClaimsClient(conn), args[0])
			})
		}}
	ls := ask(c, question[*pb.ListClaimsResponse]{use: "list", short: "List claims", example: "  replug claim list\n  replug claim list --tenant acme", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListClaimsResponse, error) {
			return pb.NewClaimsClient(conn).ListClaims(ctx, &pb.ListClaimsRequest{Tenant: c.tenant})
		},
		show: func(r *pb.ListClaimsResponse) *table { return claims(r.Claims...) }})
	return noun("claim", "Claims: pooled VMs becoming a customer's", "  replug claim list", show, watch, ls)
}

func claims(cs ...*pb.Claim) *table {
	t := &table{head: []string{"CLAIM", "PHASE", "SOURCE", "VM", "NAME", "HOST", "NETWORK", "TRIES", "NOTE"}}
	for _, x := range cs {
		note := x.Note
		if x.Error != "" {
			note = x.Error
		}
		t.add(x.Id, x.Phase, x.Source, x.Vm, x.GetView().GetName(), x.GetView().GetHost(), x.GetView().GetPort().GetNetwork(), x.Tries, note)
	}
	return t
}
