package demo

import (
	"context"
	"fmt"
	"net/netip"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

const (
	tenant  = "acme"
	kind    = "small"
	peerIP  = "10.0.0.50"
	streams = 1000 // bystander frames a second
)

// A world is the lab with the cluster and everybody in it.
type world struct {
	lab     *lab.Lab
	cluster *cluster.Cluster
	peers   map[string]*lab.Guest // by network
	stream  *cluster.Stream
	watched *watched
	cast    cast
}

// build makes the stage: lab, cluster, tenant, networks, peers, bystanders.
func (p *player) build(ctx context.Context) error {
	cast, err := castOf(p.o.Guest)
	if err != nil {
		return err
	}
	image, err := cast.image(ctx, p.o.Bin)
	if err != nil {
		return err
	}
	p.print.line("guest image ready")
	l, err := lab.Up(ctx, lab.Config{Name: p.o.Name, Hosts: 2, Helper: p.o.Helper})
	if err != nil {
		return err
	}
	w := &world{lab: l, peers: make(map[string]*lab.Guest), cast: cast}
	p.world = w
	// Only h1 runs VMs, so that the peers, on h2, are on the other host.
	w.cluster, err = cluster.Start(ctx, l, cluster.Config{Bin: p.o.Bin, Image: image, Memory: map[int]int{1: 4096}})
	if err != nil {
		return err
	}
	p.print.line("server and two hosts are connected, mTLS between all of them")
	for _, args := range [][]string{
		{"tenant", "create", tenant},
		{"network", "create", "red", "--tenant", tenant, "--subnet", "10.0.0.0/24"},
		{"network", "create", "blue", "--tenant", tenant, "--subnet", "10.0.0.0/24"},
		{"network", "create", "green", "--tenant", tenant, "--subnet", "10.0.0.0/24"},
		{"type", "create", kind, "--image", cluster.Image, "--cpus", "1", "--memory", cast.memory},
	} {
		if _, err := w.cluster.CLI(ctx, args...); err != nil {
			return err
		}
	}
	return p.populate(ctx)
}

// populate attaches the peers and the bystanders, VMs that "somebody else's
// orchestrator" made: a tap and a monitor socket.
func (p *player) populate(ctx context.Context) (err error) {
	w := p.world
	for _, network := range []string{"red", "blue"} {
		if w.peers[network], err = w.cluster.Attach(ctx, cluster.Attachment{Name: "peer-" + network, Host: 2, Tenant: tenant, Network: network, IP: peerIP}); err != nil {
			return err
		}
	}
	a, err := w.cluster.Attach(ctx, cluster.Attachment{Name: "calm-1", Host: 1, Tenant: tenant, Network: "green", IP: "10.0.0.61"})
	if err != nil {
		return err
	}
	b, err := w.cluster.Attach(ctx, cluster.Attachment{Name: "calm-2", Host: 2, Tenant: tenant, Network: "green", IP: "10.0.0.62"})
	if err != nil {
		return err
	}
	if err := cluster.Ping(ctx, a.Node, netip.MustParseAddr("10.0.0.62")); err != nil {
		return fmt.Errorf("the bystanders don't see each other: %w", err)
	}
	if w.stream, err = cluster.StartStream(a.Node, b.Node, netip.MustParseAddrPort("10.0.0.62:9000"), streams); err != nil {
		return err
	}
	p.print.line("red, blue and green all are 10.0.0.0/24; a peer is in red and in blue, bystanders exchange %d frames a second in green", streams)
	return nil
}

func (w *world) bystanders() Bystander {
	if w.stream == nil {
		return Bystander{}
	}
	sent, lost := w.stream.Stop()
	return Bystander{Sent: sent, Lost: lost}
}

func (w *world) down(ctx context.Context) error {
	if w.cluster != nil {
		w.cluster.Close()
	}
	return w.lab.Down(ctx)
}

// vm returns the VM as the API shows it.
func (w *world) vm(ctx context.Context, name string) (*pb.VM, error) {
	conn, err := w.cluster.Conn()
	if err != nil {
		return nil, err
	}
	return pb.NewVMsClient(conn).GetVM(ctx, &pb.GetVMRequest{Tenant: tenant, Name: name})
}
