package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	pb "replug/control/controlpb"
	"replug/dataplane/netdev"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// Ports of one host, after which the agent is looked at.
const fewPorts, manyPorts = 1000, 10_000

// ports attaches many taps to one host through the API: its real agent with
// the real datapath puts all of them in force. What a port costs the agent in memory,
// and whether the last ones cost it as much CPU as the first.
func ports(ctx context.Context, o Options) (figures []Figure, err error) {
	c, end, err := startCluster(ctx, o, 1, cluster.Config{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	// A larger host than the lab's: no port has an address of the other size yet.
	if err := startAgain(ctx, c, 1, []string{"--max-ports", "16000", "--pa-prefix", "100.80.0.0/18"}); err != nil {
		return nil, err
	}
	conn, err := c.Conn()
	if err != nil {
		return nil, err
	}
	if err := redNetwork(ctx, conn); err != nil {
		return nil, err
	}
	h := &manyHost{Cluster: c, client: pb.NewPortsClient(conn)}
	empty, err := h.at(ctx, 0)
	if err != nil {
		return nil, err
	}
	few, err := h.at(ctx, fewPorts)
	if err != nil {
		return nil, err
	}
	many, err := h.at(ctx, manyPorts)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(o.Out, "agent: %.1f MB with no port, %.1f with %d, %.1f with %d; CPU a port %.2f ms of the first %d, %.2f of the rest\n",
		empty.rss, few.rss, fewPorts, many.rss, manyPorts, few.perPort(empty), fewPorts, many.perPort(few))
	return []Figure{ // an agent that has just loaded its programs holds more than it needs
		atMost("port_agent_kb", fmt.Sprintf("KB of %d", manyPorts), []float64{(many.rss - few.rss) * 1000 / (manyPorts - fewPorts)}, median, 25, "", 0),
		atMost("port_attach_growth", "x", []float64{many.perPort(few) / few.perPort(empty)}, median, 1.5, "", 0),
	}, nil
}

// A manyHost is a host that gets more and more ports.
type manyHost struct {
	*cluster.Cluster
	client pb.PortsClient
	ports  int
}

// A portCost is how an agent stands with some ports.
type portCost struct {
	ports int
	rss   float64 // MB
	cpu   time.Duration
}

// perPort is the CPU time of each port since before, ms.
func (c portCost) perPort(before portCost) float64 {
	return (c.cpu - before.cpu).Seconds() * 1000 / float64(c.ports-before.ports)
}

// at attaches ports until there are n, waits until the agent has nothing to do, and
// looks at it.
func (h *manyHost) at(ctx context.Context, n int) (portCost, error) {
	g, attaching := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for ; h.ports < n; h.ports++ {
		i := h.ports
		g.Go(func() error { return h.attach(attaching, i) })
	}
	if err := g.Wait(); err != nil {
		return portCost{}, err
	}
	if err := lab.Until(ctx, fmt.Sprintf("%d ports in force", n), func() error { return h.inForce(n) }); err != nil {
		return portCost{}, err
	}
	if err := h.quiet(ctx); err != nil {
		return portCost{}, err
	}
	c := portCost{ports: n}
	var err, err2 error
	c.rss, err = rss(h.Agent(1).PID())
	c.cpu, err2 = processCPU(h.Agent(1).PID())
	return c, errors.Join(err, err2)
}

func (h *manyHost) attach(ctx context.Context, i int) error {
	name := fmt.Sprint("many", i)
	if err := h.Lab.Host(1).Do(func() error { _, err := netdev.CreateTap(name, guestMTU, 0); return err }); err != nil {
		return err
	}
	mac := net.HardwareAddr{0x02, 'm', 'n', 'y', byte(i >> 8), byte(i)}
	ip := netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)})
	// A busy machine may keep the server from leading for a moment; the request is the same.
	return lab.Until(ctx, "the server to take "+name, func() error {
		_, err := h.client.AttachPort(ctx, &pb.AttachPortRequest{RequestId: name, Tenant: tenant, Name: name, Host: "h1", Tap: name,
			Mac: mac.String(), Network: "red", Ip: ip.String()})
		return err
	})
}

// inForce counts the records that the agent writes once a port is in its place: to
// ask the agent itself would cost what is measured.
func (h *manyHost) inForce(n int) error {
	records, err := filepath.Glob(filepath.Join(h.Lab.Host(1).Dir(), "state", "ports", "*.json"))
	if err == nil && len(records) != n {
		err = fmt.Errorf("%d are", len(records))
	}
	return err
}

// quiet waits until the agent has used little CPU for a second: records are written
// and statuses told.
func (h *manyHost) quiet(ctx context.Context) error {
	last, at := time.Duration(0), time.Time{}
	return lab.Until(ctx, "the agent has nothing to do", func() error {
		if time.Since(at) < time.Second {
			return errors.New("it was looked at just now")
		}
		now, err := processCPU(h.Agent(1).PID())
		used, since := now-last, time.Since(at)
		last, at = now, time.Now()
		if err == nil && used > since/10 {
			err = fmt.Errorf("it used %s in %s", used, since)
		}
		return err
	})
}

// processCPU is what a process has used, threads that have ended included.
func processCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have anything in it
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("process %d: the kernel tells no times", pid)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture of Linux that we run on
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}
