// Command replug-server is the directory and the control plane: see package control.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"replug/control"
	"replug/directory/etcd"
	"replug/directory/pki"
	"replug/directory/store"
)

const help = `Example:
  replug-server --data-dir /var/lib/replug --listen :7443 --ca ca.crt --cert s1.crt --key s1.key
  replug-server --etcd-endpoints https://10.9.8.7:2379 --name s2 --listen :7443 ...
  replug-server --config /etc/replug/server.yaml

{{.Short}}.

{{.UsageString}}`

// errUsage is a command line that can't be understood.
var errUsage = errors.New("see replug-server --help")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "replug-server:", err)
	if errors.Is(err, errUsage) || errors.Is(err, control.ErrInvalid) {
		os.Exit(2)
	}
	os.Exit(1)
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "replug-server",
		Short:         "Directory and control plane: serves hosts and the API, with an embedded store or an external etcd cluster",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.complete(c.Flags()); err != nil {
				return err
			}
			return run(c.Context(), &o)
		},
	}
	c.SetHelpTemplate(help)
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w (%w)", err, errUsage) })
	o.flags(c.Flags())
	return c
}

// run serves until ctx ends or the store dies.
func run(ctx context.Context, o *options) error {
	db, err := etcd.Open(ctx, etcd.Config{DataDir: o.DataDir, Endpoints: o.Endpoints, TLS: o.etcdTLS, Name: o.Name, Log: o.log, Quota: int64(o.StoreQuota) << 20})
	if ctx.Err() != nil && err != nil {
		return nil // told to stop before it has begun
	}
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer db.Close()
	id, err := db.Identity(ctx)
	if err != nil {
		return fmt.Errorf("read the cluster's identity: %w", err)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), db)
	h := health.NewServer()
	h.SetServingStatus("", healthOf(false))
	s, err := control.New(control.Config{
		Name: o.Name, Address: o.Advertise, Store: store.New(db.Client()), Cluster: id.ID, Era: id.Era,
		Alone: o.DataDir != "", Backup: db.Backup, Tidy: db.Tidy, VNIs: o.vnis, BootBudget: o.BootBudget,
		BootsPerHost: o.BootsPerHost, Log: o.log, Metrics: metrics,
		OnLead: func(leads bool) { h.SetServingStatus("", healthOf(leads)) },
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error { return serveGRPC(ctx, o, s, h) })
	g.Go(func() error { return serveMetrics(ctx, o, metrics) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-db.Failed():
			return db.Err()
		}
	})
	err = g.Wait()
	o.log.Info("stopped", "error", err)
	return err
}

// healthOf says in gRPC's words whether this server answers the API: a standby does not.
func healthOf(leads bool) healthpb.HealthCheckResponse_ServingStatus {
	if leads {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

// stopPatience is how long calls may go on when the server stops.
const stopPatience = 2 * time.Second

// serveGRPC serves hosts and API until ctx ends.
func serveGRPC(ctx context.Context, o *options, s *control.Server, h *health.Server) error {
	tls, err := pki.Files{CA: o.CA, Cert: o.Cert, Key: o.Key}.ServerTLS(o.log)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	g := grpc.NewServer(append(s.Options(), grpc.Creds(credentials.NewTLS(tls)))...)
	s.Register(g)
	reflection.Register(g)
	healthpb.RegisterHealthServer(g, h)
	o.log.Info("listening", "address", l.Addr().String(), "server", o.Name)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		h.Shutdown()
		forced := time.AfterFunc(stopPatience, g.Stop)
		defer forced.Stop()
		g.GracefulStop()
	}()
	err = g.Serve(l)
	<-done
	return err
}

// serveMetrics serves /metrics until ctx ends.
func serveMetrics(ctx context.Context, o *options, reg *prometheus.Registry) error {
	if o.Metrics == "" {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	srv := &http.Server{Addr: o.Metrics, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
