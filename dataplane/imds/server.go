// Package imds is the instance metadata service that a host serves to its
// guests over HTTP: the document of the port's place in force, and the guest's
// report on it. Our own agent reads the document as it is; stock guests read the
// same one in the dialects of other clouds (dialect.go), and cloud-init reports to
// the wire server that its Azure data source knows (wireserver.go).
//
// A caller is known by the address that the datapath gave it, one per port and
// epoch, asked for every request; nothing that a guest says makes it another.
// The package takes documents from its parent and hands reports back; it does
// not know what a flip is, where documents come from, or what reports lead to.
package imds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"replug/directory/vnet"
)

// Limits of the service. One tenant's use of them never costs another one.
const (
	maxBody     = 8 << 10
	maxHeader   = 8<<10 - 4096 // net/http adds 4096 to what it is told
	maxWait     = 60 * time.Second
	maxConns    = 16               // open connections of a port
	ratePerSec  = 20               // requests of a port, sustained
	rateBurst   = 120              // a cloud-init that reads the EC2 tree asks for each leaf
	slowRequest = 5 * time.Second  // to send headers, and again to send a body
	slowAnswer  = 10 * time.Second // to take an answer
	idle        = 30 * time.Second
)

// A Config is what the parent wires. Zero fields have the defaults they name.
type Config struct {
	// Identify names the caller behind a remote address; nil: [CallerOf].
	Identify func(remote netip.AddrPort) (Caller, bool)
	// OnReport takes a guest's report of a document that is published now, At
	// filled in. An error is answered 503: the guest is to try again. It may be
	// called for several ports at once.
	OnReport func(context.Context, vnet.PortID, vnet.GuestReport) error
	// OnAgent is OnReport for what comes in our own dialect; nil: OnReport.
	OnAgent func(context.Context, vnet.PortID, vnet.GuestReport) error
	// Refused counts a request that was refused; the reason is a metrics label.
	// Port is 0 when the caller is unknown. nil: nobody counts.
	Refused func(port vnet.PortID, reason string)
	Log     *slog.Logger // nil: slog.Default()
}

// A Server serves the documents that its parent publishes. All methods may be
// called at once.
type Server struct {
	cfg    Config
	tokens tokens
	perSec float64 // requests of a port, sustained
	burst  float64
	mu     sync.Mutex
	ports  map[vnet.PortID]*portState
}

// A Guest is what the dialects of other clouds tell of a port's machine beside its
// document.
type Guest struct {
	Personality vnet.Personality
	UUID        string // SMBIOS
	MAC         vnet.MAC
	Addrs       []vnet.Addr
	DNS         []netip.Addr
}

// A portState lives from the port's first connection or document until [Server.Forget].
type portState struct {
	epoch   vnet.Epoch     // the highest one published
	doc     *vnet.Document // nil: nothing is published
	guest   Guest          // that doc is for
	ready   vnet.Epoch     // the guest has told the wire server that it is ready
	renew   bool           // a guest that waits for its document is sent back to DHCP
	polls   bool           // the guest has asked for its owner's document, of this epoch
	changed chan struct{}  // closed and replaced when doc changes
	conns   map[*conn]struct{}
	tokens  float64
	filled  time.Time
}

// New returns a server that has nothing published yet.
func New(cfg Config) *Server {
	if cfg.Identify == nil {
		cfg.Identify = CallerOf
	}
	if cfg.OnReport == nil {
		cfg.OnReport = func(context.Context, vnet.PortID, vnet.GuestReport) error { return nil }
	}
	if cfg.OnAgent == nil {
		cfg.OnAgent = cfg.OnReport
	}
	if cfg.Refused == nil {
		cfg.Refused = func(vnet.PortID, string) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Server{cfg: cfg, tokens: newTokens(), perSec: ratePerSec, burst: rateBurst, ports: map[vnet.PortID]*portState{}}
}

// Publish lets the port's callers of epoch, and no others, read doc from now
// on, wakes those that wait, and cuts the connections of other epochs. The
// document is copied, with its epoch set. An epoch older than the newest one
// published is ignored: it lost.
func (s *Server) Publish(port vnet.PortID, epoch vnet.Epoch, doc *vnet.Document, guest Guest) {
	if doc == nil {
		s.Withdraw(port)
		return
	}
	c := *doc
	c.Epoch = epoch
	s.mu.Lock()
	p := s.port(port)
	if epoch < p.epoch {
		s.mu.Unlock()
		return
	}
	p.polls = p.polls && p.epoch == epoch
	p.epoch, p.doc, p.guest, p.renew = epoch, &c, guest, false
	p.wake()
	old := p.cut(func(who Caller) bool { return who.Epoch != low(epoch) })
	s.mu.Unlock()
	reset(old)
}

// Renew sends the port's guest back to DHCP, or no longer: cloud-init gives its
// address up and starts over when it asks for the document that it waits for and
// is told 503, without another flap of its link. A document that is published ends it.
func (s *Server) Renew(port vnet.PortID, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.port(port).renew = on
}

// Polls reports whether the port's guest asks for its owner's document while it is
// in the pool: cloud-init that was rebooted there does, the others wait for their
// link to flap.
func (s *Server) Polls(port vnet.PortID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.ports[port]
	return ok && p.polls
}

// Withdraw stops serving the port's document and cuts its connections: they are
// of the epoch that ends. It is to be called before the port's place changes.
func (s *Server) Withdraw(port vnet.PortID) {
	s.mu.Lock()
	var old []*conn
	if p, ok := s.ports[port]; ok {
		p.doc, p.guest = nil, Guest{}
		p.wake()
		old = p.cut(func(Caller) bool { return true })
	}
	s.mu.Unlock()
	reset(old)
}

// Forget is [Server.Withdraw] for a port that is gone: its id may be given to
// another one, whose epochs start anew.
func (s *Server) Forget(port vnet.PortID) {
	s.Withdraw(port)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, port)
}

// Run serves ln until ctx is done, then ends what is open and returns nil.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	hs := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: slowRequest,
		IdleTimeout:       idle,
		MaxHeaderBytes:    maxHeader,
		// "OPTIONS *" would be answered past every check.
		DisableGeneralOptionsHandler: true,
		// Whatever a guest sends that is no HTTP would be a log line: not louder
		// than the level at which an operator asked for it.
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = hs.Close() })
	defer stop()
	if err := hs.Serve(&listener{Listener: ln, s: s}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metadata: %w", err)
	}
	return nil
}

// port returns the port's state, made if need be. The caller holds mu.
func (s *Server) port(id vnet.PortID) *portState {
	p, ok := s.ports[id]
	if !ok {
		p = &portState{changed: make(chan struct{}), conns: map[*conn]struct{}{}, tokens: s.burst, filled: time.Now()}
		s.ports[id] = p
	}
	return p
}

func (p *portState) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// allow takes one request from the port's bucket.
func (s *Server) allow(id vnet.PortID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, now := s.port(id), time.Now()
	p.tokens = min(s.burst, p.tokens+now.Sub(p.filled).Seconds()*s.perSec)
	p.filled = now
	if p.tokens < 1 {
		return false
	}
	p.tokens--
	return true
}

// A publication is what a caller may read, as of now.
type publication struct {
	doc     *vnet.Document // nil: nothing yet
	guest   Guest
	ready   vnet.Epoch
	renew   bool
	changed <-chan struct{} // closed when there is something else to read
}

// published returns what the caller may read in its epoch. Over: a newer epoch
// has been published, there will never be anything.
func (s *Server) published(c Caller) (pub publication, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.port(c.Port)
	pub.changed, pub.renew = p.changed, p.renew
	ahead := c.ahead(p.epoch)
	switch {
	case p.epoch != 0 && ahead < 0:
		return pub, true
	case ahead != 0:
		return pub, false
	}
	pub.doc, pub.guest, pub.ready = p.doc, p.guest, p.ready
	return pub, false
}
