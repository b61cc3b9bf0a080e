// Package channel is the second way to the agents in guests: a virtio-serial port
// that QEMU serves as a Unix socket, one a machine (see [vnet.ChannelName]). It tells
// an agent what is published for its port, and that its network has changed, while
// the guest's NIC leads nowhere; and it takes the agent's reports.
//
// Who speaks is known by the socket that the port's machine was given, never by what
// is said. The package takes documents from its parent and hands reports back; it
// does not know what a flip is.
package channel

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"replug/directory/vnet"
)

// A Config is what the parent wires. Zero fields have the defaults they name.
type Config struct {
	// OnReport takes a guest's report of a document that is published now, At filled
	// in. After an error the guest is to try again.
	OnReport func(context.Context, vnet.PortID, vnet.GuestReport) error
	// OnHello hears that an agent has come. nil: nobody does.
	OnHello func(vnet.PortID)
	// Refused counts what was refused; the reason is a metrics label. nil: nobody counts.
	Refused func(port vnet.PortID, reason string)
	Log     *slog.Logger // nil: slog.Default()
}

// A Server speaks with the agents of all ports. All methods may be called at once,
// and none of them waits for a guest.
type Server struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	retry  time.Duration // before a socket is dialled for the second time

	mu    sync.Mutex
	ports map[vnet.PortID]*port
}

// A port is what is to be told to one guest, and the connection to it.
type port struct {
	s    *Server
	id   vnet.PortID
	wake chan struct{} // of length 1: there is something to say
	dial chan struct{} // of length 1: somebody may be there now

	// Guarded by the server's lock.
	socket string // "": not open
	stop   context.CancelFunc
	epoch  vnet.Epoch // the newest one heard of
	doc    *vnet.Document
	moved  *vnet.Moved
	hello  string              // of the agent that listens; "": nobody does
	told   vnet.Epoch          // of the document that it was told
	queue  []vnet.ReportAnswer // to be said
}

// New returns a server that speaks with nobody yet. [Server.Shut] ends it.
func New(cfg Config) *Server {
	if cfg.OnReport == nil {
		cfg.OnReport = func(context.Context, vnet.PortID, vnet.GuestReport) error { return nil }
	}
	if cfg.OnHello == nil {
		cfg.OnHello = func(vnet.PortID) {}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(vnet.PortID, string) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Server{cfg: cfg, retry: retryFirst, ports: map[vnet.PortID]*port{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Shut lets go of every guest.
func (s *Server) Shut() error {
	s.cancel()
	s.wg.Wait()
	return nil
}

// Open speaks with the port's agent at socket from now on, whenever one is there.
// Repeating it says that one may be there now: it is dialled at once.
func (s *Server) Open(id vnet.PortID, socket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.port(id)
	if p.socket == socket || s.ctx.Err() != nil {
		poke(p.dial)
		return
	}
	if p.stop != nil {
		p.stop()
	}
	ctx, stop := context.WithCancel(s.ctx)
	p.socket, p.stop, p.hello = socket, stop, ""
	s.wg.Go(func() { p.run(ctx, socket) })
}

// Forget ends the conversation with a port that is gone: its id may be given to
// another one, whose epochs start anew.
func (s *Server) Forget(id vnet.PortID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.ports[id]; p != nil && p.stop != nil {
		p.stop()
	}
	delete(s.ports, id)
}

// Publish tells the port's agent of doc, now and when another one comes. The
// document is copied, with its epoch set. An older epoch than the newest is ignored.
func (s *Server) Publish(id vnet.PortID, epoch vnet.Epoch, doc *vnet.Document) {
	if doc == nil {
		s.Withdraw(id)
		return
	}
	c := *doc
	c.Epoch = epoch
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.port(id)
	if epoch < p.epoch {
		return
	}
	p.epoch, p.doc, p.told = epoch, &c, 0
	poke(p.wake)
}

// Withdraw stops telling the port's document: its epoch ends.
func (s *Server) Withdraw(id vnet.PortID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.ports[id]; p != nil {
		p.doc = nil
	}
}

// Listens reports whether an agent is there to be told.
func (s *Server) Listens(id vnet.PortID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[id]
	return p != nil && p.hello != ""
}

// Moved tells the port's agent that its network has changed; false: no agent listens.
func (s *Server) Moved(id vnet.PortID, m vnet.Moved) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[id]
	if p == nil || p.hello == "" || m.Epoch < p.epoch {
		return false
	}
	p.epoch, p.moved = m.Epoch, &m
	poke(p.wake)
	return true
}

// port returns the port's state, made if need be. The caller holds mu.
func (s *Server) port(id vnet.PortID) *port {
	p := s.ports[id]
	if p == nil {
		p = &port{s: s, id: id, wake: make(chan struct{}, 1), dial: make(chan struct{}, 1)}
		s.ports[id] = p
	}
	return p
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
