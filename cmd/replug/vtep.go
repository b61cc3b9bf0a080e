package main

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func vtepCommand(c *caller) *cobra.Command {
	var v pb.VTEP
	add := ask(c, question[*pb.VTEP]{use: "add NAME", short: "Make a VXLAN endpoint that is no host of ours a member of a network (operator)", args: exact(1, "a NAME"),
		example: "  replug vtep add edge --tenant acme --network blue --ip 10.0.0.4 --pa 192.0.2.7 --mac 02:00:5e:10:20:30",
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.VTEP, error) {
			v.Name = args[0]
			return pb.NewNetworksClient(conn).AddVTEP(ctx, &pb.AddVTEPRequest{RequestId: c.id(), Tenant: c.tenant, Vtep: &v})
		},
		show: func(v *pb.VTEP) *table { return vteps(v) }})
	f := add.Flags()
	f.StringVar(&v.Network, "network", "", "moniker of the network")
	f.StringVar(&v.Ip, "ip", "", "its address in the network")
	f.StringVar(&v.Pa, "pa", "", "its address in the underlay")
	f.StringVar(&v.Mac, "mac", "", "MAC of the machine behind it, as inner frames have it")
	var network string
	ls := ask(c, question[*pb.ListVTEPsResponse]{use: "list", short: "List the VTEPs of a network", args: exact(0, "no argument"), example: "  replug vtep list --tenant acme --network blue",
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListVTEPsResponse, error) {
			return pb.NewNetworksClient(conn).ListVTEPs(ctx, &pb.ListVTEPsRequest{Tenant: c.tenant, Network: network})
		},
		show: func(r *pb.ListVTEPsResponse) *table { return vteps(r.Vteps...) }})
	remove := c.tell(order{use: "remove NAME", short: "Take a VTEP out of a network (operator)", example: "  replug vtep remove edge --tenant acme --network blue", args: exact(1, "a NAME"), done: "VTEP %s removed",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewNetworksClient(conn).RemoveVTEP(ctx, &pb.RemoveVTEPRequest{RequestId: c.id(), Tenant: c.tenant, Network: network, Name: name})
			return err
		}})
	inNetwork(&network, ls, remove)
	return noun("vtep", "VXLAN endpoints that are no hosts of ours", "  replug vtep add edge --tenant acme --network blue --ip 10.0.0.4 --pa 192.0.2.7 --mac 02:00:5e:10:20:30", add, ls, remove)
}

// inNetwork gives commands the flag that names the network they are about.
func inNetwork(network *string, cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().StringVar(network, "network", "", "moniker of the network")
	}
}

func vteps(vs ...*pb.VTEP) *table {
	t := &table{head: []string{"VTEP", "NETWORK", "ADDRESS", "PA", "MAC"}}
	for _, v := range vs {
		t.add(v.Name, v.Network, v.Ip, v.Pa, v.Mac)
	}
	return t
}
