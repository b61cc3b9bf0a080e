package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/directory/frame"
)

func traceCommand(c *caller) *cobra.Command {
	q := &pb.TraceRequest{}
	var bytes bool
	var icmpType int
	cmd := &cobra.Command{Use: "trace PROTOCOL[/PORT]", Short: "Run a frame through the loaded datapath, hop by hop, without sending it",
		Long: `Runs a frame through the loaded datapath of the hosts on its way, with the rules, routes and
mappings that are in force now. Nothing is sent, and nothing counted. Says what decided at
each stage. Exits with 1 if the frame would not arrive.`,
		Example: "  replug trace --tenant acme --from web-1 --to 10.0.0.9 tcp/443\n  replug trace --tenant acme --from web-1 --to db-1 icmp --size 1400 --hex",
		Args:    exact(1, "a PROTOCOL[/PORT], such as tcp/443 or icmp"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if q.Protocol, q.Port, err = protocolPort(args[0]); err != nil {
				return usageError{err}
			}
			if q.From == "" || q.To == "" {
				return usageError{fmt.Errorf("%s needs --from and --to", cmd.CommandPath())}
			}
			if icmpType >= 0 {
				kind := uint32(icmpType)
				q.IcmpType = &kind
			}
			q.Tenant = c.tenant
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				r, err := pb.NewDiagnosticsClient(conn).Trace(ctx, q)
				if err != nil {
					return err
				}
				return c.printTrace(cmd, r, bytes)
			})
		}}
	f := cmd.Flags()
	f.StringVar(&q.From, "from", "", "VM or port that sends")
	f.StringVar(&q.FromIp, "from-ip", "", "its address (default: the one that its guest would choose)")
	f.StringVar(&q.To, "to", "", "address, VM or port that is to get it")
	f.Uint32Var(&q.FromPort, "from-port", 0, "source port (default 50123)")
	f.Int32Var(&q.Size, "size", 0, "bytes of the IP packet (default: no payload)")
	f.StringVar(&q.Flags, "flags", "", "of TCP: syn, ack, fin, rst, ... with commas (default syn)")
	f.IntVar(&icmpType, "icmp-type", -1, "of ICMP (default: echo request)")
	f.BoolVar(&bytes, "hex", false, "print the frames' bytes, too")
	return cmd
}

// protocolPort reads "tcp/443" and "icmp".
func protocolPort(s string) (protocol string, port uint32, err error) {
	protocol, rest, has := strings.Cut(s, "/")
	if !has {
		return protocol, 0, nil
	}
	n, err := strconv.ParseUint(rest, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q: want PROTOCOL/PORT with a port of 1 to 65535, such as tcp/443", s)
	}
	return protocol, uint32(n), nil
}

func (c *caller) printTrace(cmd *cobra.Command, r *pb.TraceResponse, bytes bool) error {
	w := cmd.OutOrStdout()
	if c.output == "json" {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		traceText(w, r, bytes)
	}
	if !r.Delivered {
		return outcomeError{silent, exitError}
	}
	return nil
}

// traceText prints a trace for a person: what went in, what was decided, what
// came out.
func traceText(w io.Writer, r *pb.TraceResponse, bytes bool) {
	for i, h := range r.Hops {
		fmt.Fprintf(w, "%d. host %s, %s\n", i+1, h.Host, h.Program)
		if i == 0 {
			frameText(w, "frame", h.Sent, bytes)
		}
		for _, s := range h.Steps {
			fmt.Fprintf(w, "   %-10s %s\n", s.Stage, s.Says)
		}
		switch {
		case len(h.Frame) == 0:
		case h.Verdict == "dropped":
			frameText(w, "gets", h.Frame, bytes)
		default:
			frameText(w, "leaves as", h.Frame, bytes)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, r.Summary)
}

func frameText(w io.Writer, label string, b []byte, bytes bool) {
	for i, line := range frame.Words(b) {
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(w, "   %-10s %s\n", label, line)
	}
	if bytes {
		for line := range strings.Lines(hex.Dump(b)) {
			fmt.Fprintf(w, "              %s", line)
		}
	}
}
