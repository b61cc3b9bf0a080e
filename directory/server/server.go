// Package server is the directory's face to the hosts: each host holds one
// stream, gets its own intents and the networks its ports are in, as a snapshot
// and then as changes, and sends status up. The server only reads the store; what
// hosts report goes to the leader in memory, which decides what must survive.
package server

import (
	"context"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"replug/directory/directorypb"
	"replug/directory/pki"
	"replug/directory/store"
	"replug/directory/vnet"
)

// Control is the leader's ear. Calls for one host come one after the other, and
// HostDown of a host's stream before HostUp of its next.
type Control interface {
	// HostUp registers a host. The stream waits for it; an error refuses the stream
	// and is what the host reads.
	HostUp(context.Context, vnet.HostInfo) error
	HostDown(name string)
	// Status takes over what a host has made true. After a new leader was elected
	// hosts repeat what they said, so it must be able to hear it twice.
	Status(vnet.Status)
	// Health takes over what a host found out about a backend that is a port of its
	// own: all it knows when its stream begins, then what changes.
	Health(host string, h vnet.Health)
}

// Options are what a [Server] is made of.
type Options struct {
	Store   *store.Store
	Cluster string // id and era of [store.Cluster]: a host that comes with another one resyncs
	Era     uint16
	Control Control
	Log     *slog.Logger
	Metrics *Metrics // nil: not counted

	// Identify says who the caller is; nil: its certificate, [pki.FromContext].
	Identify func(context.Context) (pki.Identity, error)

	Queue int // changes that may wait for one host before its stream is closed; 0: 16384
	Ring  int // changes kept for hosts that come back; 0: 16384

	HeardWithin time.Duration // a host must say that it has heard a question; 0: 5 s
}

// A Server serves the host stream. Make one with [New], then [Server.Run] it.
type Server struct {
	directorypb.UnimplementedDirectoryServer

	store    *store.Store
	cluster  string
	era      uint16
	control  Control
	log      *slog.Logger
	metrics  *Metrics
	identify func(context.Context) (pki.Identity, error)
	queue    int

	heardWithin time.Duration

	ready chan struct{} // closed when the view has been read
	asks  atomic.Uint64 // questions put to hosts so far

	mu      sync.RWMutex
	view    *view
	moved   chan struct{} // closed and replaced when the view's revision grows
	leading bool
	leader  string // who leads, for refusals
	streams map[string]*stream
	subs    map[vnet.VNI]map[*stream]bool

	heard sync.Mutex
	last  map[string]*tracks // by port
}

// New makes a server. It refuses hosts until [Server.Run] has read the store and
// [Server.SetLeader] was told that this server leads.
func New(o Options) *Server {
	s := &Server{
		store: o.Store, cluster: o.Cluster, era: o.Era, control: o.Control,
		log: o.Log, metrics: o.Metrics, identify: o.Identify, queue: o.Queue,
		heardWithin: o.HeardWithin, ready: make(chan struct{}), moved: make(chan struct{}),
		view: newView(o.Ring), leader: "nobody yet",
		streams: map[string]*stream{}, subs: map[vnet.VNI]map[*stream]bool{}, last: map[string]*tracks{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.metrics == nil {
		s.metrics = NewMetrics(nil)
	}
	if s.identify == nil {
		s.identify = pki.FromContext
	}
	if s.queue == 0 {
		s.queue = 16384
	}
	if s.heardWithin == 0 {
		s.heardWithin = 5 * time.Second
	}
	return s
}

// Register adds the service to a gRPC server, which should be made with
// [Keepalive].
func (s *Server) Register(r grpc.ServiceRegistrar) { directorypb.RegisterDirectoryServer(r, s) }

// Keepalive are the options of a gRPC server by which it notices within three
// seconds that a host is gone without a word.
func Keepalive() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Second, Timeout: 2 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Ready is closed once the server knows the store's contents.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// SetLeader says whether this server leads, and who does. Streams of a server
// that does not are closed, and new ones refused with the leader's name.
func (s *Server) SetLeader(leads bool, leader string) {
	s.mu.Lock()
	changed := s.leading != leads
	s.leading, s.leader = leads, leader
	if !leads {
		s.closeAll(s.notLeader())
	}
	s.mu.Unlock()
	if changed {
		s.heard.Lock()
		s.last = map[string]*tracks{}
		s.heard.Unlock()
	}
}

// Connected returns since when a host's stream lives.
func (s *Server) Connected(name string) (since time.Time, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if st := s.streams[name]; st != nil && !st.since.IsZero() {
		return st.since, true
	}
	return time.Time{}, false
}

// Infos returns the hosts whose streams live, by name.
func (s *Server) Infos() []vnet.HostInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []vnet.HostInfo
	for _, st := range s.streams {
		if !st.since.IsZero() {
			all = append(all, st.host)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

func (s *Server) closeAll(why error) {
	for _, st := range s.streams {
		st.end(why)
	}
}
