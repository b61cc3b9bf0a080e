package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func clusterCommand(c *caller) *cobra.Command {
	show := ask(c, question[*pb.ClusterInfo]{use: "show", short: "Show the cluster's identity and leader", example: "  replug cluster show", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ClusterInfo, error) {
			return pb.NewAdminClient(conn).GetCluster(ctx, &pb.GetClusterRequest{})
		},
		show: func(i *pb.ClusterInfo) *table {
			t := &table{head: []string{"CLUSTER", "ERA", "REVISION", "LEADER", "STORE TXNS"}}
			t.add(i.Id, i.Era, i.Revision, i.Leader, i.StoreTxns)
			return t
		}})
	return noun("cluster", "The cluster itself (operator)", "  replug cluster show", show)
}

func backupCommand(c *caller) *cobra.Command {
	return &cobra.Command{Use: "backup FILE", Short: "Write a consistent copy of the store (operator)", Args: exact(1, "a FILE"),
		Example: "  replug backup replug-monday.backup",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				stream, err := pb.NewAdminClient(conn).Backup(ctx, &pb.BackupRequest{})
				if err != nil {
					return err
				}
				n, err := writeWhole(args[0], stream)
				if err == nil {
					c.say(cmd, "%s: %d bytes", args[0], n)
				}
				return err
			})
		}}
}

// writeWhole writes the stream to a file that appears only when it is complete.
func writeWhole(name string, stream grpc.ServerStreamingClient[pb.BackupChunk]) (n int, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".backup-*")
	if err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, err
		}
		m, err := f.Write(chunk.Data)
		if n += m; err != nil {
			return n, fmt.Errorf("write backup: %w", err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return n, fmt.Errorf("write backup: %w", err)
	}
	return n, os.Rename(f.Name(), name)
}
