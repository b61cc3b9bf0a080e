package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// poolBudget is how long a pool may take to fill.
const poolBudget = 10 * time.Minute

// A way to a VM, and what a claim by it may take, from the call until the guest has
// reported that it is ready for its owner; ms, emulated, on an idle machine.
type way struct {
	hold, figure string
	most         float64
}

// claims measures the three ways to a VM with the stock Debian image: from a pool
// that runs, from one that rests on disk, from scratch; and the second for a guest
// with our agent.
func claims(ctx context.Context, o Options) ([]Figure, error) {
	stock, err := lab.BuildDebian(ctx)
	if err != nil {
		return nil, err
	}
	figures, err := claimsOf(ctx, o, stock, 384, way{"warm", "claim_cloudinit_p50_ms", 3000},
		way{"snapshot", "claim_snapshot_p50_ms", 1500}, way{"scratch", "claim_scratch_p50_ms", 180000})
	if err != nil {
		return figures, err
	}
	ours, err := lab.BuildGuest(ctx, filepath.Join(o.Bin, "replug-guest"))
	if err != nil {
		return figures, err
	}
	more, err := claimsOf(ctx, o, ours, 128, way{"snapshot", "claim_snapshot_agent_p50_ms", 1000})
	return append(figures, more...), err
}

// claimsOf measures the ways to a VM with an image and MiB of memory.
func claimsOf(ctx context.Context, o Options, image string, memory int32, ways ...way) (figures []Figure, err error) {
	c, end, err := startCluster(ctx, o, 1, cluster.Config{Image: image, Memory: map[int]int{1: 8192}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	conn, err := c.Conn()
	if err != nil {
		return nil, err
	}
	m := &claimer{conn: conn, out: o.Out, memory: memory}
	if err := m.furnish(ctx); err != nil {
		return nil, err
	}
	for _, w := range ways {
		runs, err := m.measure(ctx, w.hold, o.Rounds)
		figures = append(figures, atMost(w.figure, "ms", runs, percentile(50), w.most, "", 0))
		if err != nil {
			return figures, fmt.Errorf("%s: %w", w.hold, err)
		}
	}
	return figures, nil
}

// A claimer claims VMs of one type, one after the other.
type claimer struct {
	conn   *grpc.ClientConn
	out    io.Writer
	memory int32 // MiB
	used   int
}

const kind = "small" // of its VMs

func (m *claimer) furnish(ctx context.Context) error {
	if _, err := pb.NewTenantsClient(m.conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: "tenant", Name: tenant}); err != nil {
		return err
	}
	if _, err := pb.NewNetworksClient(m.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: "network",
		Network: &pb.Network{Moniker: "red", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: subnet}}}}); err != nil {
		return err
	}
	_, err := pb.NewVMTypesClient(m.conn).CreateVMType(ctx, &pb.CreateVMTypeRequest{RequestId: "type",
		Type: &pb.VMType{Name: kind, Image: cluster.Image, Cpus: 1, MemoryMib: m.memory}})
	return err
}

// measure returns the ms of n claims.
func (m *claimer) measure(ctx context.Context, way string, n int) (runs []float64, err error) {
	if way != "scratch" {
		if err := m.fill(ctx, way, n); err != nil {
			return nil, err
		}
	}
	for left := n - 1; left >= 0; left-- {
		took, err := m.claim(ctx, way, left)
		if err != nil {
			return runs, err
		}
		runs = append(runs, took)
	}
	return runs, nil
}

// pool sets the pool's size. Nothing boots beside a claim, and it is not to begin
// to between two of them.
func (m *claimer) pool(ctx context.Context, way string, size int) error {
	m.used++
	_, err := pb.NewPoolsClient(m.conn).SetPool(ctx, &pb.SetPoolRequest{RequestId: fmt.Sprint("pool-", m.used), Type: kind, Size: new(int32(size)), Hold: way})
	return err
}

// fill waits until n VMs are in the pool; in one that rests, until all of them do.
func (m *claimer) fill(ctx context.Context, way string, n int) error {
	if err := m.pool(ctx, way, n); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, poolBudget)
	defer cancel()
	return lab.Until(ctx, "the pool to fill", func() error {
		r, err := pb.NewVMsClient(m.conn).ListVMs(ctx, &pb.ListVMsRequest{Tenant: "platform"})
		if err != nil {
			return err
		}
		ready := slices.DeleteFunc(r.Vms, func(vm *pb.VM) bool {
			return vm.Phase != "pooled" || way == "snapshot" && vm.GetPort().GetPower() != "saved"
		})
		if len(ready) < n {
			return fmt.Errorf("%d of %d wait", len(ready), n)
		}
		return nil
	})
}

// claim returns the ms from the call until the claim is ready, and destroys its VM.
func (m *claimer) claim(ctx context.Context, way string, left int) (float64, error) {
	m.used++
	name := fmt.Sprint("web-", m.used)
	client := pb.NewClaimsClient(m.conn)
	begin := time.Now()
	claim, err := client.CreateClaim(ctx, &pb.CreateClaimRequest{RequestId: "claim-" + name, Tenant: tenant, Name: name, Type: kind, Network: "red",
		Settings: &pb.Settings{User: "ann", SshKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMOnH3gkPF6Z0JqpXoyMwfzgTzxiiJqYHBvyOEhCbfLK ann"}}})
	if err != nil {
		return 0, err
	}
	stream, err := client.WatchClaim(ctx, &pb.GetClaimRequest{Id: claim.Id})
	if err != nil {
		return 0, err
	}
	for shrunk := way == "scratch"; claim.Phase != "ready"; {
		if claim, err = stream.Recv(); err != nil {
			return 0, err
		}
		if claim.Phase == "failed" {
			return 0, fmt.Errorf("claim %s: %s", claim.Id, claim.Error)
		}
		if !shrunk && claim.Phase == "swapping" {
			shrunk = true
			if err := m.pool(ctx, way, left); err != nil {
				return 0, err
			}
		}
	}
	took := ms(time.Since(begin))
	if want := map[bool]string{true: "scratch", false: "pool"}[way == "scratch"]; claim.Source != want {
		return 0, fmt.Errorf("claim %s was served from %s: %s", claim.Id, claim.Source, claim.Note)
	}
	if way != "scratch" {
		if err := m.tell(ctx, way, claim.Swap, begin, took); err != nil {
			return 0, err
		}
	}
	_, err = pb.NewVMsClient(m.conn).DeleteVM(ctx, &pb.DeleteVMRequest{RequestId: "end-" + name, Tenant: tenant, Name: name})
	return took, err
}

// tell prints where a claim's time went: a median alone leads nowhere.
func (m *claimer) tell(ctx context.Context, way, swap string, begin time.Time, took float64) error {
	s, err := pb.NewSwapsClient(m.conn).GetSwap(ctx, &pb.GetSwapRequest{Id: swap})
	if err != nil {
		return err
	}
	fmt.Fprintf(m.out, "%s claim, %.0f ms by %q:", way, took, s.Rung)
	for _, h := range s.Timeline {
		fmt.Fprintf(m.out, " %s %.0f", h.Name, ms(h.At.AsTime().Sub(begin)))
	}
	fmt.Fprintln(m.out)
	return nil
}
