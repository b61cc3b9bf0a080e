package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/dataplane/netdev"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// Ports on the host whose agent's memory is measured.
const memoryPorts = 50

// memory reads the resident memory of the agent of a host with 50 ports, and of
// the server.
func memory(ctx context.Context, o Options) (figures []Figure, err error) {
	c, end, err := startCluster(ctx, o, 1, cluster.Config{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	tap := func(name string, _ net.HardwareAddr) error {
		return c.Lab.Host(1).Do(func() error { _, err := netdev.CreateTap(name, guestMTU, 0); return err })
	}
	if err := crowd(ctx, c, tap); err != nil {
		return nil, err
	}
	host, err := rss(c.Agent(1).PID())
	if err != nil {
		return nil, err
	}
	server, err := rss(c.Server().PID())
	if err != nil {
		return nil, err
	}
	return []Figure{
		atMost("rss_host_mb", "MB", []float64{host}, median, 60, "", 0),
		atMost("rss_server_mb", "MB", []float64{server}, median, 200, "", 0),
	}, nil
}

// crowd makes taps, attaches a port to each, and waits until they are in force.
func crowd(ctx context.Context, c *cluster.Cluster, tap func(name string, mac net.HardwareAddr) error) error {
	conn, err := c.Conn()
	if err != nil {
		return err
	}
	if err := redNetwork(ctx, conn); err != nil {
		return err
	}
	client := pb.NewPortsClient(conn)
	for i := range memoryPorts {
		name := fmt.Sprintf("crowd%d", i+1)
		mac := net.HardwareAddr{0x02, 'c', 'r', 'w', 'd', byte(i + 1)}
		if err := tap(name, mac); err != nil {
			return err
		}
		if _, err := client.AttachPort(ctx, &pb.AttachPortRequest{RequestId: name, Tenant: tenant, Name: name, Host: "h1", Tap: name,
			Mac: mac.String(), Network: "red"}); err != nil {
			return err
		}
	}
	return lab.Until(ctx, "all ports to be in force", func() error {
		r, err := client.ListPorts(ctx, &pb.ListPortsRequest{Tenant: tenant})
		if err != nil {
			return err
		}
		ready := 0
		for _, p := range r.Ports {
			if p.Status != "" {
				ready++
			}
		}
		if ready < memoryPorts {
			return fmt.Errorf("%d of %d are", ready, memoryPorts)
		}
		return nil
	})
}

// redNetwork makes the tenant with its network red.
func redNetwork(ctx context.Context, conn grpc.ClientConnInterface) error {
	if _, err := pb.NewTenantsClient(conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: "tenant", Name: tenant}); err != nil {
		return err
	}
	_, err := pb.NewNetworksClient(conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: "network",
		Network: &pb.Network{Moniker: "red", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: subnet}}}})
	return err
}

// rss is the resident memory of a process, in MB of 10^6 bytes.
func rss(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			return kib * 1024 / 1e6, nil
		}
	}
	return 0, errors.New("the kernel doesn't tell the resident memory")
}
