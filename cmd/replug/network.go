package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
)

func networkCommand(c *caller) *cobra.Command {
	show := ask(c, question[*pb.Network]{use: "show MONIKER", short: "Show one network", example: "  replug network show blue --tenant acme", args: exact(1, "a MONIKER"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Network, error) {
			return pb.NewNetworksClient(conn).GetNetwork(ctx, &pb.GetNetworkRequest{Tenant: c.tenant, Moniker: args[0]})
		},
		show: func(n *pb.Network) *table { return networks(n) }})
	ls := ask(c, question[*pb.ListNetworksResponse]{use: "list", short: "List networks", example: "  replug network list\n  replug network list --tenant acme", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListNetworksResponse, error) {
			return pb.NewNetworksClient(conn).ListNetworks(ctx, &pb.ListNetworksRequest{Tenant: c.tenant})
		},
		show: func(r *pb.ListNetworksResponse) *table { return networks(r.Networks...) }})
	del := c.tell(order{use: "delete MONIKER", short: "Delete a network that nothing refers to", example: "  replug network delete blue --tenant acme", args: exact(1, "a MONIKER"), done: "network %s deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewNetworksClient(conn).DeleteNetwork(ctx, &pb.DeleteNetworkRequest{RequestId: c.id(), Tenant: c.tenant, Moniker: name})
			return err
		}})
	return noun("network", "Virtual networks, by moniker", "  replug network create blue --tenant acme --subnet 10.0.0.0/24 --dns 10.0.0.53",
		networkCreate(c), show, ls, del, networkSubnet(c), routeCommand(c), networkPeer(c), networkUnpeer(c), networkFlowLog(c))
}

func networkCreate(c *caller) *cobra.Command {
	var n pb.Network
	var subnets, routes []string
	var lease time.Duration
	var slaac bool
	cmd := &cobra.Command{Use: "create MONIKER", Short: "Make a virtual network", Args: exact(1, "a MONIKER"),
		Example: "  replug network create blue --tenant acme --subnet 10.0.0.0/24 --subnet fd00:17::/64 --route 0.0.0.0/0=10.0.0.4",
		RunE: func(cmd *cobra.Command, args []string) error {
			n.Moniker, n.Tenant = args[0], c.tenant
			for _, s := range subnets {
				n.Subnets = append(n.Subnets, subnet(s, slaac))
			}
			for _, s := range routes {
				prefix, hop, ok := strings.Cut(s, "=")
				if !ok {
					return usageError{fmt.Errorf("--route is PREFIX=NEXTHOP, not %q", s)}
				}
				n.Routes = append(n.Routes, &pb.Route{Prefix: prefix, NextHop: hop})
			}
			if lease > 0 {
				n.Lease = durationpb.New(lease)
			}
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				made, err := pb.NewNetworksClient(conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: c.id(), Network: &n})
				if err != nil {
					return err
				}
				return c.print(cmd, made, func() *table { return networks(made) })
			})
		}}
	f := cmd.Flags()
	f.StringSliceVar(&subnets, "subnet", nil, "PREFIX or PREFIX=GATEWAY, IPv4 or IPv6 (default gateway: the first address, of IPv6 always link-local)")
	f.StringSliceVar(&routes, "route", nil, "PREFIX=NEXTHOP, the next hop is the address of a VM or VTEP of the network; 0.0.0.0/0 and ::/0 are its way out")
	f.StringSliceVar(&n.Dns, "dns", nil, "name servers that DHCP hands out, 4 of a family at most")
	f.StringSliceVar(&n.Ntp, "ntp", nil, "time servers that DHCP hands out, 4 of a family at most")
	f.StringVar(&n.Domain, "domain", "", "domain name that DHCP hands out")
	f.Uint32Var(&n.Mtu, "mtu", 0, "bytes of a guest's IP packet (default: what the underlay leaves)")
	f.Uint32Var(&n.Vni, "vni", 0, "VXLAN network identifier (default: the next free one)")
	f.BoolVar(&slaac, "slaac", false, slaacHelp)
	f.BoolVar(&n.FlowLog, "flow-log", false, "log the flows of its ports")
	f.DurationVar(&lease, "lease", 0, "lease time (default 24h)")
	return cmd
}

func networks(ns ...*pb.Network) *table {
	t := &table{head: []string{"NETWORK", "TENANT", "VNI", "SUBNETS", "GATEWAYS", "MTU", "DNS", "ROUTES", "PEERS", "FLOW LOG"}}
	for _, n := range ns {
		var prefixes, gateways []string
		for _, s := range n.Subnets {
			prefixes, gateways = append(prefixes, s.Prefix), append(gateways, s.Gateway)
		}
		var routes, peers []string
		for _, r := range n.Routes {
			routes = append(routes, r.Prefix+"="+r.NextHop)
		}
		for _, p := range n.Peers {
			peers = append(peers, p.Network)
		}
		log := "off"
		if n.FlowLog {
			log = "on"
		}
		mtu := "underlay"
		if n.Mtu > 0 {
			mtu = fmt.Sprint(n.Mtu)
		}
		t.add(n.Moniker, n.Tenant, n.Vni, strings.Join(prefixes, ","), strings.Join(gateways, ","), mtu, strings.Join(n.Dns, ","),
			strings.Join(routes, ","), strings.Join(peers, ","), log)
	}
	return t
}
