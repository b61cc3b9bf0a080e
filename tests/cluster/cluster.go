// Package cluster runs Replug's own programs in a lab: certificates, the server,
// an agent on every host. Tests, the demo, the benchmarks and `replug lab` share
// it. The programs are the real ones, started by their command lines.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "replug/control/controlpb"
	"replug/directory/pki"
	"replug/tests/lab"
)

// Image is the name of the small guest in the hosts' image repositories.
const Image = "tiny"

// Port is where the server listens.
const Port = 7443

// Config says which programs to run.
type Config struct {
	Bin    string      // directory with replug, replug-server, replug-host, replug-guest
	Image  string      // directory of the small guest's image; "": hosts run no VMs
	Memory map[int]int // MiB that a host, counted from 1, may give to VMs
	Agents int         // how many of the lab's hosts run one, the first ones; 0: all
}

// A Cluster is a running one. Its methods may be called at once from several
// goroutines, except those that start or kill the same program.
type Cluster struct {
	Lab    *lab.Lab
	Config Config
	PKI    string // directory of certificates: operator, s1, h1, ...

	server *lab.Proc
	hosts  map[int]*lab.Proc
	conn   *grpc.ClientConn
}

// Start makes certificates, starts the server and the agents, and waits until
// all of them are connected.
func Start(ctx context.Context, l *lab.Lab, config Config) (*Cluster, error) {
	c := &Cluster{Lab: l, Config: config, PKI: filepath.Join(l.Dir(), "pki"), hosts: make(map[int]*lab.Proc)}
	if err := c.certify(); err != nil {
		return nil, err
	}
	if err := c.StartServer(ctx); err != nil {
		return nil, err
	}
	agents := config.Agents
	if agents == 0 {
		agents = len(l.Hosts())
	}
	for n := range agents {
		if err := c.prepareHost(n + 1); err != nil {
			return nil, err
		}
		if err := c.StartHost(ctx, n+1); err != nil {
			return nil, err
		}
	}
	return c, c.Connected(ctx)
}

func (c *Cluster) certify() error {
	if err := pki.Init(c.PKI, c.Lab.Name()); err != nil {
		return err
	}
	requests := []pki.Request{
		{Kind: pki.Server, Name: "s1", IPs: []netip.Addr{c.Lab.ServerAddr()}},
		{Kind: pki.Operator, Name: "operator"},
	}
	for _, h := range c.Lab.Hosts() {
		requests = append(requests, pki.Request{Kind: pki.Host, Name: h.Name})
	}
	for _, r := range requests {
		if _, err := pki.Issue(c.PKI, r); err != nil {
			return fmt.Errorf("certificate of %s: %w", r.Name, err)
		}
	}
	return nil
}

// Endpoint is where programs in a lab reach its server.
func Endpoint(l *lab.Lab) string { return netip.AddrPortFrom(l.ServerAddr(), Port).String() }

// Endpoint is where programs in the lab reach the server.
func (c *Cluster) Endpoint() string { return Endpoint(c.Lab) }

// StartServer starts the server on its data directory and waits until it serves.
func (c *Cluster) StartServer(ctx context.Context) error {
	f := pki.DirFiles(c.PKI, "s1")
	p, err := c.Lab.Server().Start(ctx, lab.Cmd{Name: "replug-server", Args: []string{
		filepath.Join(c.Config.Bin, "replug-server"), "--name", "s1",
		"--data-dir", filepath.Join(c.Lab.Server().Dir(), "data"),
		"--listen", c.Endpoint(), "--metrics-listen", "127.0.0.1:9418",
		"--ca", f.CA, "--cert", f.Cert, "--key", f.Key}})
	if err != nil {
		return err
	}
	c.server = p
	return c.serving(ctx)
}

// serving waits until the server says that it leads.
func (c *Cluster) serving(ctx context.Context) error {
	conn, err := c.Conn()
	if err != nil {
		return err
	}
	return c.until(ctx, "the server serves", c.server, func(ctx context.Context) error {
		conn.ResetConnectBackoff()
		r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && r.Status != healthpb.HealthCheckResponse_SERVING {
			err = errors.New(r.Status.String())
		}
		if err == nil {
			_, err = pb.NewAdminClient(conn).GetCluster(ctx, &pb.GetClusterRequest{})
		}
		return err
	})
}

// until tries ask until it succeeds, the program ends, or ctx does.
func (c *Cluster) until(ctx context.Context, what string, p *lab.Proc, ask func(context.Context) error) error {
	return lab.Until(ctx, what, func() error {
		if !p.Alive() {
			return fmt.Errorf("%s has ended; see %s", p.Name, p.Log())
		}
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return ask(try)
	})
}

// KillServer ends the server at once, as a crash does.
func (c *Cluster) KillServer(ctx context.Context) error { return kill(ctx, c.server) }

// StopServer ends the server as an operator does.
func (c *Cluster) StopServer(ctx context.Context) error { return c.server.Stop(ctx) }

// Server returns the server's process.
func (c *Cluster) Server() *lab.Proc { return c.server }

// Agent returns the process of host n's agent.
func (c *Cluster) Agent(n int) *lab.Proc { return c.hosts[n] }

func kill(ctx context.Context, p *lab.Proc) error {
	if err := p.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	_ = p.Wait(ctx) // the error says that it was killed
	return ctx.Err()
}

// prepareHost puts the image into the host's repository.
func (c *Cluster) prepareHost(n int) error {
	images := filepath.Join(c.Lab.Host(n).Dir(), "images")
	if c.Config.Image == "" {
		return os.MkdirAll(images, 0o755)
	}
	return lab.InstallImage(c.Config.Image, images, Image)
}

// StartHost starts the agent of host n, counted from 1.
func (c *Cluster) StartHost(ctx context.Context, n int, args ...string) error {
	h := c.Lab.Host(n)
	f := pki.DirFiles(c.PKI, h.Name)
	p, err := h.Start(ctx, lab.Cmd{Name: "replug-host-" + h.Name, Args: append([]string{
		filepath.Join(c.Config.Bin, "replug-host"), "--name", h.Name, "--server", c.Endpoint(),
		"--uplink", "up0", "--pa-prefix", c.Lab.PAPrefix(n).String(),
		"--state-dir", filepath.Join(h.Dir(), "state"), "--bpffs", filepath.Join(h.Dir(), "bpf"),
		"--images", filepath.Join(h.Dir(), "images"), "--memory", strconv.Itoa(c.Config.Memory[n]),
		"--ca", f.CA, "--cert", f.Cert, "--key", f.Key, "--label", "rack=lab",
		"--qemu-arg=-serial", "--qemu-arg=unix:{dir}/exec.sock,server=on,wait=off"}, args...)})
	if err != nil {
		return err
	}
	c.hosts[n] = p
	return nil
}

// KillHost ends the agent of host n at once, as a crash does. Its datapath and
// its VMs go on.
func (c *Cluster) KillHost(ctx context.Context, n int) error { return kill(ctx, c.hosts[n]) }

// Connected waits until every host's agent is connected.
func (c *Cluster) Connected(ctx context.Context) error {
	conn, err := c.Conn()
	if err != nil {
		return err
	}
	return c.until(ctx, "all hosts are connected", c.server, func(ctx context.Context) error {
		for n, p := range c.hosts {
			if !p.Alive() {
				return fmt.Errorf("the agent of h%d has ended; see %s", n, p.Log())
			}
		}
		r, err := pb.NewHostsClient(conn).ListHosts(ctx, &pb.ListHostsRequest{})
		if err != nil {
			return err
		}
		up := 0
		for _, h := range r.Hosts {
			if h.Connected {
				up++
			}
		}
		if up < len(c.hosts) {
			return fmt.Errorf("%d of %d hosts are connected", up, len(c.hosts))
		}
		return nil
	})
}

// Conn returns the operator's connection to the API, made inside the server's
// namespace.
func (c *Cluster) Conn() (*grpc.ClientConn, error) {
	if c.conn != nil {
		return c.conn, nil
	}
	conn, err := c.ConnAs("operator")
	if err == nil {
		c.conn = conn
	}
	return conn, err
}

// ConnAs returns a connection with the certificate of that name. The caller
// closes it.
func (c *Cluster) ConnAs(name string) (*grpc.ClientConn, error) {
	tls, err := pki.DirFiles(c.PKI, name).ClientTLS(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, addr string) (conn net.Conn, err error) {
		err = c.Lab.Server().Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return err
		})
		return conn, err
	}
	return grpc.NewClient("passthrough:///"+c.Endpoint(), grpc.WithContextDialer(dial), grpc.WithDisableServiceConfig(),
		grpc.WithTransportCredentials(credentials.NewTLS(tls)))
}

// CLI runs the replug command as the operator, inside the server's namespace,
// and returns what it prints.
func (c *Cluster) CLI(ctx context.Context, args ...string) ([]byte, error) {
	return c.Lab.Server().Run(ctx, append([]string{filepath.Join(c.Config.Bin, "replug"),
		"--server", c.Endpoint(), "--pki", c.PKI, "--as", "operator"}, args...)...)
}

// Close closes the connection to the API. The programs go with the lab.
func (c *Cluster) Close() error {
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}
