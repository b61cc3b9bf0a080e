package demo

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
)

const (
	redIP  = "10.0.0.10"
	blueIP = "10.0.0.20"
	sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5rT0c4bXkqk7m3Zq0y2l1o9uWv8xQe6sDf4gHjKlMn ann@example"
)

// claim asks for web-1 in red; a pooled VM becomes it.
func (p *player) claim(ctx context.Context) error {
	m := &p.result.Claim
	err := p.measure(ctx, m, moving{to: "red", ip: redIP}, func(ctx context.Context, conn *grpc.ClientConn) (string, error) {
		client := pb.NewClaimsClient(conn)
		claim, err := client.CreateClaim(ctx, &pb.CreateClaimRequest{RequestId: "demo-claim", Tenant: tenant, Name: "web-1", Type: kind, Network: "red", Ip: redIP,
			Settings: &pb.Settings{Hostname: "web-1", User: "ann", SshKeys: []string{sshKey}, TimeZone: "Europe/Zurich"}})
		if err != nil {
			return "", err
		}
		stream, err := client.WatchClaim(ctx, &pb.GetClaimRequest{Id: claim.Id})
		if err != nil {
			return "", err
		}
		for {
			if claim, err = stream.Recv(); err != nil {
				return "", err
			}
			switch claim.Phase {
			case "failed":
				return "", fmt.Errorf("the claim failed: %s", claim.Error)
			case "ready":
				m.source = claim.Source
				return claim.Swap, nil
			}
		}
	})
	if err != nil {
		return err
	}
	if m.source != "pool" {
		return fmt.Errorf("web-1 came from %q, not from the pool", m.source)
	}
	p.print.move("claim", m)
	if err := p.settings(ctx); err != nil {
		return err
	}
	// Nothing that follows is to be measured beside a VM that boots.
	p.print.line("the pool fills itself again:")
	return p.filled(ctx)
}

// settings reads back, inside the guest, what the customer asked for.
func (p *player) settings(ctx context.Context) error {
	vm, err := p.world.vm(ctx, "web-1")
	if err != nil {
		return err
	}
	out, err := p.world.watched.exec(ctx, vm.Id, "grep ann /etc/passwd && cat /home/ann/.ssh/authorized_keys && cat /etc/timezone")
	if err != nil {
		return fmt.Errorf("the customer's settings are not in the guest: %w", err)
	}
	p.print.quote("(inside web-1) grep ann /etc/passwd; cat ~ann/.ssh/authorized_keys /etc/timezone", out)
	return nil
}

// swap moves web-1 from red to blue; the plan first.
func (p *player) swap(ctx context.Context) error {
	args := []string{"vm", "swap", "web-1", "--network", "blue", "--ip", blueIP}
	rename := p.world.cast.rename
	if rename != "" {
		args = append(args, "--hostname", rename)
	}
	args = append(args, "--plan")
	out, err := p.world.cluster.CLI(ctx, append(args, "--tenant", tenant)...)
	if err != nil {
		return err
	}
	p.print.quote("replug "+strings.Join(args, " "), string(out))
	m := &p.result.Swap
	err = p.measure(ctx, m, moving{vm: "web-1", from: "red", to: "blue", at: redIP, ip: blueIP}, func(ctx context.Context, conn *grpc.ClientConn) (string, error) {
		s, err := pb.NewSwapsClient(conn).StartSwap(ctx, &pb.StartSwapRequest{RequestId: "demo-swap", Tenant: tenant, Vm: "web-1", Network: "blue", Ip: blueIP, Hostname: rename,
			LeaseBudget: p.world.cast.leaseBudget()})
		if err != nil {
			return "", err
		}
		s, err = finish(ctx, conn, s.Id)
		if err == nil && !s.Ok {
			err = fmt.Errorf("the swap ended %s: %s", s.Phase, s.Error)
		}
		return s.GetId(), err
	})
	if err != nil {
		return err
	}
	p.print.move("swap", m)
	return nil
}

// finish watches a swap until it has ended, through restarts of the server.
func finish(ctx context.Context, conn *grpc.ClientConn, id string) (*pb.Swap, error) {
	client := pb.NewSwapsClient(conn)
	for {
		stream, err := client.WatchSwap(ctx, &pb.GetSwapRequest{Id: id}, grpc.WaitForReady(true))
		for err == nil {
			var s *pb.Swap
			if s, err = stream.Recv(); err == nil && s.Done {
				return s, nil
			}
		}
		if ctx.Err() != nil || !transient(err) {
			return nil, fmt.Errorf("watch swap %s: %w", id, err)
		}
	}
}

// A moving is what measure is to look at.
type moving struct {
	vm       string // "": the claim decides which
	from, to string // networks; from "": the pool's
	at, ip   string // addresses: now (of a VM with a name), and then
}

// measure does a move and fills m from what the guest, the peers and the wire
// showed, and from the swap's receipt.
func (p *player) measure(ctx context.Context, m *Move, what moving, do func(context.Context, *grpc.ClientConn) (swap string, err error)) error {
	w := p.world
	conn, err := w.cluster.Conn()
	if err != nil {
		return err
	}
	probes, err := p.startProbes(what)
	if err != nil {
		return err
	}
	defer probes.stop()
	pinger, err := cluster.StartPinger(w.peers[what.to].Node, netip.MustParseAddr(what.ip), 2*time.Millisecond)
	if err != nil {
		return err
	}
	defer pinger.Stop()
	if what.from != "" { // frames to and fro until the flip, so that the blackout has a beginning
		old, err := cluster.StartPinger(w.peers[what.from].Node, netip.MustParseAddr(what.at), 2*time.Millisecond)
		if err != nil {
			return err
		}
		defer old.Stop()
	}
	if err := probes.warmUp(ctx); err != nil {
		return err
	}
	begin := time.Now()
	id, err := do(ctx, conn)
	if err != nil {
		return err
	}
	reached, err := pinger.First(ctx, begin)
	if err != nil {
		return err
	}
	m.MSToReachable = ms(reached.Sub(begin))
	s, err := pb.NewSwapsClient(conn).GetSwap(ctx, &pb.GetSwapRequest{Id: id})
	if err != nil {
		return err
	}
	m.times(s, begin)
	if err := p.identities(ctx, m, s); err != nil {
		return err
	}
	return probes.judge(ctx, m, s, &p.result.Leaks)
}

// times takes the phases from the swap's timeline.
func (m *Move) times(s *pb.Swap, begin time.Time) {
	m.Phases = make(map[string]float64)
	for _, h := range s.Timeline {
		if _, twice := m.Phases[h.Name]; !twice {
			m.Phases[h.Name] = ms(h.At.AsTime().Sub(begin))
		}
	}
	m.MSToFlip, m.MSToLease, m.MSToConfirmed = m.Phases["flip"], m.Phases["dhcp"], m.Phases["confirmed"]
	m.BlackoutMS = ms(s.Blackout.AsDuration())
	m.NetworkBefore, m.NetworkAfter, m.rung = s.Before.Network, s.After.Network, s.Rung
}

// identities compares what the guest said before with what it says now.
func (p *player) identities(ctx context.Context, m *Move, s *pb.Swap) error {
	o := p.world.watched
	before, ok := o.views[s.Vm]
	if !ok {
		return fmt.Errorf("VM %s was never looked at before the move", s.Vm)
	}
	if err := o.settle(ctx, s.Vm); err != nil {
		return err
	}
	now, err := o.look(ctx, s.Vm)
	if err != nil {
		return err
	}
	o.views[s.Vm] = now
	m.CABefore, m.CAAfter = before.addr.String(), now.addr.String()
	m.MACBefore, m.MACAfter = before.mac, now.mac
	m.BootIDBefore, m.BootIDAfter = before.boot, now.boot
	m.hostnameBefore, m.hostnameAfter = before.hostname, now.hostname
	return nil
}
