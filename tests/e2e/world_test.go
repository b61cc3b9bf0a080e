package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

const (
	tenant = "acme"
	bits   = 16 // of the subnet that all networks have: 10.20.0.0/16
	kind   = "small"
	peerIP = "10.20.255.9" // in red and in blue
)

// A world is a lab with a running cluster, of two hosts: tenant acme with the
// networks red, blue and green, which have the same addresses. Further hosts of the
// lab are machines that are none of the cluster's.
type world struct {
	*cluster.Cluster
	conn  *grpc.ClientConn
	used  atomic.Int32 // names, addresses and request ids handed out
	peers map[string]*lab.Guest
	drops map[string]float64 // counted when a test ended last: see unexpected
}

func newWorld(ctx context.Context, config lab.Config, image string) (_ *world, err error) {
	config.Hosts, config.Helper = max(config.Hosts, 2), helper
	l, err := lab.Up(ctx, config)
	if err != nil {
		return nil, err
	}
	w := &world{Cluster: &cluster.Cluster{Lab: l}, peers: make(map[string]*lab.Guest)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.down())
		}
	}()
	c, err := cluster.Start(ctx, l, cluster.Config{Bin: bin, Image: image, Memory: map[int]int{1: 4096}, Agents: 2})
	if err != nil {
		return nil, err
	}
	w.Cluster = c
	if w.conn, err = c.Conn(); err != nil {
		return nil, err
	}
	for _, t := range []string{tenant, "rival"} {
		if _, err := pb.NewTenantsClient(w.conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: w.id(), Name: t}); err != nil {
			return nil, err
		}
	}
	for _, n := range []string{"red", "blue", "green"} {
		if err := w.network(ctx, n); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *world) network(ctx context.Context, moniker string) error {
	_, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(),
		Network: &pb.Network{Moniker: moniker, Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}}}})
	return err
}

// down takes the lab down and returns an error that names what is left.
func (w *world) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := errors.Join(w.unexpected(ctx), w.Close(), w.Lab.Down(ctx))
	if left := lab.Residue(w.Lab.Name()); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind: %q", left))
	}
	return err
}

// patience bounds any wait for what has to come. It is what a test that fails takes, so
// a busy machine is given all of it.
const patience = 5 * time.Minute

// within bounds a test's waits, and shows what the programs said if it fails. When all
// of the test has been taken down, the hosts must have dropped frames for no reasons
// but usual ones and those that the test says that it provokes.
func (w *world) within(t *testing.T, provokes ...string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(func() {
		cancel()
		if err := w.unexpected(context.WithoutCancel(ctx), provokes...); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			w.explain(t)
		}
	})
	return ctx
}

func (w *world) explain(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(w.Lab.Dir(), "*/*.log"))
	for _, log := range logs {
		b, _ := os.ReadFile(log)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("%s:\n%s", log, strings.Join(lines[max(0, len(lines)-30):], "\n"))
	}
}

// id returns a request id that nobody had.
func (w *world) id() string { return fmt.Sprint("e2e-", w.used.Add(1)) }

// ip returns an address that nobody had: a former one rests for a minute.
func (w *world) ip() string {
	n := w.used.Add(1)
	return fmt.Sprintf("10.20.%d.%d", 7+n/200, 33+n%200)
}

// A member is a cheap guest with its port.
type member struct {
	*lab.Guest
	w    *world
	port string
	ip   string
}

// guest attaches a guest to a network: with an address set by hand, or with
// replug-guest and DHCP. It is detached when the test ends.
func (w *world) guest(ctx context.Context, t *testing.T, host int, network string, static bool) *member {
	t.Helper()
	return w.guestAt(ctx, t, host, network, w.ip(), static)
}

func (w *world) guestAt(ctx context.Context, t *testing.T, host int, network, ip string, static bool) *member {
	t.Helper()
	return w.attach(ctx, t, cluster.Attachment{Host: host, Network: network, IP: ip, Static: static})
}

// attach attaches a guest of the tenant; what its attachment needs no test says.
func (w *world) attach(ctx context.Context, t *testing.T, a cluster.Attachment) *member {
	t.Helper()
	a.Name, a.Tenant, a.Bits = fmt.Sprint("m", w.used.Add(1)), tenant, bits
	t.Cleanup(func() { w.detach(t, a.Name) })
	g, err := w.Attach(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return &member{Guest: g, w: w, port: a.Name, ip: a.IP}
}

// detach ends a port, waits until it is gone, and switches its guest off.
func (w *world) detach(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := pb.NewPortsClient(w.conn)
	_, err := client.DetachPort(ctx, &pb.DetachPortRequest{RequestId: w.id(), Tenant: tenant, Name: name})
	if err == nil {
		err = lab.Until(ctx, "the end of port "+name, func() error {
			_, err := client.GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: name})
			if status.Code(err) == codes.NotFound {
				return nil
			}
			return fmt.Errorf("it is there: %w", err)
		})
	}
	if err != nil && status.Code(err) != codes.NotFound {
		t.Errorf("detach %s: %v", name, err)
	}
	if node, err := w.Lab.Node("g-" + name); err == nil {
		for _, p := range w.Lab.Procs() {
			if strings.HasPrefix(p.Log(), node.Dir()+"/") && p.Alive() {
				_ = p.Kill()
			}
		}
	}
}

// also gives the guest one more address.
func (m *member) also(ctx context.Context, t *testing.T, ip string) {
	t.Helper()
	if _, err := m.Run(ctx, "ip", "addr", "add", fmt.Sprintf("%s/%d", ip, bits), "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
}

// peer returns the guest on host 2 that has the same address in red and in blue.
func (w *world) peer(ctx context.Context, t *testing.T, network string) *lab.Guest {
	t.Helper()
	if w.peers[network] == nil {
		g, err := w.Attach(ctx, cluster.Attachment{Name: "peer-" + network, Host: 2, Tenant: tenant, Network: network, IP: peerIP, Bits: bits, Static: true})
		if err != nil {
			t.Fatal(err)
		}
		w.peers[network] = g
	}
	return w.peers[network]
}

// reaches fails the test if no answer comes from an address in time.
func reaches(ctx context.Context, t *testing.T, from *lab.Node, ip string) {
	t.Helper()
	if err := cluster.Ping(ctx, from, netip.MustParseAddr(ip)); err != nil {
		t.Errorf("%s does not reach %s: %v", from.Name, ip, err)
	}
}

// start begins a swap of the guest's port.
func (m *member) start(ctx context.Context, t *testing.T, r *pb.StartSwapRequest) *pb.Swap {
	t.Helper()
	r.RequestId, r.Tenant, r.Port = m.w.id(), tenant, m.port
	s, err := pb.NewSwapsClient(m.w.conn).StartSwap(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// move swaps the guest's port and fails the test if that isn't committed.
func (m *member) move(ctx context.Context, t *testing.T, r *pb.StartSwapRequest) *pb.Swap {
	t.Helper()
	s := m.w.ends(ctx, t, m.start(ctx, t, r).Id, "committed")
	if s.Ok {
		m.ip = s.After.Addrs[0]
		m.ip, _, _ = strings.Cut(m.ip, "/")
	}
	return s
}

// ends waits for a swap's end and compares the phase.
func (w *world) ends(ctx context.Context, t *testing.T, id, want string) *pb.Swap {
	t.Helper()
	s, err := w.until(ctx, id, func(s *pb.Swap) bool { return s.Done })
	if err != nil {
		t.Fatal(err)
	}
	if s.Phase != want {
		t.Fatalf("swap %s ended %s (%s), want %s; timeline %v", id, s.Phase, s.Error, want, hops(s))
	}
	return s
}

// until watches a swap, through restarts of the server, until ok says so.
func (w *world) until(ctx context.Context, id string, ok func(*pb.Swap) bool) (*pb.Swap, error) {
	var last *pb.Swap
	for {
		stream, err := pb.NewSwapsClient(w.conn).WatchSwap(ctx, &pb.GetSwapRequest{Id: id}, grpc.WaitForReady(true))
		for err == nil {
			var s *pb.Swap
			if s, err = stream.Recv(); err == nil {
				last = s
				if ok(s) {
					return s, nil
				}
			}
		}
		code := status.Code(err)
		if ctx.Err() != nil || code != codes.Unavailable && code != codes.Aborted && code != codes.Canceled {
			return nil, fmt.Errorf("watch swap %s, last seen %s: %w", id, last, err)
		}
	}
}

// in waits until a swap is in a phase.
func (w *world) in(ctx context.Context, t *testing.T, id, phase string) *pb.Swap {
	t.Helper()
	s, err := w.until(ctx, id, func(s *pb.Swap) bool { return s.Phase == phase || s.Done })
	if err != nil {
		t.Fatal(err)
	}
	if s.Phase != phase {
		t.Fatalf("swap %s is %s (%s), want %s", id, s.Phase, s.Error, phase)
	}
	return s
}

func hops(s *pb.Swap) (names []string) {
	for _, h := range s.Timeline {
		names = append(names, h.By+"/"+h.Name)
	}
	return names
}

// refused fails the test unless err has the code and says all of the words.
func refused(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v (%v), want %s", err, status.Code(err), code)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("the error is %q, want %q in it", err, word)
		}
	}
}
