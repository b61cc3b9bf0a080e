package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func captureCommand(c *caller) *cobra.Command {
	q := &pb.CaptureRequest{}
	cmd := &cobra.Command{Use: "capture PORT", Short: "Stream the frames of a VM or port as a pcapng file",
		Long: `Streams what passes the datapath's points for one port as a pcapng file, an interface for each
point. Refused frames have their reason as a comment. It costs the host nothing while nobody
captures, and a bounded share while somebody does: what is above it is left out and counted.`,
		Example: "  replug capture web-1 --tenant acme --points drop,from_vm --count 100 > web-1.pcapng\n  replug capture web-1 --tenant acme | tshark -r - -T fields -e frame.interface_name -e frame.comment -e _ws.col.Info",
		Args:    exact(1, "a PORT (or VM)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if terminal(cmd.OutOrStdout()) {
				return usageError{errors.New("a capture is no text: redirect it into a file, or pipe it into tshark -r -")}
			}
			q.Tenant, q.Port = c.tenant, args[0]
			return c.callLong(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				return capture(ctx, cmd, pb.NewDiagnosticsClient(conn), q)
			})
		}}
	f := cmd.Flags()
	f.StringSliceVar(&q.Points, "points", nil, "from_vm, to_vm, from_wire, to_wire, drop (default: all)")
	f.Int32Var(&q.Count, "count", 0, "end after so many frames (default: when interrupted)")
	f.Int32Var(&q.Snap, "snap", 0, "bytes kept of a frame, 256 at most (default 256)")
	return cmd
}

// terminal reports whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	i, err := f.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}

// capture writes the file as it comes. Being interrupted is how it ends.
func capture(ctx context.Context, cmd *cobra.Command, client pb.DiagnosticsClient, q *pb.CaptureRequest) error {
	s, err := client.Capture(ctx, q)
	var last pb.CaptureChunk
	for err == nil {
		var chunk *pb.CaptureChunk
		if chunk, err = s.Recv(); err != nil {
			break
		}
		if _, err := cmd.OutOrStdout().Write(chunk.Data); err != nil {
			return err
		}
		last.Frames, last.Lost = chunk.Frames, chunk.Lost
	}
	if !errors.Is(err, io.EOF) && cmd.Context().Err() == nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d frames captured, %d lost\n", last.Frames, last.Lost)
	return nil
}
