package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/directory/directorypb"
	"replug/directory/pki"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// listeners returns the TCP addresses that programs in the node listen on.
func listeners(t *testing.T, n *lab.Node) (all []netip.AddrPort) {
	t.Helper()
	err := n.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) < 4 || f[3] != "0A" { // proc_net_tcp(5): listening
					continue
				}
				var port uint16
				addr, p, _ := strings.Cut(f[1], ":")
				raw, err := hex.DecodeString(addr)
				if _, perr := fmt.Sscanf(p, "%X", &port); err != nil || perr != nil {
					return fmt.Errorf("%s: %v %v", f[1], err, perr)
				}
				for i := 0; i < len(raw); i += 4 { // words in host order
					raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
				}
				ip, _ := netip.AddrFromSlice(raw)
				all = append(all, netip.AddrPortFrom(ip.Unmap(), port))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Nobody without a certificate of the cluster gets a word out of any port that
// the server's and the hosts' programs listen on; /metrics alone is open, and
// only to the machine itself.
func TestStrangersAreRefused(t *testing.T) {
	w := shared
	ctx := w.within(t)
	metrics := map[uint16]bool{9416: true, 9417: true, 9418: true}
	metadata := map[string]bool{"169.254.169.254:80": true, "168.63.129.16:80": true, "[fd00:ec2::254]:80": true}
	served := 0
	for _, n := range append(w.Lab.Hosts(), w.Lab.Server()) {
		for _, at := range listeners(t, n) {
			switch {
			case at.Addr().IsLoopback() && metrics[at.Port()]:
			case n != w.Lab.Server() && metadata[at.String()]: // by imds0 alone
			case n == w.Lab.Server() && at.Port() == cluster.Port:
				served++
				w.strange(ctx, t, at.String())
			default:
				t.Errorf("somebody in %s listens on %s", n.Name, at)
			}
		}
	}
	if served != 1 {
		t.Errorf("the server listens on %d ports, want 1", served)
	}
}

// strange calls a server in all the ways it must not answer.
func (w *world) strange(ctx context.Context, t *testing.T, addr string) {
	t.Helper()
	stranger := filepath.Join(t.TempDir(), "pki")
	if err := pki.Init(stranger, w.Lab.Name()); err != nil { // the same cluster's name, another authority
		t.Fatal(err)
	}
	if _, err := pki.Issue(stranger, pki.Request{Kind: pki.Operator, Name: "operator"}); err != nil {
		t.Fatal(err)
	}
	f := pki.DirFiles(stranger, "operator")
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(w.PKI, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	good := &tls.Config{RootCAs: pool, ServerName: pki.ServerName, NextProtos: []string{"h2"}}
	with := good.Clone()
	with.Certificates = []tls.Certificate{pair}
	old := good.Clone()
	old.MaxVersion = tls.VersionTLS12
	for name, creds := range map[string]credentials.TransportCredentials{
		"plain text": insecure.NewCredentials(), "no certificate": credentials.NewTLS(good),
		"another authority": credentials.NewTLS(with), "TLS 1.2": credentials.NewTLS(old),
	} {
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithDisableServiceConfig(), grpc.WithTransportCredentials(creds), grpc.WithContextDialer(w.dialer))
		if err != nil {
			t.Fatal(err)
		}
		_, err1 := pb.NewTenantsClient(conn).ListTenants(ctx, &pb.ListTenantsRequest{})
		_, err2 := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		conn.Close()
		for _, err := range []error{err1, err2} {
			refused(t, err, codes.Unavailable)
			t.Logf("%s: %v", name, err)
		}
	}
}

// Who has a certificate may do what its kind may, and no more: a host is no
// caller of the API and no other host, an operator is no host, a tenant sees and
// touches its own only.
func TestWhoMayDoWhat(t *testing.T) {
	w := shared
	ctx := w.within(t)
	for _, name := range []string{tenant, "rival"} {
		if _, err := pki.Issue(w.PKI, pki.Request{Kind: pki.Tenant, Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	as := func(name string) *grpc.ClientConn {
		return w.dial(t, w.Endpoint(), pki.DirFiles(w.PKI, name))
	}
	web := w.guest(ctx, t, 1, "red", true)

	host := as("h2")
	_, err := pb.NewTenantsClient(host).ListTenants(ctx, &pb.ListTenantsRequest{})
	refused(t, err, codes.PermissionDenied, "h2")
	_, err = pb.NewSwapsClient(host).StartSwap(ctx, &pb.StartSwapRequest{RequestId: w.id(), Tenant: tenant, Port: web.port, Network: "blue"})
	refused(t, err, codes.PermissionDenied)
	backup, err := pb.NewAdminClient(host).Backup(ctx, &pb.BackupRequest{})
	if err == nil {
		_, err = backup.Recv()
	}
	refused(t, err, codes.PermissionDenied)
	for conn, name := range map[*grpc.ClientConn]string{host: "h1", as("operator"): "h1", as(tenant): "h1"} {
		refused(t, attachAs(ctx, t, conn, name), codes.PermissionDenied, "h1")
	}

	mine, theirs := as(tenant), as("rival")
	if p, err := pb.NewPortsClient(mine).GetPort(ctx, &pb.GetPortRequest{Name: web.port}); err != nil || p.Tenant != tenant {
		t.Errorf("its owner sees the port as %v (%v)", p, err)
	}
	for _, claim := range []string{"", tenant} { // naming another tenant does not help
		_, err = pb.NewPortsClient(theirs).GetPort(ctx, &pb.GetPortRequest{Tenant: claim, Name: web.port})
		hidden(t, err)
		_, err = pb.NewSwapsClient(theirs).StartSwap(ctx, &pb.StartSwapRequest{RequestId: w.id(), Tenant: claim, Port: web.port, Network: "blue"})
		hidden(t, err)
		_, err = pb.NewNetworksClient(theirs).GetNetwork(ctx, &pb.GetNetworkRequest{Tenant: claim, Moniker: "red"})
		hidden(t, err)
	}
	for what, n := range map[string]int{
		"ports":    count((*pb.ListPortsResponse).GetPorts)(pb.NewPortsClient(theirs).ListPorts(ctx, &pb.ListPortsRequest{})),
		"networks": count((*pb.ListNetworksResponse).GetNetworks)(pb.NewNetworksClient(theirs).ListNetworks(ctx, &pb.ListNetworksRequest{})),
		"swaps":    count((*pb.ListSwapsResponse).GetSwaps)(pb.NewSwapsClient(theirs).ListSwaps(ctx, &pb.ListSwapsRequest{})),
		"VMs":      count((*pb.ListVMsResponse).GetVms)(pb.NewVMsClient(theirs).ListVMs(ctx, &pb.ListVMsRequest{})),
	} {
		if n != 0 {
			t.Errorf("the rival sees %d %s (-1: none could be listed), want none", n, what)
		}
	}
	for _, err := range []error{
		second(pb.NewTenantsClient(theirs).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: w.id(), Name: "third"})),
		second(pb.NewHostsClient(theirs).DeleteHost(ctx, &pb.DeleteHostRequest{RequestId: w.id(), Name: "h1"})),
	} {
		refused(t, err, codes.PermissionDenied)
	}
}

func second[T any](_ T, err error) error { return err }

// count returns what counts a list's items: -1 if the list could not be had.
func count[R, I any](items func(R) []I) func(R, error) int {
	return func(r R, err error) int {
		if err != nil {
			return -1
		}
		return len(items(r))
	}
}

// hidden fails the test unless the error is one that says nothing of what is there.
func hidden(t *testing.T, err error) {
	t.Helper()
	if code := status.Code(err); code != codes.NotFound && code != codes.PermissionDenied {
		t.Errorf("got %v, want NotFound or PermissionDenied", err)
	}
}

// attachAs opens a host's stream under a name and returns how it is refused.
func attachAs(ctx context.Context, t *testing.T, conn *grpc.ClientConn, name string) error {
	t.Helper()
	stream, err := directorypb.NewDirectoryClient(conn).Attach(ctx)
	if err != nil {
		return err
	}
	err = stream.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Hello{Hello: &directorypb.Hello{Session: 77,
		Host: &directorypb.Host{Name: name, Address: "172.31.9.2", PaPrefix: "100.64.9.0/24", Mtu: 1500, Ports: 9}}}})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// Nothing listens in the underlay's addresses of a host but VXLAN in the kernel.
func TestNoProviderAddressAnswers(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	p, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"22", "80", "7443", "9417"} {
		err := w.Lab.Host(2).Do(func() error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(p.Pa, port), 150*time.Millisecond)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err == nil {
			t.Errorf("%s:%s answers", p.Pa, port)
		}
	}
}
