package pki

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers with the caller's identity as an error text.
type echo struct {
	healthpb.UnimplementedHealthServer
}

func (echo) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	id, err := FromContext(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return nil, status.Error(codes.Aborted, id.String())
}

func issue(t *testing.T, dir string, kind Kind, name string) Files {
	t.Helper()
	f, err := Issue(dir, Request{Kind: kind, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func ca(t *testing.T, cluster string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), cluster)
	if err := Init(dir, cluster); err != nil {
		t.Fatal(err)
	}
	return dir
}

// listen serves echo with a TLS configuration.
func listen(t *testing.T, c *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(c)))
	healthpb.RegisterHealthServer(g, echo{})
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

// ask connects anew and returns whom the server took the caller for.
func ask(t *testing.T, addr string, creds credentials.TransportCredentials) (string, error) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if status.Code(err) == codes.Aborted {
		return status.Convert(err).Message(), nil
	}
	return "", err
}

func client(t *testing.T, f Files) credentials.TransportCredentials {
	t.Helper()
	c, err := f.ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	return credentials.NewTLS(c)
}

func server(t *testing.T, f Files) string {
	t.Helper()
	c, err := f.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	return listen(t, c)
}

func TestWhoMayTalk(t *testing.T) {
	lab, other := ca(t, "lab"), ca(t, "other")
	addr := server(t, issue(t, lab, Server, "s1"))
	for _, kind := range []Kind{Host, Operator, Tenant, Server} {
		name := "x-" + string(kind)
		got, err := ask(t, addr, client(t, issue(t, lab, kind, name)))
		if want := "replug://lab/" + string(kind) + "/" + name; got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", kind, got, err, want)
		}
	}
	stranger := issue(t, other, Host, "h7")
	stranger.CA = filepath.Join(lab, "ca.crt") // it trusts the server, the server must not trust it
	halfway, _ := issue(t, lab, Host, "h9").ClientTLS(nil)
	halfway.GetClientCertificate = nil
	old := halfway.Clone()
	for name, creds := range map[string]credentials.TransportCredentials{
		"no TLS":         insecure.NewCredentials(),
		"no certificate": credentials.NewTLS(halfway),
		"another CA":     client(t, stranger),
		"TLS 1.2":        credentials.NewTLS(func() *tls.Config { old.MinVersion, old.MaxVersion = 0, tls.VersionTLS12; return old }()),
		"server unknown": client(t, issue(t, other, Host, "h8")),
	} {
		if got, err := ask(t, addr, creds); err == nil {
			t.Errorf("%s: the server took it for %s", name, got)
		}
	}
}

// One CA for two clusters must not let one's hosts into the other.
func TestAnotherClusterOfTheSameCA(t *testing.T) {
	lab := ca(t, "lab")
	addr := server(t, issue(t, lab, Server, "s1"))
	f := issue(t, lab, Host, "h7")
	l, err := f.load(nil)
	if err != nil {
		t.Fatal(err)
	}
	l.own.Cluster = "elsewhere"
	c, _ := f.ClientTLS(nil)
	c.VerifyConnection = l.verifyServer
	if _, err := ask(t, addr, credentials.NewTLS(c)); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("got %v", err)
	}
}

func TestHostIsNoServer(t *testing.T) {
	lab := ca(t, "lab")
	host := issue(t, lab, Host, "h7")
	if _, err := host.ServerTLS(nil); err == nil {
		t.Error("a host's certificate serves")
	}
	// A stolen one, served without asking us.
	pair, err := tls.LoadX509KeyPair(host.Cert, host.Key)
	if err != nil {
		t.Fatal(err)
	}
	addr := listen(t, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	if _, err := ask(t, addr, client(t, issue(t, lab, Operator, "ann"))); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a client talks to a host that plays server: %v", err)
	}
}

// Certificates and the CA change while server and client run.
func TestRotation(t *testing.T) {
	lab := ca(t, "lab")
	addr := server(t, issue(t, lab, Server, "s1"))
	creds := client(t, issue(t, lab, Host, "h7"))
	if _, err := ask(t, addr, creds); err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(t.TempDir(), "before")
	if err := os.CopyFS(before, os.DirFS(lab)); err != nil {
		t.Fatal(err)
	}
	// A new CA: both sides' files are replaced in place.
	fresh := ca(t, "lab")
	for _, f := range []Files{issue(t, fresh, Server, "s1"), issue(t, fresh, Host, "h7")} {
		for _, path := range []string{f.Key, f.Cert, f.CA} {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(lab, filepath.Base(path)), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]credentials.TransportCredentials{
		"the client that was there": creds, "a new client": client(t, DirFiles(fresh, "h7"))} {
		if got, err := ask(t, addr, c); err != nil || got != "replug://lab/host/h7" {
			t.Errorf("after the rotation, %s: %q, %v", name, got, err)
		}
	}
	stale := DirFiles(before, "h7")
	stale.CA = filepath.Join(fresh, caFile)
	if got, err := ask(t, addr, client(t, stale)); err == nil {
		t.Errorf("a certificate of the former CA is still %s", got)
	}
	// A half-written file changes nothing.
	if err := os.WriteFile(filepath.Join(lab, "s1.crt"), []byte("-----BEGIN"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, addr, creds); err != nil {
		t.Errorf("with an unreadable file: %v", err)
	}
}

func TestIssue(t *testing.T) {
	lab := ca(t, "lab")
	f, err := Issue(lab, Request{Kind: Server, Name: "s1", IPs: []netip.Addr{netip.MustParseAddr("172.31.250.2")}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := certificate(f.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.VerifyHostname("172.31.250.2"); err != nil {
		t.Error(err)
	}
	if err := c.VerifyHostname(ServerName); err != nil {
		t.Error(err)
	}
	if life := time.Until(c.NotAfter); life < 364*24*time.Hour || life > 366*24*time.Hour {
		t.Errorf("lives %v", life)
	}
	for _, path := range []string{f.Key, filepath.Join(lab, "ca.key")} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
	if err := Init(lab, "lab"); !errors.Is(err, ErrExists) {
		t.Errorf("a second CA: %v", err)
	}
	for _, c := range []struct {
		r    Request
		want error
	}{
		{Request{Kind: Host, Name: "s1"}, ErrExists}, // would take the server's files away
		{Request{Kind: Host, Name: "ca"}, ErrIdentity},
		{Request{Kind: Host, Name: "../h7"}, ErrIdentity},
		{Request{Kind: Host, Name: "h7/operator"}, ErrIdentity},
		{Request{Kind: "root", Name: "h7"}, ErrIdentity},
		{Request{Kind: Host}, ErrIdentity},
	} {
		if _, err := Issue(lab, c.r); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.r, err, c.want)
		}
	}
}
