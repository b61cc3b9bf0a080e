package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
)

func vmSwap(c *caller) *cobra.Command {
	cmd := swapStart(c, "swap VM", func(r *pb.StartSwapRequest, name string) { r.Vm = name })
	cmd.Short = "Move a running VM to another network"
	cmd.Example = `  replug vm swap web-1 --tenant acme --network blue --ip 10.0.0.20 --plan
  replug vm swap web-1 --tenant acme --network blue --ip 10.0.0.20 --hostname blue-1 --wait`
	return cmd
}

// swapStart is `vm swap` and `port swap`: aim puts the name where it belongs.
func swapStart(c *caller, use string, aim func(*pb.StartSwapRequest, string)) *cobra.Command {
	r := &pb.StartSwapRequest{}
	var plan, wait bool
	var stage, lease, confirm, drain time.Duration
	cmd := &cobra.Command{Use: use, Args: exact(1, "one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.RequestId, r.Tenant = c.id(), c.tenant
			aim(r, args[0])
			r.StageBudget, r.LeaseBudget, r.ConfirmBudget = budget(stage), budget(lease), budget(confirm)
			r.Drain = budget(drain)
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				client := pb.NewSwapsClient(conn)
				if plan {
					return c.plan(ctx, cmd, client, r)
				}
				s, err := client.StartSwap(ctx, r)
				if err != nil {
					return err
				}
				if wait {
					return c.watchSwap(ctx, cmd, client, s.Id)
				}
				return c.print(cmd, s, func() *table { return swaps(s) })
			})
		}}
	f := cmd.Flags()
	f.StringVar(&r.Network, "network", "", "moniker of the new network")
	f.StringSliceVar(&r.Ips, "ip", nil, "new "+ipHelp)
	f.StringSliceVar(&r.Groups, "group", nil, groupHelp+"; those of the old network are left")
	f.StringSliceVar(&r.Services, "service", nil, "service of the new network to be behind, once the swap is confirmed; those of the old network are left")
	f.StringVar(&r.Hostname, "hostname", "", "new host name (default: unchanged)")
	f.StringVar(&r.Confirm, "confirm", "", "proof: lease, guest or caller (default: guest for an image with replug-guest in it, else lease)")
	f.StringVar(&r.Trigger, "trigger", "", "how the guest is told: bounce (default) or none, for a guest that has the new address already")
	f.StringVar(&r.OldConnections, "old-connections", "", "reset: both ends at once (default); drain: wait for them to end; silence: say nothing")
	f.DurationVar(&drain, "drain", 0, "with --old-connections drain: wait so long at most, then reset (default 30s)")
	f.DurationVar(&stage, "stage-budget", 0, "time for making ready, else nothing happens (default 5s)")
	f.DurationVar(&lease, "lease-budget", 0, "time for the guest to appear on its new address, else undo (default 25s)")
	f.DurationVar(&confirm, "confirm-budget", 0, "time for the proof, else undo (default 30s)")
	f.BoolVar(&plan, "plan", false, "say what would change, change nothing")
	f.BoolVar(&wait, "wait", false, "watch until the swap has ended")
	return cmd
}

func budget(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func (c *caller) plan(ctx context.Context, cmd *cobra.Command, client pb.SwapsClient, r *pb.StartSwapRequest) error {
	p, err := client.PlanSwap(ctx, r)
	if err != nil || c.output == "json" {
		if err == nil {
			err = printJSON(cmd.OutOrStdout(), p)
		}
		return err
	}
	t := &table{head: []string{"CHANGES", "FROM", "TO"}}
	for _, x := range p.Changes {
		t.add(x.What, x.From, x.To)
	}
	if err := t.print(cmd.OutOrStdout()); err != nil {
		return err
	}
	for _, l := range []struct {
		what  string
		items []string
	}{{"keeps", p.Keeps}, {"reaches no more", p.PeersLost}, {"will reach", p.PeersNew}, {"note", p.Warnings}} {
		if len(l.items) > 0 {
			c.say(cmd, "%-15s %s", l.what, strings.Join(l.items, ", "))
		}
	}
	c.say(cmd, "Nothing was changed.")
	return nil
}

// watchSwap prints the live timeline, then the receipt. A swap that did not
// commit is an error with the reason.
func (c *caller) watchSwap(ctx context.Context, cmd *cobra.Command, client pb.SwapsClient, id string) error {
	stream, err := client.WatchSwap(ctx, &pb.GetSwapRequest{Id: id})
	if err != nil {
		return err
	}
	line := newTimeline(cmd, c.output == "table")
	var s *pb.Swap
	for s == nil || !s.Done {
		next, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch swap %s (it goes on; see 'replug swap show %s'): %w", id, id, err)
		}
		if s == nil {
			c.say(cmd, "swap %s: %s", next.Id, path(next))
		}
		s = next
		line.show(s.Timeline)
	}
	if c.output == "json" {
		err = printJSON(cmd.OutOrStdout(), s)
	} else {
		receipt(cmd.OutOrStdout(), s)
	}
	if err == nil && !s.Ok {
		err = outcomeError{fmt.Errorf("swap %s ended %s: %s", s.Id, s.Phase, s.Error), exitError}
	}
	return err
}

func path(s *pb.Swap) string { return side(s.Before) + " -> " + side(s.After) }

func side(p *pb.SidedPlace) string {
	return p.GetNetwork() + " " + strings.Join(p.GetAddrs(), ",")
}

// receipt tells what a swap has come to, as far as it got.
func receipt(w io.Writer, s *pb.Swap) {
	fmt.Fprintf(w, "%s: %s\n", s.Phase, path(s))
	fmt.Fprintf(w, "  kept      MAC %s, PA %s, host %s\n", s.Mac, s.Pa, s.Host)
	fmt.Fprintf(w, "  rung      %s\n", dash(s.Rung))
	if s.Blackout != nil {
		fmt.Fprintf(w, "  blackout  %.1f ms, last frame before to first after, seen by the dataplane\n", ms(s.Blackout.AsDuration()))
	}
	if g := s.Guest; g != nil {
		fmt.Fprintf(w, "  guest     %s %s, boot id %s\n", dash(g.Hostname), dash(strings.Join(g.Addrs, ",")), dash(g.BootId))
	}
	if g := s.Guest; g != nil && g.Error != "" {
		fmt.Fprintf(w, "  it says   %s\n", g.Error)
	}
}

// story is a swap from its begin: what happened when, and what came of it.
func story(w io.Writer, s *pb.Swap) {
	of := "VM " + s.Vm
	if s.Vm == "" {
		of = "port " + s.Port
	}
	fmt.Fprintf(w, "swap %s of %s, begun %s, proof: %s\n", s.Id, of, s.Started.AsTime().Format(time.RFC3339), s.Confirm)
	timelineTo(w).show(s.Timeline)
	receipt(w, s)
	if s.Error != "" {
		fmt.Fprintf(w, "  error     %s\n", s.Error)
	}
}

func swapCommand(c *caller) *cobra.Command {
	ls := ask(c, question[*pb.ListSwapsResponse]{use: "list", short: "List swaps of the last day", example: "  replug swap list\n  replug swap list --tenant acme", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListSwapsResponse, error) {
			return pb.NewSwapsClient(conn).ListSwaps(ctx, &pb.ListSwapsRequest{Tenant: c.tenant})
		},
		show: func(r *pb.ListSwapsResponse) *table { return swaps(r.Swaps...) }})
	watch := &cobra.Command{Use: "watch SWAP", Short: "Follow a swap until it has ended", Args: exact(1, "a SWAP"), Example: swapExample("watch"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				return c.watchSwap(ctx, cmd, pb.NewSwapsClient(conn), args[0])
			})
		}}
	return noun("swap", "Swaps: running and of the last day", swapExample("watch"), ls, watch,
		swapShow(c),
		swapVerb(c, "confirm", "Say that the swap is good (confirm: caller)", func(ctx context.Context, client pb.SwapsClient, id string) (*pb.Swap, error) {
			return client.ConfirmSwap(ctx, &pb.ConfirmSwapRequest{RequestId: c.id(), Id: id})
		}),
		swapVerb(c, "cancel", "Undo a swap that is not committed", func(ctx context.Context, client pb.SwapsClient, id string) (*pb.Swap, error) {
			return client.CancelSwap(ctx, &pb.CancelSwapRequest{RequestId: c.id(), Id: id})
		}))
}

func swapShow(c *caller) *cobra.Command {
	return &cobra.Command{Use: "show SWAP", Short: "Show one swap, its timeline and what came of it", Args: exact(1, "a SWAP"), Example: swapExample("show"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				s, err := pb.NewSwapsClient(conn).GetSwap(ctx, &pb.GetSwapRequest{Id: args[0]})
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSON(cmd.OutOrStdout(), s)
				}
				story(cmd.OutOrStdout(), s)
				return nil
			})
		}}
}

func swapVerb(c *caller, verb, short string, f func(context.Context, pb.SwapsClient, string) (*pb.Swap, error)) *cobra.Command {
	return ask(c, question[*pb.Swap]{use: verb + " SWAP", short: short, example: swapExample(verb), args: exact(1, "a SWAP"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Swap, error) {
			return f(ctx, pb.NewSwapsClient(conn), args[0])
		},
		show: func(s *pb.Swap) *table { return swaps(s) }})
}

// swapExample is of a verb that is about one swap: its id is all that it needs.
func swapExample(verb string) string { return "  replug swap " + verb + " sw-3JK7QWMZ4TBD" }

func swaps(ss ...*pb.Swap) *table {
	t := &table{head: []string{"SWAP", "PHASE", "PORT", "HOST", "BEFORE", "AFTER", "RUNG", "BLACKOUT", "ERROR"}}
	for _, s := range ss {
		blackout := ""
		if s.Blackout != nil {
			blackout = fmt.Sprintf("%.1f ms", ms(s.Blackout.AsDuration()))
		}
		t.add(s.Id, s.Phase, s.Port, s.Host, side(s.Before), side(s.After), s.Rung, blackout, s.Error)
	}
	return t
}
