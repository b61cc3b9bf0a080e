package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/dataplane"
)

func portCommand(c *caller) *cobra.Command {
	show := ask(c, question[*pb.Port]{use: "show PORT", short: "Show one port", example: "  replug port show edge-7 --tenant acme", args: exact(1, "a PORT"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Port, error) {
			return pb.NewPortsClient(conn).GetPort(ctx, &pb.GetPortRequest{Tenant: c.tenant, Name: args[0]})
		},
		show: func(p *pb.Port) *table { return ports(p) }})
	ls := ask(c, question[*pb.ListPortsResponse]{use: "list", short: "List ports", example: "  replug port list\n  replug port list --tenant acme", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListPortsResponse, error) {
			return pb.NewPortsClient(conn).ListPorts(ctx, &pb.ListPortsRequest{Tenant: c.tenant})
		},
		show: func(r *pb.ListPortsResponse) *table { return ports(r.Ports...) }})
	detach := c.tell(order{use: "detach PORT", short: "Give an attached port back (operator)", example: "  replug port detach edge-7 --tenant acme", args: exact(1, "a PORT"), done: "port %s is being detached",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewPortsClient(conn).DetachPort(ctx, &pb.DetachPortRequest{RequestId: c.id(), Tenant: c.tenant, Name: name})
			return err
		}})
	move := swapStart(c, "swap PORT", func(r *pb.StartSwapRequest, name string) { r.Port = name })
	move.Short = "Move an attached port to another network"
	move.Example = "  replug port swap edge-7 --tenant acme --network blue --ip 10.0.0.21 --trigger none --wait"
	return noun("port", "VM NICs; also those of VMs that somebody else runs",
		"  replug port attach edge-7 --tenant acme --host h1 --tap tap3 --mac 02:00:5e:10:20:30 --monitor /run/vm3/qmp.sock --network red",
		portAttach(c), move, portGroup(c), portLimit(c), portSet(c), portSettings(c), detach, show, ls)
}

func portSettings(c *caller) *cobra.Command {
	return ask(c, question[*pb.Port]{use: "settings PORT|VM", short: "Show groups, services, limits, MTU of one port", example: "  replug port settings web-1 --tenant acme", args: exact(1, "a PORT or VM"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Port, error) {
			return pb.NewPortsClient(conn).GetPort(ctx, &pb.GetPortRequest{Tenant: c.tenant, Name: args[0]})
		},
		show: settings})
}

func portAttach(c *caller) *cobra.Command {
	r := &pb.AttachPortRequest{}
	cmd := &cobra.Command{Use: "attach PORT", Short: "Take over a tap that somebody else's orchestrator made (operator)", Args: exact(1, "a PORT"),
		Example: "  replug port attach edge-7 --tenant acme --host h1 --tap tap3 --mac 02:00:5e:10:20:30 --network red --ip 10.0.0.21",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.RequestId, r.Tenant, r.Name = c.id(), c.tenant, args[0]
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				p, err := pb.NewPortsClient(conn).AttachPort(ctx, r)
				if err != nil {
					return err
				}
				return c.print(cmd, p, func() *table { return ports(p) })
			})
		}}
	f := cmd.Flags()
	f.StringVar(&r.Host, "host", "", "host that has the tap")
	f.StringVar(&r.Tap, "tap", "", "name of the tap or veth there; never one that the host itself needs")
	f.StringVar(&r.Mac, "mac", "", "MAC of the guest's NIC")
	f.StringVar(&r.Monitor, "monitor", "", "QMP socket there, for bouncing the link (default: can't be bounced)")
	f.StringVar(&r.Network, "network", "", "moniker of the network")
	f.StringSliceVar(&r.Ips, "ip", nil, ipHelp)
	f.StringSliceVar(&r.Groups, "group", nil, groupHelp)
	f.BoolVar(&r.Router, "router", false, routerHelp)
	return cmd
}

func ports(ps ...*pb.Port) *table {
	t := &table{head: []string{"PORT", "TENANT", "HOST", "NETWORK", "VNI", "ADDRESS", "MAC", "PA", "EPOCH", "STATUS", "GROUPS", "ERROR"}}
	for _, p := range ps {
		t.add(p.Name, p.Tenant, p.Host, p.Network, p.Vni, strings.Join(p.Addrs, ","), p.Mac, p.Pa, p.Epoch, p.Status, strings.Join(p.Groups, ","), p.Error)
	}
	return t
}

func hostCommand(c *caller) *cobra.Command {
	ls := ask(c, question[*pb.ListHostsResponse]{use: "list", short: "List hosts", example: "  replug host list\n  replug host list -o json    with the images that each offers", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListHostsResponse, error) {
			return pb.NewHostsClient(conn).ListHosts(ctx, &pb.ListHostsRequest{})
		},
		show: func(r *pb.ListHostsResponse) *table { return hosts(r.Hosts...) }})
	del := c.tell(order{use: "delete HOST", short: "Forget a host without ports (operator)", example: "  replug host delete h2", args: exact(1, "a HOST"), done: "host %s deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewHostsClient(conn).DeleteHost(ctx, &pb.DeleteHostRequest{RequestId: c.id(), Name: name})
			return err
		}})
	return noun("host", "Hosts that have registered (operator), and the machine that this is", "  replug host list\n  replug host check --uplink eth0", ls, del, checkHost(c))
}

// checkHost looks at this machine; it asks no server.
func checkHost(c *caller) *cobra.Command {
	var bpffs, uplink, pas string
	cmd := &cobra.Command{
		Use: "check", Short: "Say what this machine lacks as a host, what that costs, and what to do", Args: exact(0, "no argument"),
		Example: "  replug host check\n  replug host check --uplink eth0 --pa-prefix 100.64.1.0/24",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var prefix netip.Prefix
			if pas != "" {
				p, err := netip.ParsePrefix(pas)
				if err != nil {
					return usageError{fmt.Errorf("--pa-prefix: %w", err)}
				}
				prefix = p
			}
			return dataplane.Report(cmd.OutOrStdout(), dataplane.Look(bpffs, uplink, prefix), c.output == "json")
		},
	}
	f := cmd.Flags()
	f.StringVar(&uplink, "uplink", "", "device to the underlay (default: that of the default route)")
	f.StringVar(&pas, "pa-prefix", "", "provider addresses that are routed to this host, as given to its agent (default: its own address)")
	f.StringVar(&bpffs, "bpffs", "/sys/fs/bpf", "a mounted bpf filesystem")
	return cmd
}

func hosts(hs ...*pb.Host) *table {
	t := &table{head: []string{"HOST", "CONNECTED", "ADDRESS", "PA PREFIX", "MTU", "PORTS", "MEMORY MIB", "VERSION"}}
	for _, h := range hs {
		t.add(h.Name, h.Connected, h.Address, h.PaPrefix, h.Mtu, fmt.Sprintf("%d/%d", h.PortsUsed, h.Ports),
			fmt.Sprintf("%d/%d", h.MemoryUsedMib, h.MemoryMib), h.Version)
	}
	return t
}
