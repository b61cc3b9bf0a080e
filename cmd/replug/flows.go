package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func flowsCommand(c *caller) *cobra.Command {
	return ask(c, question[*pb.ListFlowsResponse]{use: "flows PORT", short: "List the live flows of a VM or port", example: "  replug flows web-1 --tenant acme", args: exact(1, "a PORT (or VM)"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.ListFlowsResponse, error) {
			s, err := pb.NewDiagnosticsClient(conn).ListFlows(ctx, &pb.ListFlowsRequest{Tenant: c.tenant, Port: args[0]})
			all := &pb.ListFlowsResponse{}
			for err == nil {
				var part *pb.ListFlowsResponse
				if part, err = s.Recv(); err == nil {
					all.Flows = append(all.Flows, part.Flows...)
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return all, err
		},
		show: func(r *pb.ListFlowsResponse) *table { return flows(r) }})
}

func flows(r *pb.ListFlowsResponse) *table {
	t := &table{head: []string{"PROTOCOL", "LOCAL", "DIRECTION", "REMOTE", "STATE", "AGE", "IDLE", "PACKETS", "BYTES"}}
	for _, f := range r.Flows {
		direction := "out"
		if f.Inbound {
			direction = "in"
		}
		t.add(f.Protocol, f.Local, direction, f.Remote, f.State, rounded(f.Age.AsDuration()), rounded(f.Idle.AsDuration()), f.Packets, f.Bytes)
	}
	return t
}

func rounded(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}
