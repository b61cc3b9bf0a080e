package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"replug/directory/pki"
)

// patience is how long a server may take for what it does at once.
const patience = 30 * time.Second

func TestHelpBeginsWithAnExample(t *testing.T) {
	c := command()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetArgs([]string{"--help"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "Example:\n  replug-server --data-dir") {
		t.Errorf("help begins with %.60q", out.String())
	}
}

// What can't be understood is refused before anything is opened.
func TestBadCommandLines(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		name := filepath.Join(dir, fmt.Sprintf("%x.yaml", text))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	certs := []string{"--ca", "a", "--cert", "b", "--key", "c"}
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"unknown flag", []string{"--data-dri", "x"}, "data-dri"},
		{"no store", certs, "--data-dir"},
		{"two stores", append([]string{"--data-dir", "x", "--etcd-endpoints", "y"}, certs...), "--data-dir"},
		{"no certificates", []string{"--data-dir", "x"}, "replug pki"},
		{"one role", append([]string{"--data-dir", "x", "--roles", "control"}, certs...), "directory,control"},
		{"range backwards", append([]string{"--data-dir", "x", "--vni-range", "9-7"}, certs...), "9-7"},
		{"VNI 0", append([]string{"--data-dir", "x", "--vni-range", "0-7"}, certs...), "0-7"},
		{"log format", append([]string{"--data-dir", "x", "--log-format", "xml"}, certs...), "xml"},
		{"unknown key in the file", []string{"--config", file("data-dri: x")}, "data-dri"},
		{"key twice in the file", []string{"--config", file("name: a\nname: b")}, "name"},
		{"malformed file", []string{"--config", file("name: [")}, "yaml"},
		{"wrong type in the file", []string{"--config", file("boots-per-host: many")}, "boots-per-host"},
		{"no file", []string{"--config", dir + "/none.yaml"}, "none.yaml"},
	} {
		cmd := command()
		cmd.SetArgs(c.args)
		cmd.SetOut(io.Discard)
		err := cmd.ExecuteContext(t.Context())
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want usage and %q", c.name, err, c.says)
		}
	}
}

// The file says what flags say; flags win.
func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "server.yaml")
	text := "data-dir: /x\nname: from-file\nca: a\ncert: b\nkey: c\nboots-per-host: 1234567\nvni-range: 70001-70003\nroles: [control, directory]\nboot-budget: 17s\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var o options
	c := command()
	c.ResetFlags()
	o.flags(c.Flags())
	if err := c.ParseFlags([]string{"--config", name, "--name", "from-flag"}); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(c.Flags()); err != nil {
		t.Fatal(err)
	}
	if o.Name != "from-flag" || o.DataDir != "/x" || o.BootsPerHost != 1234567 || o.vnis.Min != 70001 || o.BootBudget != 17*time.Second {
		t.Errorf("options %+v", o)
	}
}

// The whole program: health, reflection, metrics, and a clean stop.
func TestServer(t *testing.T) {
	dir := t.TempDir()
	if err := pki.Init(dir, "testbed"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []pki.Request{{Kind: pki.Server, Name: "s1"}, {Kind: pki.Operator, Name: "olga"}} {
		if _, err := pki.Issue(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	listen, metrics := free(t)
	f := pki.DirFiles(dir, "s1")
	ctx, stop := context.WithCancel(t.Context())
	c := command()
	c.SetArgs([]string{"--data-dir", filepath.Join(dir, "data"), "--name", "s1", "--listen", listen, "--metrics-listen", metrics,
		"--ca", f.CA, "--cert", f.Cert, "--key", f.Key, "--log-level", "error"})
	done := make(chan error, 1)
	go func() { done <- c.ExecuteContext(ctx) }()
	tls, err := pki.DirFiles(dir, "olga").ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(listen, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	health, err := healthpb.NewHealthClient(conn).Watch(soon, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for s := healthpb.HealthCheckResponse_UNKNOWN; s != healthpb.HealthCheckResponse_SERVING; {
		r, err := health.Recv()
		if err != nil {
			t.Fatalf("health %v, %v", s, err)
		}
		s = r.GetStatus()
	}
	if names := services(ctx, t, conn); !strings.Contains(names, "replug.control.v1.Swaps") || !strings.Contains(names, "replug.directory.v1.Directory") {
		t.Errorf("services %s", names)
	}
	r, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"replug_store_txns_total ", "replug_leading 1", "replug_swaps", "go_goroutines"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %q in the metrics:\n%s", want, body)
		}
	}
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("stopped with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it does not stop")
	}
}

// services asks the server what it serves.
func services(ctx context.Context, t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	s, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(r.GetListServicesResponse())
}

// free returns two addresses that nobody listens on: both are held at once, or they
// could be the same.
func free(t *testing.T) (one, other string) {
	t.Helper()
	var at [2]string
	for i := range at {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at[i] = l.Addr().String()
	}
	return at[0], at[1]
}
