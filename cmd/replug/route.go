package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

// networkVerb is a verb that changes a live network and shows it.
func networkVerb(c *caller, use, short, example string, args cobra.PositionalArgs,
	f func(context.Context, pb.NetworksClient, []string) (*pb.Network, error)) *cobra.Command {
	return ask(c, question[*pb.Network]{use: use, short: short, example: example, args: args,
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Network, error) {
			return f(ctx, pb.NewNetworksClient(conn), args)
		},
		show: func(n *pb.Network) *table { return networks(n) }})
}

func routeCommand(c *caller) *cobra.Command {
	add := networkVerb(c, "add MONIKER PREFIX NEXTHOP", "Send a prefix to a VM or VTEP of the network",
		"  replug network route add blue 10.9.0.0/16 10.0.0.4 --tenant acme\n  replug network route add blue 0.0.0.0/0 10.0.0.4 --tenant acme    the way out", exact(3, "a MONIKER, a PREFIX and the NEXTHOP's address"),
		func(ctx context.Context, client pb.NetworksClient, a []string) (*pb.Network, error) {
			return client.AddRoute(ctx, &pb.AddRouteRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: a[0], Route: &pb.Route{Prefix: a[1], NextHop: a[2]}})
		})
	remove := networkVerb(c, "remove MONIKER PREFIX", "Send a prefix nowhere any more", "  replug network route remove blue 10.9.0.0/16 --tenant acme", exact(2, "a MONIKER and a PREFIX"),
		func(ctx context.Context, client pb.NetworksClient, a []string) (*pb.Network, error) {
			return client.RemoveRoute(ctx, &pb.RemoveRouteRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: a[0], Prefix: a[1]})
		})
	ls := ask(c, question[*pb.Network]{use: "list MONIKER", short: "List the routes of a network, those to peers too", example: "  replug network route list blue --tenant acme", args: exact(1, "a MONIKER"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Network, error) {
			return pb.NewNetworksClient(conn).GetNetwork(ctx, &pb.GetNetworkRequest{Tenant: c.tenant, Moniker: args[0]})
		},
		show: routes})
	return noun("route", "Routes of a live network", "  replug network route add blue 0.0.0.0/0 10.0.0.4 --tenant acme", add, remove, ls)
}

func routes(n *pb.Network) *table {
	t := &table{head: []string{"PREFIX", "VIA", "KIND"}}
	for _, s := range n.Subnets {
		t.add(s.Prefix, "", "subnet")
	}
	for _, r := range n.Routes {
		t.add(r.Prefix, r.NextHop, "static")
	}
	for _, p := range n.Peers {
		for _, prefix := range p.Prefixes {
			t.add(prefix, p.Network, "peer")
		}
	}
	return t
}

func networkPeer(c *caller) *cobra.Command {
	return networkVerb(c, "peer MONIKER OTHER", "Let two networks of a tenant reach one another", "  replug network peer blue red --tenant acme", exact(2, "two MONIKERs"),
		func(ctx context.Context, client pb.NetworksClient, a []string) (*pb.Network, error) {
			return client.Peer(ctx, &pb.PeerRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: a[0], Peer: a[1]})
		})
}

func networkUnpeer(c *caller) *cobra.Command {
	return networkVerb(c, "unpeer MONIKER OTHER", "End what peer has begun", "  replug network unpeer blue red --tenant acme", exact(2, "two MONIKERs"),
		func(ctx context.Context, client pb.NetworksClient, a []string) (*pb.Network, error) {
			return client.Unpeer(ctx, &pb.UnpeerRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: a[0], Peer: a[1]})
		})
}

func networkFlowLog(c *caller) *cobra.Command {
	return networkVerb(c, "flow-log MONIKER on|off", "Log the flows of the network's ports, or don't", "  replug network flow-log blue on --tenant acme", onOff,
		func(ctx context.Context, client pb.NetworksClient, a []string) (*pb.Network, error) {
			return client.SetFlowLog(ctx, &pb.SetFlowLogRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: a[0], On: a[1] == "on"})
		})
}

// onOff asks for a name and on or off.
func onOff(cmd *cobra.Command, args []string) error {
	if len(args) != 2 || args[1] != "on" && args[1] != "off" {
		return usageError{fmt.Errorf("%s needs a name, and on or off", cmd.CommandPath())}
	}
	return nil
}

const slaacHelp = "in IPv6 subnets, which are /64, guests make their address themselves, of their MAC (default: they ask by DHCPv6)"

func networkSubnet(c *caller) *cobra.Command {
	var slaac bool
	add := networkVerb(c, "add MONIKER PREFIX[=GATEWAY]", "Give a network one more subnet", "  replug network subnet add blue fd00:17::/64 --tenant acme", exact(2, "a MONIKER and a PREFIX"),
		func(ctx context.Context, client pb.NetworksClient, a []string) (*pb.Network, error) {
			return client.AddSubnet(ctx, &pb.AddSubnetRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: a[0], Subnet: subnet(a[1], slaac)})
		})
	add.Flags().BoolVar(&slaac, "slaac", false, slaacHelp)
	return noun("subnet", "Subnets of a live network", "  replug network subnet add blue fd00:17::/64 --tenant acme", add)
}

// subnet reads PREFIX[=GATEWAY]. IPv4 has no SLAAC.
func subnet(s string, slaac bool) *pb.Subnet {
	prefix, gateway, _ := strings.Cut(s, "=")
	return &pb.Subnet{Prefix: prefix, Gateway: gateway, Slaac: slaac && strings.Contains(prefix, ":")}
}
