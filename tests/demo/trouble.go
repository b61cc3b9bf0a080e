package demo

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
)

// rollback starts a swap of a guest whose DHCP is switched off. Nothing can
// come of it: at the lease budget it has to be undone by itself.
func (p *player) rollback(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.patience())
	defer cancel()
	vm, err := p.world.vm(ctx, "web-1")
	if err != nil {
		return err
	}
	if _, err := p.world.watched.exec(ctx, vm.Id, p.world.cast.deaf); err != nil {
		return err
	}
	conn, err := p.world.cluster.Conn()
	if err != nil {
		return err
	}
	begin := time.Now()
	s, err := pb.NewSwapsClient(conn).StartSwap(ctx, &pb.StartSwapRequest{RequestId: "demo-wrong", Tenant: tenant, Vm: "web-1",
		Network: "red", Ip: "10.0.0.30", LeaseBudget: durationpb.New(2 * time.Second)})
	if err != nil {
		return err
	}
	if s, err = finish(ctx, conn, s.Id); err != nil {
		return err
	}
	r := &p.result.Rollback
	r.OK, r.MS, r.why = s.Phase == "undone", ms(time.Since(begin)), s.Error
	r.ReachableAtOld = cluster.Ping(ctx, p.world.peers["blue"].Node, netip.MustParseAddr(blueIP)) == nil
	p.print.line("%s after %.0f ms: %s", s.Phase, r.MS, s.Error)
	p.print.line("web-1 answers a peer in blue at %s: %v", blueIP, r.ReachableAtOld)
	_, err = p.world.watched.exec(ctx, vm.Id, p.world.cast.hears)
	return err
}

// patience is for one swap with all that befalls it.
func (p *player) patience() time.Duration { return time.Minute + 3*p.world.cast.lease }

// A blow is a program to kill, and the phase of the swap at which to do it.
type blow struct {
	program string
	phase   string
}

// faults swaps web-1 to and fro and kills a program in each swap.
func (p *player) faults(ctx context.Context) error {
	for i, b := range []blow{
		{"server", "reserved"}, {"host", "reserved"}, {"server", "switched"},
		{"host", "switched"}, {"server", "leased"}, {"host", "leased"},
	} {
		vm, err := p.world.vm(ctx, "web-1")
		if err != nil {
			return err
		}
		to := "red"
		if vm.Port.Network == "red" {
			to = "blue"
		}
		ip := fmt.Sprintf("10.0.0.%d", 100+i) // a former address still rests
		fault, err := p.strike(ctx, b, &pb.StartSwapRequest{RequestId: fmt.Sprintf("demo-fault-%d", i), Tenant: tenant, Vm: "web-1", Network: to, Ip: ip,
			LeaseBudget: p.world.cast.leaseBudget()})
		if err != nil {
			return fmt.Errorf("%s killed at %s: %w", b.program, b.phase, err)
		}
		p.result.Faults = append(p.result.Faults, fault)
		p.print.line("%-28s the swap to %-4s ended %s after %.0f ms", fault.Killed, to, fault.Outcome, fault.MS)
	}
	return nil
}

// strike starts a swap, kills the program when the phase is reached, starts it
// again, and waits for the end.
func (p *player) strike(ctx context.Context, b blow, r *pb.StartSwapRequest) (Fault, error) {
	ctx, cancel := context.WithTimeout(ctx, p.patience())
	defer cancel()
	c := p.world.cluster
	conn, err := c.Conn()
	if err != nil {
		return Fault{}, err
	}
	begin := time.Now()
	s, err := pb.NewSwapsClient(conn).StartSwap(ctx, r, grpc.WaitForReady(true))
	if err != nil {
		return Fault{}, err
	}
	at, err := reach(ctx, conn, s.Id, b.phase)
	if err != nil {
		return Fault{}, err
	}
	if b.program == "server" {
		if err = c.KillServer(ctx); err == nil {
			err = c.StartServer(ctx)
		}
	} else {
		if err = c.KillHost(ctx, 1); err == nil {
			err = c.StartHost(ctx, 1)
		}
	}
	if err != nil {
		return Fault{}, err
	}
	if s, err = finish(ctx, conn, s.Id); err != nil {
		return Fault{}, err
	}
	if err := c.Connected(ctx); err != nil {
		return Fault{}, err
	}
	return Fault{Killed: b.program + " at " + at, Outcome: s.Phase, MS: ms(time.Since(begin))}, nil
}

// reach waits until the swap is in the phase, or past it, and returns where it
// is.
func reach(ctx context.Context, conn *grpc.ClientConn, id, phase string) (string, error) {
	stream, err := pb.NewSwapsClient(conn).WatchSwap(ctx, &pb.GetSwapRequest{Id: id})
	if err != nil {
		return "", err
	}
	passed := false
	for {
		s, err := stream.Recv()
		if err != nil {
			return "", fmt.Errorf("the swap ended before it was %s: %w", phase, err)
		}
		for _, h := range s.Timeline {
			passed = passed || h.Name == phase
		}
		if passed || s.Phase == phase {
			return s.Phase, nil
		}
	}
}

// transient tells a server that is away from one that refuses.
func transient(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.Aborted || code == codes.Canceled
}
