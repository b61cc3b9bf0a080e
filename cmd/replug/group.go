package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func groupCommand(c *caller) *cobra.Command {
	var network string
	show := ask(c, question[*pb.Group]{use: "show NAME", short: "Show the rules of one security group", example: "  replug group show web --tenant acme --network blue", args: exact(1, "a NAME"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Group, error) {
			return pb.NewGroupsClient(conn).GetGroup(ctx, &pb.GetGroupRequest{Tenant: c.tenant, Network: network, Name: args[0]})
		},
		show: rules})
	ls := ask(c, question[*pb.ListGroupsResponse]{use: "list", short: "List the security groups of a network", example: "  replug group list --tenant acme --network blue", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListGroupsResponse, error) {
			return pb.NewGroupsClient(conn).ListGroups(ctx, &pb.ListGroupsRequest{Tenant: c.tenant, Network: network})
		},
		show: func(r *pb.ListGroupsResponse) *table { return groups(r.Groups...) }})
	del := c.tell(order{use: "delete NAME", short: "Delete a security group that nobody is in", example: "  replug group delete web --tenant acme --network blue", args: exact(1, "a NAME"), done: "security group %s deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewGroupsClient(conn).DeleteGroup(ctx, &pb.DeleteGroupRequest{RequestId: c.id(), Tenant: c.tenant, Network: network, Name: name})
			return err
		}})
	inNetwork(&network, show, ls, del)
	create := groupRules(c, "create NAME", "Make a security group", func(ctx context.Context, client pb.GroupsClient, q *pb.SetRulesRequest) (*pb.Group, error) {
		return client.CreateGroup(ctx, &pb.CreateGroupRequest{RequestId: q.RequestId, Tenant: q.Tenant, Network: q.Network, Name: q.Name, Rules: q.Rules})
	})
	var none bool
	set := groupRules(c, "set NAME", "Replace all rules of a security group at once", func(ctx context.Context, client pb.GroupsClient, q *pb.SetRulesRequest) (*pb.Group, error) {
		if none != (len(q.Rules) == 0) {
			return nil, usageError{errors.New("say the rules that the group is to have, by --rule or --rules, or --none: it has none then, and its members get nothing in")}
		}
		return client.SetRules(ctx, q)
	})
	set.Flags().BoolVar(&none, "none", false, "take all rules away")
	return noun("group", "Security groups: rules, and names for the VMs that have them",
		`  replug group create web --tenant acme --network blue --rule "100 https in allow tcp/443 from any" --rule "200 ssh in allow tcp/22 from group:admins"`,
		create, set, show, ls, del)
}

// groupRules is a verb that says all rules of a group.
func groupRules(c *caller, use, short string, f func(context.Context, pb.GroupsClient, *pb.SetRulesRequest) (*pb.Group, error)) *cobra.Command {
	q := &pb.SetRulesRequest{}
	var lines []string
	var file string
	verb, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{Use: use, Short: short, Args: exact(1, "a NAME"),
		Example: "  replug group " + verb + ` web --tenant acme --network blue --rule "100 https in allow tcp/443 from any" --rule "900 no-smtp out deny tcp/25"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if q.Rules, err = readRules(lines, file); err != nil {
				return err
			}
			q.RequestId, q.Tenant, q.Name = c.id(), c.tenant, args[0]
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				g, err := f(ctx, pb.NewGroupsClient(conn), q)
				if err != nil {
					return err
				}
				return c.print(cmd, g, func() *table { return rules(g) })
			})
		}}
	inNetwork(&q.Network, cmd)
	cmd.Flags().StringArrayVar(&lines, "rule", nil, ruleSyntax)
	cmd.Flags().StringVar(&file, "rules", "", "file with one rule a line, - for standard input")
	return cmd
}

func groups(gs ...*pb.Group) *table {
	t := &table{head: []string{"GROUP", "NETWORK", "RULES", "GENERATION", "MEMBERS"}}
	for _, g := range gs {
		t.add(g.Name, g.Network, len(g.Rules), g.Generation, strings.Join(g.Ports, ","))
	}
	return t
}

// rules shows the rules of a group in the order in which they decide.
func rules(g *pb.Group) *table {
	t := &table{head: []string{"PRIORITY", "RULE", "DIRECTION", "ACTION", "WHAT", "WHOM"}}
	sorted := slices.Clone(g.Rules)
	slices.SortStableFunc(sorted, func(a, b *pb.Rule) int {
		if a.Priority != b.Priority {
			return int(a.Priority) - int(b.Priority)
		}
		return strings.Compare(b.Action, a.Action) // deny before allow
	})
	for _, r := range sorted {
		t.add(r.Priority, r.Name, r.Direction, r.Action, what(r), whom(r))
	}
	return t
}
