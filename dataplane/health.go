package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// healthSocket is where the agent tells whoever runs the host how it is. It is
// a file in the state directory, for root alone: a host has no inbound port.
const healthSocket = "health.sock"

// Services that [health] knows beside "", the agent itself.
const serviceDirectory = "replug.directory.v1.Directory"

// health answers gRPC's health protocol: "" serves once the datapath is in
// force; the directory while the host's stream to a server is open. Without the
// directory traffic flows and leases last: only changes wait.
type health struct {
	healthpb.UnimplementedHealthServer
	connected func() bool
}

// Check tells the state of one service; NOT_FOUND for one it doesn't know.
func (h health) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	serving := map[bool]healthpb.HealthCheckResponse_ServingStatus{
		true: healthpb.HealthCheckResponse_SERVING, false: healthpb.HealthCheckResponse_NOT_SERVING}
	switch r.Service {
	case "":
		return &healthpb.HealthCheckResponse{Status: serving[true]}, nil
	case serviceDirectory:
		return &healthpb.HealthCheckResponse{Status: serving[h.connected()]}, nil
	}
	return nil, status.Errorf(codes.NotFound, "no service %q here: ask for \"\" or %q", r.Service, serviceDirectory)
}

// serveHealth answers on the socket in dir until ctx ends.
func serveHealth(ctx context.Context, dir string, connected func() bool) error {
	path := filepath.Join(dir, healthSocket)
	// The lock on the state directory is ours: a socket there is a dead agent's.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("serve health: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("serve health: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("serve health: %w", err), l.Close())
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health{connected: connected})
	reflection.Register(s)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve health: %w", err)
	}
	return nil
}
