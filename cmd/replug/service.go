package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
)

func serviceCommand(c *caller) *cobra.Command {
	var network string
	show := ask(c, question[*pb.Service]{use: "show NAME", short: "Show one service and who is behind it", example: "  replug service show web --tenant acme --network blue", args: exact(1, "a NAME"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Service, error) {
			return pb.NewServicesClient(conn).GetService(ctx, &pb.GetServiceRequest{Tenant: c.tenant, Network: network, Name: args[0]})
		},
		show: backends})
	ls := ask(c, question[*pb.ListServicesResponse]{use: "list", short: "List the services of a network", example: "  replug service list --tenant acme --network blue", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListServicesResponse, error) {
			return pb.NewServicesClient(conn).ListServices(ctx, &pb.ListServicesRequest{Tenant: c.tenant, Network: network})
		},
		show: func(r *pb.ListServicesResponse) *table { return services(r.Services...) }})
	del := c.tell(order{use: "delete NAME", short: "Delete a service; its VMs stay", example: "  replug service delete web --tenant acme --network blue", args: exact(1, "a NAME"), done: "service %s deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewServicesClient(conn).DeleteService(ctx, &pb.DeleteServiceRequest{RequestId: c.id(), Tenant: c.tenant, Network: network, Name: name})
			return err
		}})
	inNetwork(&network, show, ls, del)
	return noun("service", "Addresses that lead to several VMs of a network",
		"  replug service create web --tenant acme --network blue --ip 10.0.0.100 --port 443 --backend web-1:8443 --backend web-2:8443=50 --check",
		serviceCreate(c), serviceSet(c), backendCommand(c), show, ls, del)
}

func serviceCreate(c *caller) *cobra.Command {
	s := &pb.Service{}
	var members []string
	k := &probe{}
	create := ask(c, question[*pb.Service]{use: "create NAME", short: "Make a service", args: exact(1, "a NAME"),
		example: "  replug service create web --tenant acme --network blue --ip 10.0.0.100 --port 443 --backend web-1:8443 --backend web-2:8443=50 --check",
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Service, error) {
			s.Tenant, s.Name = c.tenant, args[0]
			var err error
			if s.Check, err = k.check(); err != nil {
				return nil, err
			}
			for _, m := range members {
				b, err := parseBackend(m)
				if err != nil {
					return nil, err
				}
				s.Backends = append(s.Backends, b)
			}
			return pb.NewServicesClient(conn).CreateService(ctx, &pb.CreateServiceRequest{RequestId: c.id(), Service: s})
		},
		show: backends})
	inNetwork(&s.Network, create)
	f := create.Flags()
	f.StringVar(&s.Ip, "ip", "", "its address, which no port has")
	f.Uint32Var(&s.Port, "port", 0, "its port")
	f.StringVar(&s.Protocol, "protocol", "tcp", "tcp, udp or sctp")
	f.BoolVar(&s.Affinity, "affinity", false, "all flows of a client go to one VM")
	f.StringSliceVar(&members, "backend", nil, "MEMBER[:PORT][=WEIGHT]: a VM or port, where it listens (default: the service's port), its share (default: 100)")
	k.flags(f)
	return create
}

func serviceSet(c *caller) *cobra.Command {
	q := &pb.SetServiceRequest{}
	k := &probe{}
	var affinity bool
	cmd := ask(c, question[*pb.Service]{use: "set NAME", short: "Change affinity and check of a service; what is not said stays", args: exact(1, "a NAME"),
		example: "  replug service set web --tenant acme --network blue --check --check-port 8080 --check-interval 2s\n  replug service set web --tenant acme --network blue --affinity=false --check=false",
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (_ *pb.Service, err error) {
			q.RequestId, q.Tenant, q.Name, q.Affinity, q.NoCheck = c.id(), c.tenant, args[0], given(k.f, "affinity", affinity), k.off()
			if q.Check, err = k.check(); err != nil {
				return nil, err
			}
			return pb.NewServicesClient(conn).SetService(ctx, q)
		},
		show: backends})
	inNetwork(&q.Network, cmd)
	cmd.Flags().BoolVar(&affinity, "affinity", false, "all flows of a client go to one VM; =false ends it")
	k.flags(cmd.Flags())
	return cmd
}

// A probe is what the flags say of a service's check.
type probe struct {
	f                 *pflag.FlagSet
	on                bool
	port              uint32
	interval, timeout time.Duration
	rise, fall        int32
}

func (k *probe) flags(f *pflag.FlagSet) {
	k.f = f
	f.BoolVar(&k.on, "check", false, "let the hosts find out by a TCP handshake whether backends live (default: all do); =false ends it")
	f.Uint32Var(&k.port, "check-port", 0, "port to check; 0: the backend's, as at first")
	f.DurationVar(&k.interval, "check-interval", 0, "time between checks (at first 5s)")
	f.DurationVar(&k.timeout, "check-timeout", 0, "time for an answer (at first 2s)")
	f.Int32Var(&k.rise, "check-rise", 0, "successes in a row until it lives (at first 2)")
	f.Int32Var(&k.fall, "check-fall", 0, "failures in a row until it is dead (at first 3)")
}

// off reports whether there is to be no check any more.
func (k *probe) off() bool { return k.f.Changed("check") && !k.on }

// check is what is said of a check; nil: nothing, or that there is to be none.
func (k *probe) check() (*pb.Check, error) {
	out := &pb.Check{Port: given(k.f, "check-port", k.port), Rise: given(k.f, "check-rise", k.rise), Fall: given(k.f, "check-fall", k.fall)}
	if k.f.Changed("check-interval") {
		out.Interval = durationpb.New(k.interval)
	}
	if k.f.Changed("check-timeout") {
		out.Timeout = durationpb.New(k.timeout)
	}
	said := proto.Size(out) > 0
	switch {
	case said && k.off():
		return nil, usageError{errors.New("--check=false means no check: leave out the other flags of it")}
	case !said && !k.on:
		return nil, nil
	}
	return out, nil
}

// parseBackend reads MEMBER[:PORT][=WEIGHT].
func parseBackend(s string) (*pb.Backend, error) {
	bad := usageError{fmt.Errorf("--backend is MEMBER[:PORT][=WEIGHT], not %q", s)}
	rest, weight, weighted := strings.Cut(s, "=")
	member, port, listens := strings.Cut(rest, ":")
	b := &pb.Backend{Member: member}
	var err, err2 error
	var n uint64
	if listens {
		n, err = strconv.ParseUint(port, 10, 16)
		b.Port = uint32(n)
	}
	if weighted {
		n, err2 = strconv.ParseUint(weight, 10, 16)
		w := uint32(n)
		b.Weight = &w
	}
	if err := errors.Join(err, err2); err != nil || member == "" {
		return nil, bad
	}
	return b, nil
}

func backendCommand(c *caller) *cobra.Command {
	set := backendSet(c)
	var network string
	remove := ask(c, question[*pb.Service]{use: "remove SERVICE MEMBER", short: "Take a VM or port from behind a service", example: "  replug service backend remove web web-3 --tenant acme --network blue",
		args: exact(2, "a SERVICE and a MEMBER"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.Service, error) {
			return pb.NewServicesClient(conn).RemoveBackend(ctx, &pb.RemoveBackendRequest{RequestId: c.id(), Tenant: c.tenant, Network: network, Service: args[0], Member: args[1]})
		},
		show: backends})
	inNetwork(&network, remove)
	return noun("backend", "VMs and ports behind a service", "  replug service backend set web web-3 --tenant acme --network blue --port 8443 --weight 50", set, remove)
}

func backendSet(c *caller) *cobra.Command {
	b := &pb.Backend{}
	q := &pb.SetBackendRequest{Backend: b}
	var weight uint32
	var drain bool
	cmd := &cobra.Command{Use: "set SERVICE MEMBER", Short: "Put a VM or port behind a service, or change its port, weight or draining; what is not said stays", Args: exact(2, "a SERVICE and a MEMBER"),
		Example: "  replug service backend set web web-3 --tenant acme --network blue --port 8443 --weight 50\n  replug service backend set web web-3 --tenant acme --network blue --drain    keeps its flows, gets no new ones",
		RunE: func(cmd *cobra.Command, args []string) error {
			q.RequestId, q.Tenant, q.Service, b.Member = c.id(), c.tenant, args[0], args[1]
			b.Weight, b.Draining = given(cmd.Flags(), "weight", weight), given(cmd.Flags(), "drain", drain)
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				s, err := pb.NewServicesClient(conn).SetBackend(ctx, q)
				if err != nil {
					return err
				}
				return c.print(cmd, s, func() *table { return backends(s) })
			})
		}}
	inNetwork(&q.Network, cmd)
	f := cmd.Flags()
	f.Uint32Var(&b.Port, "port", 0, "where it listens (default: as it is, at first the service's port)")
	f.Uint32Var(&weight, "weight", 100, "its share, 0 to 1000 (default: as it is, at first 100)")
	f.BoolVar(&drain, "drain", false, "keep its flows, give it no new ones; =false ends it")
	return cmd
}

func services(ss ...*pb.Service) *table {
	t := &table{head: []string{"SERVICE", "NETWORK", "ADDRESS", "PORT", "CHECK", "AFFINITY", "BACKENDS", "DEAD"}}
	for _, s := range ss {
		dead := 0
		for _, b := range s.Backends {
			if b.Dead {
				dead++
			}
		}
		t.add(s.Name, s.Network, s.Ip, fmt.Sprintf("%s/%d", s.Protocol, s.Port), every(s.Check), s.Affinity, len(s.Backends), dead)
	}
	return t
}

func every(c *pb.Check) string {
	if c == nil {
		return "none"
	}
	return "every " + c.Interval.AsDuration().String()
}

func backends(s *pb.Service) *table {
	t := &table{head: []string{"SERVICE", "AT", "BACKEND", "ADDRESS", "PORT", "WEIGHT", "STATE"}}
	at := fmt.Sprintf("%s %s/%d", s.Ip, s.Protocol, s.Port)
	if len(s.Backends) == 0 {
		t.add(s.Name, at, "", "", "", "", "nobody is behind it")
	}
	for _, b := range s.Backends {
		state := "alive"
		switch {
		case b.Dead:
			state = "dead"
		case b.Away:
			state = "away" // its host
		case b.GetDraining():
			state = "draining"
		case s.Check == nil:
			state = "not checked"
		}
		t.add(s.Name, at, b.Member, b.Ip, b.Port, b.GetWeight(), state)
	}
	return t
}
