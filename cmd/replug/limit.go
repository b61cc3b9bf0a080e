package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

// portVerb is a verb that changes a live port and shows it.
func portVerb(c *caller, use, short, example string, args cobra.PositionalArgs,
	f func(context.Context, *cobra.Command, pb.PortsClient, []string) (*pb.Port, error)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Example: example, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				p, err := f(ctx, cmd, pb.NewPortsClient(conn), args)
				if err != nil {
					return err
				}
				return c.print(cmd, p, func() *table { return settings(p) })
			})
		}}
}

func portLimit(c *caller) *cobra.Command {
	r := &rates{}
	cmd := portVerb(c, "limit PORT|VM", "Bound what a port may send and get, live; what is not said stays (operator)",
		"  replug port limit web-1 --tenant acme --from 100M --from-packets 50k --to 1G\n  replug port limit web-1 --tenant acme --to 0    no bound of that\n  replug port limit web-1 --tenant acme --none    no bound at all", exact(1, "a PORT or VM"),
		func(ctx context.Context, cmd *cobra.Command, client pb.PortsClient, args []string) (*pb.Port, error) {
			limits, err := r.limits(cmd)
			if err != nil {
				return nil, err
			}
			return client.SetPortLimits(ctx, &pb.SetPortLimitsRequest{RequestId: c.id(), Tenant: c.tenant, Name: args[0], Limits: limits})
		})
	f := cmd.Flags()
	f.StringVar(&r.from, "from", "", "bits a second that the VM may send: 100M, 2.5G; 0: no bound")
	f.StringVar(&r.to, "to", "", "bits a second that it may get")
	f.StringVar(&r.fromPackets, "from-packets", "", "packets a second that the VM may send: 50k")
	f.StringVar(&r.toPackets, "to-packets", "", "packets a second that it may get")
	f.BoolVar(&r.none, "none", false, "no bound of any of them")
	return cmd
}

// rates are what the flags say of a port's limits.
type rates struct {
	from, to, fromPackets, toPackets string
	none                             bool
}

// limits are the bounds that are said, and no others.
func (r *rates) limits(cmd *cobra.Command) (*pb.Limits, error) {
	var u units
	said := 0
	rate := func(flag, s string) *uint64 {
		if cmd.Flags().Changed(flag) {
			said++
		} else if !r.none {
			return nil
		}
		return new(u.parse(s))
	}
	l := &pb.Limits{
		From: &pb.Rate{Bits: rate("from", r.from), Packets: rate("from-packets", r.fromPackets)},
		To:   &pb.Rate{Bits: rate("to", r.to), Packets: rate("to-packets", r.toPackets)},
	}
	if r.none == (said > 0) {
		return nil, usageError{fmt.Errorf("%s needs a rate, as in --from 100M, or --none alone, which ends all bounds", cmd.CommandPath())}
	}
	return l, u.err
}

// units reads numbers with decimal suffixes and keeps the first error.
type units struct{ err error }

func (u *units) parse(s string) uint64 {
	if s == "" {
		return 0
	}
	digits := strings.TrimRight(s, "kMGT")
	factor, ok := map[string]float64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[s[len(digits):]]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || n < 0 || n*factor > 1e15 {
		u.err = errors.Join(u.err, usageError{fmt.Errorf("%q is no rate; write it as in 100M, 2.5G or 50k", s)})
	}
	return uint64(math.Round(n * factor))
}

// unit prints a number as units reads it.
func unit(n uint64) string {
	for _, u := range []struct {
		factor uint64
		suffix string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= u.factor {
			return strconv.FormatFloat(float64(n)/float64(u.factor), 'f', -1, 64) + u.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}

func rate(r *pb.Rate) string {
	var out []string
	if r.GetBits() > 0 {
		out = append(out, unit(r.GetBits())+"bit/s")
	}
	if r.GetPackets() > 0 {
		out = append(out, unit(r.GetPackets())+"packet/s")
	}
	if len(out) == 0 {
		return "no bound"
	}
	return strings.Join(out, " ")
}

func portGroup(c *caller) *cobra.Command {
	var none bool
	cmd := portVerb(c, "group PORT|VM GROUP...", "Put a port into these security groups and no others",
		"  replug port group web-1 web ssh --tenant acme\n  replug port group web-1 --tenant acme --none    no rules any more: all passes",
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || none != (len(args) == 1) {
				return usageError{fmt.Errorf("%s needs a PORT or VM, and GROUPs or --none", cmd.CommandPath())}
			}
			return nil
		},
		func(ctx context.Context, _ *cobra.Command, client pb.PortsClient, args []string) (*pb.Port, error) {
			return client.SetPortGroups(ctx, &pb.SetPortGroupsRequest{RequestId: c.id(), Tenant: c.tenant, Name: args[0], Groups: args[1:]})
		})
	cmd.Flags().BoolVar(&none, "none", false, "take it out of all")
	return cmd
}

func portSet(c *caller) *cobra.Command {
	var mtu uint32
	var router bool
	cmd := portVerb(c, "set PORT|VM", "Change a live port's own MTU, and whether it is a router; what is not said stays",
		"  replug port set gw-1 --tenant acme --router\n  replug port set web-1 --tenant acme --mtu 1400", exact(1, "a PORT or VM"),
		func(ctx context.Context, cmd *cobra.Command, client pb.PortsClient, args []string) (*pb.Port, error) {
			return client.SetPort(ctx, &pb.SetPortRequest{RequestId: c.id(), Tenant: c.tenant, Name: args[0],
				Mtu: given(cmd.Flags(), "mtu", mtu), Router: given(cmd.Flags(), "router", router)})
		})
	cmd.Flags().Uint32Var(&mtu, "mtu", 0, "bytes of its IP packets; 0: its network's")
	cmd.Flags().BoolVar(&router, "router", false, routerHelp+"; =false ends it")
	return cmd
}

// settings shows what a port has beside its place.
func settings(p *pb.Port) *table {
	mtu := "underlay"
	if p.Mtu > 0 {
		mtu = fmt.Sprint(p.Mtu)
	}
	t := &table{head: []string{"PORT", "NETWORK", "ADDRESS", "GROUPS", "SERVICES", "MTU", "ROUTER", "FROM", "TO"}}
	t.add(p.Name, p.Network, strings.Join(p.Addrs, ","), strings.Join(p.Groups, ","), strings.Join(p.Services, ","), mtu, p.Router,
		rate(p.Limits.GetFrom()), rate(p.Limits.GetTo()))
	return t
}
