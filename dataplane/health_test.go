package dataplane

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestHealth(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, healthSocket)
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // a dead agent's
		t.Fatal(err)
	}
	var connected atomic.Bool
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serveHealth(ctx, dir, connected.Load) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, c := range []struct {
		name, service string
		connected     bool
		want          healthpb.HealthCheckResponse_ServingStatus
		code          codes.Code
	}{
		{"the agent without a server", "", false, healthpb.HealthCheckResponse_SERVING, codes.OK},
		{"no server", serviceDirectory, false, healthpb.HealthCheckResponse_NOT_SERVING, codes.OK},
		{"a server", serviceDirectory, true, healthpb.HealthCheckResponse_SERVING, codes.OK},
		{"nobody knows it", "frob", true, healthpb.HealthCheckResponse_UNKNOWN, codes.NotFound},
	} {
		connected.Store(c.connected)
		r, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: c.service}, grpc.WaitForReady(true))
		if status.Code(err) != c.code || r.GetStatus() != c.want {
			t.Errorf("%s: got %v, %v; want %v, %v", c.name, r.GetStatus(), err, c.want, c.code)
		}
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("stopped: %v", err)
	}
}
