// Package control is the control plane: it wires the managers of networks, VMs,
// disks, pools and claims with the swaps, elects the one server that writes, and
// answers the API. It says what hosts should make true, by intents in the store,
// and learns what they have made true from the directory; it never calls a host.
//
// Only the leader writes, and each of its commits is fenced by its election key. A
// standby refuses API calls and host streams, naming the leader.
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"replug/control/network"
	"replug/control/swap"
	"replug/directory/pki"
	"replug/directory/server"
	"replug/directory/store"
)

// Errors of this package that callers match.
var (
	ErrStandby = errors.New("this server is a standby")
	ErrDenied  = errors.New("permission denied")
	ErrInvalid = errors.New("invalid")
	ErrRequest = errors.New("request id used for another request")
	ErrNotSo   = errors.New("not possible now")
	ErrMissing = errors.New("not found")
)

// Config is what a server needs. The zero values of the durations and of VNIs are
// the defaults.
type Config struct {
	Name    string // unique among the servers of a cluster
	Address string // where the others say the leader is
	Store   *store.Store
	Cluster string // id
	Era     uint16
	// Alone says that no other server can use the store (it is embedded), so an
	// election key that is there is left from a former life and need not time out.
	Alone    bool
	Backup   func(context.Context, io.Writer) error
	Tidy     func(context.Context) error                 // keeps the store small, and makes room in a full one; nil: somebody else does
	Identify func(context.Context) (pki.Identity, error) // nil: by the peer's certificate

	VNIs         network.Range
	BootBudget   time.Duration // a VM that has not succeeded by then has failed
	BootsPerHost int           // VMs that boot at once for the pool
	Rest         time.Duration // of an address given back
	Away         time.Duration // a host that was not here for so long gets no new flows of services
	Settle       time.Duration // hosts have so long to come to a new leader
	Session      time.Duration // an unreachable leader is replaced after it, whole seconds

	OnLead  func(leads bool) // told when the leadership comes and goes; nil: nobody asks
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// Defaults of a [Config].
const (
	DefaultBootBudget   = 5 * time.Minute
	DefaultBootsPerHost = 2
	DefaultSession      = 3 * time.Second
	MinVNI              = 4096 // below it: for networks whose VNI is chosen by hand
)

func (c *Config) fill() error {
	if c.Name == "" || c.Store == nil || c.Cluster == "" {
		return fmt.Errorf("%w server: it needs a name, a store and the cluster's id", ErrInvalid)
	}
	orDefault(&c.VNIs, network.Range{Min: MinVNI, Max: 1<<24 - 1})
	if !c.VNIs.Min.Valid() || !c.VNIs.Max.Valid() || c.VNIs.Min > c.VNIs.Max {
		return fmt.Errorf("%w VNI range %d-%d: must be within 1 to 16777215", ErrInvalid, c.VNIs.Min, c.VNIs.Max)
	}
	orDefault(&c.BootBudget, DefaultBootBudget)
	orDefault(&c.BootsPerHost, DefaultBootsPerHost)
	orDefault(&c.Rest, network.Rest)
	orDefault(&c.Away, awayAfter)
	orDefault(&c.Settle, settling)
	orDefault(&c.Session, DefaultSession)
	if c.Identify == nil {
		c.Identify = pki.FromContext
	}
	if c.Tidy == nil {
		c.Tidy = func(context.Context) error { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnLead == nil {
		c.OnLead = func(bool) {}
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	return nil
}

func orDefault[T comparable](v *T, unset T) {
	var zero T
	if *v == zero {
		*v = unset
	}
}

// A Server is one replug-server: a directory for the hosts, and the control plane
// when it is the leader.
type Server struct {
	cfg     Config
	dir     *server.Server
	feed    *feed
	metrics *metrics
	swaps   *swap.Metrics

	reign  atomic.Pointer[reign] // nil on a standby
	leader atomic.Pointer[string]
	up     presence
	looks  looks
}

// New makes a server. [Server.Run] makes it work.
func New(c Config) (*Server, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	s := &Server{cfg: c, feed: newFeed()}
	s.metrics = newMetrics(c.Metrics, s)
	s.swaps = swap.NewMetrics(c.Metrics)
	s.dir = server.New(server.Options{
		Store: c.Store, Cluster: c.Cluster, Era: c.Era, Control: s, Log: c.Log,
		Metrics: server.NewMetrics(c.Metrics), Identify: c.Identify,
	})
	return s, nil
}

// Register adds the services to a gRPC server, which must have been made with
// [Server.Options].
func (s *Server) Register(r grpc.ServiceRegistrar) {
	s.dir.Register(r)
	s.registerAPI(r)
}

// Options are what the gRPC server needs beside its credentials.
func (s *Server) Options() []grpc.ServerOption {
	return append(server.Keepalive(),
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream))
}

// Run serves until ctx ends: it follows the store, keeps the directory's view and
// stands for election. It returns nil when ctx has ended.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.feed.run(ctx, s.cfg.Store, s.cfg.Log) })
	g.Go(func() error { return s.dir.Run(ctx) })
	g.Go(func() error { return s.stand(ctx) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
