package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

const (
	tenant  = "bench"
	subnet  = "10.20.0.0/16"
	peerIP  = "10.20.255.1"
	pingGap = 500 * time.Microsecond

	agentMost = 100 // swaps of a machine: enough for a p99
)

// swaps measures a swap as its user sees it: from the call of the API until a
// peer in the new network hears the first answer.
func swaps(ctx context.Context, o Options) (figures []Figure, err error) {
	image, err := lab.BuildGuest(ctx, filepath.Join(o.Bin, "replug-guest"))
	if err != nil {
		return nil, err
	}
	c, end, err := startCluster(ctx, o, 2, cluster.Config{Image: image, Memory: map[int]int{1: 512}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	s, err := newSwapper(ctx, c)
	if err != nil {
		return nil, err
	}
	floor, err := s.floor(ctx)
	if err != nil {
		return nil, err
	}
	static, err := s.static(ctx, o.Swaps)
	if err != nil {
		return nil, err
	}
	infra, err := s.infra(ctx, o.Swaps)
	if err != nil {
		return nil, err
	}
	txns := s.txns // later swaps are reported on by a guest, which is a write of its own
	agent, err := s.agent(ctx, min(o.Swaps, agentMost))
	if err != nil {
		return nil, err
	}
	const ping = "first ping without a swap"
	return []Figure{
		atMost("swap_static_p50_ms", "ms", static, percentile(50), 15, ping, floor),
		atMost("swap_static_p99_ms", "ms", static, percentile(99), 60, ping, floor),
		atMost("swap_infra_p50_ms", "ms", infra, percentile(50), 50, ping, floor),
		atMost("swap_infra_p99_ms", "ms", infra, percentile(99), 200, ping, floor),
		atMost("swap_agent_p50_ms", "ms", agent, percentile(50), 500, ping, floor),
		atMost("swap_agent_p99_ms", "ms", agent, percentile(99), 1500, ping, floor),
		atMost("swap_store_txns", "transactions", txns, percentile(100), 5, "", 0),
	}, nil
}

// A swapper swaps one guest to and fro between two networks.
type swapper struct {
	c     *cluster.Cluster
	conn  *grpc.ClientConn
	peers map[string]*lab.Guest
	at    map[string]string // port -> network
	used  int               // addresses handed out
	txns  []float64
}

func newSwapper(ctx context.Context, c *cluster.Cluster) (*swapper, error) {
	conn, err := c.Conn()
	if err != nil {
		return nil, err
	}
	s := &swapper{c: c, conn: conn, peers: make(map[string]*lab.Guest), at: make(map[string]string), used: 1}
	if _, err := pb.NewTenantsClient(conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: "tenant", Name: tenant}); err != nil {
		return nil, err
	}
	for _, n := range []string{"red", "blue"} {
		if _, err := pb.NewNetworksClient(conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: "network-" + n,
			Network: &pb.Network{Moniker: n, Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: subnet}}}}); err != nil {
			return nil, err
		}
		if s.peers[n], err = c.Attach(ctx, cluster.Attachment{Name: "peer-" + n, Host: 2, Tenant: tenant, Network: n, IP: peerIP, Bits: 16, Static: true}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// next is an address that nobody had: a former one rests for a minute.
func (s *swapper) next() string {
	s.used++
	return fmt.Sprintf("10.20.%d.%d", s.used/250, s.used%250+2)
}

// attach brings a guest into red.
func (s *swapper) attach(ctx context.Context, name string, static bool) (*lab.Guest, error) {
	s.at[name] = "red"
	return s.c.Attach(ctx, cluster.Attachment{Name: name, Host: 1, Tenant: tenant, Network: "red", IP: s.next(), Bits: 16, Static: static})
}

// floor is what the ways of measuring cost: the median time from now until the
// first answer of a guest that is not being swapped.
func (s *swapper) floor(ctx context.Context) (float64, error) {
	g, err := s.attach(ctx, "still", true)
	if err != nil {
		return 0, err
	}
	addrs, err := g.Addrs()
	if err != nil {
		return 0, err
	}
	var runs []float64
	for range 20 {
		p, err := cluster.StartPinger(s.peers["red"].Node, addrs[0].Addr(), pingGap)
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		at, err := p.First(ctx, begin)
		p.Stop()
		if err != nil {
			return 0, err
		}
		runs = append(runs, ms(at.Sub(begin)))
	}
	return median(runs), nil
}

// static swaps a guest that has the new address already: only the network's part.
func (s *swapper) static(ctx context.Context, n int) (runs []float64, err error) {
	g, err := s.attach(ctx, "static", true)
	if err != nil {
		return nil, err
	}
	for range n {
		ip := s.next()
		if err := g.SetAddr(netip.PrefixFrom(netip.MustParseAddr(ip), 16), netip.Addr{}); err != nil {
			return nil, err
		}
		took, err := s.swap(ctx, &pb.StartSwapRequest{Port: "static", Ip: ip, Trigger: "none"}, pingGap)
		if err != nil {
			return nil, err
		}
		runs = append(runs, took)
	}
	return runs, nil
}

// infra swaps a guest by link bounce and DHCP, with an agent that asks at once.
func (s *swapper) infra(ctx context.Context, n int) (runs []float64, err error) {
	if _, err := s.attach(ctx, "infra", false); err != nil {
		return nil, err
	}
	for range n {
		took, err := s.swap(ctx, &pb.StartSwapRequest{Port: "infra", Ip: s.next(), Trigger: "bounce"}, pingGap)
		if err != nil {
			return nil, err
		}
		runs = append(runs, took)
	}
	return runs, nil
}

// agent swaps a VM of ours with replug-guest in it, which QEMU runs and emulates if
// it has to. It is asked less often: it has one slow CPU.
func (s *swapper) agent(ctx context.Context, n int) (runs []float64, err error) {
	const gap = 5 * time.Millisecond
	for _, args := range [][]string{
		{"type", "create", "small", "--image", cluster.Image, "--cpus", "1", "--memory", "128"},
		{"vm", "create", "agent", "--tenant", tenant, "--type", "small", "--network", "red", "--ip", s.next(), "--wait"},
	} {
		if _, err := s.c.CLI(ctx, args...); err != nil {
			return nil, err
		}
	}
	s.at["agent"] = "red"
	for range n {
		took, err := s.swap(ctx, &pb.StartSwapRequest{Vm: "agent", Ip: s.next()}, gap)
		if err != nil {
			return nil, err
		}
		runs = append(runs, took)
	}
	return runs, nil
}

// swap moves the port or VM to the other network and returns the ms until a peer
// there heard it. It waits for the end, and counts the swap's durable transactions.
func (s *swapper) swap(ctx context.Context, r *pb.StartSwapRequest, gap time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	who := r.Port + r.Vm
	r.RequestId, r.Tenant, r.Network, r.Confirm = "swap-"+r.Ip, tenant, "red", "lease"
	if s.at[who] == "red" {
		r.Network = "blue"
	}
	before, err := pb.NewAdminClient(s.conn).GetCluster(ctx, &pb.GetClusterRequest{})
	if err != nil {
		return 0, err
	}
	p, err := cluster.StartPinger(s.peers[r.Network].Node, netip.MustParseAddr(r.Ip), gap)
	if err != nil {
		return 0, err
	}
	defer p.Stop()
	begin := time.Now()
	swap, err := pb.NewSwapsClient(s.conn).StartSwap(ctx, r)
	if err != nil {
		return 0, err
	}
	at, err := p.First(ctx, begin)
	if err != nil {
		return 0, err
	}
	if err := s.committed(ctx, swap.Id); err != nil {
		return 0, err
	}
	s.at[who] = r.Network
	after, err := pb.NewAdminClient(s.conn).GetCluster(ctx, &pb.GetClusterRequest{})
	s.txns = append(s.txns, float64(after.GetStoreTxns()-before.StoreTxns))
	return ms(at.Sub(begin)), err
}

func (s *swapper) committed(ctx context.Context, id string) error {
	stream, err := pb.NewSwapsClient(s.conn).WatchSwap(ctx, &pb.GetSwapRequest{Id: id})
	if err != nil {
		return err
	}
	for {
		swap, err := stream.Recv()
		if err != nil {
			return err
		}
		if swap.Done && !swap.Ok {
			return fmt.Errorf("swap %s ended %s: %s", id, swap.Phase, swap.Error)
		}
		if swap.Done {
			return nil
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
