package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
)

func dropsCommand(c *caller) *cobra.Command {
	q := &pb.WatchDropsRequest{}
	var every time.Duration
	cmd := &cobra.Command{Use: "drops [PORT...]", Short: "Show which frames the datapath refuses, and why",
		Long: `Looks for a moment at what the hosts refuse, or with --follow goes on: by reason, port and
frame, with the count. Without a PORT: of all that the caller may see. An operator also gets the
totals of each host since its datapath was made.`,
		Example: "  replug drops --follow\n  replug drops web-1 --tenant acme --every 10s",
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Tenant, q.Ports, q.Every = c.tenant, args, durationpb.New(every)
			return c.callLong(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				s, err := pb.NewDiagnosticsClient(conn).WatchDrops(ctx, q)
				if err != nil {
					return err
				}
				return c.printDrops(cmd, s, q.Follow)
			})
		}}
	f := cmd.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on until interrupted")
	f.DurationVar(&every, "every", time.Second, "how long to look, or with --follow between reports")
	f.StringVar(&q.Host, "host", "", "of this host only")
	return cmd
}

func (c *caller) printDrops(cmd *cobra.Command, s grpc.ServerStreamingClient[pb.DropReport], follow bool) error {
	rows := &table{head: []string{"HOST", "VM OR PORT", "REASON", "COUNT", "FRAME"}}
	totals := &table{head: []string{"HOST", "REASON", "TOTAL"}}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if cmd.Context().Err() != nil {
				return nil // interrupted: that is how it ends
			}
			return err
		}
		if r.Error != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "host %s can't be asked: %s\n", r.Host, r.Error)
		}
		switch {
		case c.output == "json":
			if err := printLine(cmd.OutOrStdout(), r); err != nil {
				return err
			}
		case follow:
			dropLines(cmd.OutOrStdout(), time.Now(), r)
		default:
			dropRows(rows, totals, r)
		}
	}
	if c.output == "json" || follow {
		return nil
	}
	return printTables(cmd.OutOrStdout(), rows, totals)
}

// printLine prints a message as one line: a stream of them is JSON lines.
func printLine(w io.Writer, r *pb.DropReport) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(r)
	if err == nil {
		_, err = fmt.Fprintln(w, string(b))
	}
	return err
}

// dropLines prints a report as it comes; its columns can't wait for later ones.
func dropLines(w io.Writer, now time.Time, r *pb.DropReport) {
	at := now.Format(time.TimeOnly)
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%s  %-8s  %-20s  %-18s  %8d  %s\n", at, r.Host, dash(cmp.Or(row.Vm, row.Port)), row.Reason, row.Count, row.Tuple)
	}
	if r.Lost > 0 {
		fmt.Fprintf(w, "%s  %-8s  %-20s  %-18s  %8d  too many to tell apart\n", at, r.Host, "-", "-", r.Lost)
	}
}

func dropRows(rows, totals *table, r *pb.DropReport) {
	for _, row := range r.Rows {
		rows.add(r.Host, cmp.Or(row.Vm, row.Port), row.Reason, row.Count, row.Tuple)
	}
	if r.Lost > 0 {
		rows.add(r.Host, "", "", r.Lost, "too many to tell apart")
	}
	for _, t := range r.Totals {
		totals.add(r.Host, t.Reason, t.Count)
	}
}

func printTables(w io.Writer, rows, totals *table) error {
	if err := rows.print(w); err != nil || len(totals.rows) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return totals.print(w)
}
