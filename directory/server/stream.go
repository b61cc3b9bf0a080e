package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/directory/directorypb"
	"replug/directory/pki"
	"replug/directory/vnet"
	"replug/directory/wire"
)

// helloWithin is how long a caller may take to say who it is.
const helloWithin = 5 * time.Second

// A stream is one host's. The server's lock protects what it is subscribed to;
// its own lock the queue.
type stream struct {
	host     vnet.HostInfo
	session  uint64
	since    time.Time // zero until the leader has taken the host
	networks map[vnet.VNI]bool
	told     int64 // revision of the last Synced
	limit    int

	over    chan struct{} // closed when the stream is to end
	greeted chan struct{} // closed when the host may speak
	queue   chan struct{} // one token: there is something to send

	mu    sync.Mutex
	why   error
	items []item
	live  int    // changes among items
	acked uint64 // status taken over, to be sent
	ack   bool
	asks  map[uint64]*asked // questions that wait for answers

	hearing sync.Mutex // held while control hears a status
	deaf    bool       // control has been told that the host is down
}

// Attach serves one host until its stream ends.
func (s *Server) Attach(rpc directorypb.Directory_AttachServer) error {
	ctx := rpc.Context()
	in := make(chan *directorypb.Hello, 1)
	st := &stream{over: make(chan struct{}), greeted: make(chan struct{}), queue: make(chan struct{}, 1), limit: s.queue}
	go s.receive(rpc, st, in)
	hello, err := st.hello(ctx, in)
	if err != nil {
		return err
	}
	if err := s.admit(ctx, st, hello); err != nil {
		s.metrics.refused.WithLabelValues(status.Code(err).String()).Inc()
		s.log.Info("host refused", "host", hello.GetHost().GetName(), "error", err)
		return err
	}
	defer s.dismiss(ctx, st)
	if err := s.control.HostUp(ctx, st.host); err != nil {
		return refusal(err)
	}
	s.current(ctx)
	resync, err := s.greet(st, hello)
	if err != nil {
		return err
	}
	s.log.Info("host attached", "host", st.host.Name, "session", st.session, "resync", resync, "revision", hello.Revision)
	close(st.greeted)
	go s.send(rpc, st)
	select {
	case <-ctx.Done():
	case <-st.over:
	}
	return st.reason(ctx)
}

func (st *stream) hello(ctx context.Context, in <-chan *directorypb.Hello) (*directorypb.Hello, error) {
	late := time.NewTimer(helloWithin)
	defer late.Stop()
	select {
	case h := <-in:
		return h, nil
	case <-late.C:
		return nil, status.Error(codes.DeadlineExceeded, "the host did not say who it is")
	case <-st.over:
		return nil, st.reason(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// admit checks who calls and takes the host's name.
func (s *Server) admit(ctx context.Context, st *stream, hello *directorypb.Hello) error {
	host, err := wire.ToHost(hello.GetHost())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	id, err := s.identify(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if id.Kind != pki.Host || id.Name != host.Name {
		return status.Errorf(codes.PermissionDenied, "%s may not attach as host %s", id, host.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ready:
	default:
		return status.Error(codes.Unavailable, "the server is still reading the store")
	}
	if !s.leading {
		return s.notLeader()
	}
	if other := s.streams[host.Name]; other != nil {
		return status.Errorf(codes.AlreadyExists, "host %s is attached already, with session %d since %s: two agents with one name?",
			host.Name, other.session, other.since.Format(time.RFC3339))
	}
	st.host, st.session = host, hello.Session
	s.streams[host.Name] = st
	s.metrics.streams.Inc()
	return nil
}

func (s *Server) notLeader() error {
	return status.Errorf(codes.Unavailable, "this server does not lead: %s does", s.leader)
}

// refusal keeps a code that control has chosen.
func refusal(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}

// greet queues Welcome and what the host lacks, and subscribes it to the rest.
func (s *Server) greet(st *stream, hello *directorypb.Hello) (resync bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leading {
		return false, s.notLeader()
	}
	var items []item
	ok := hello.ClusterId == s.cluster && hello.Era == uint32(s.era) && hello.Revision > 0
	if ok {
		items, ok = s.view.resume(st.host.Name, hello.Revision)
	}
	if !ok {
		items = s.view.snapshot(st.host.Name)
		s.metrics.resyncs.Inc()
	}
	st.push([]item{{ready: &directorypb.ToHost{Message: &directorypb.ToHost_Welcome{Welcome: &directorypb.Welcome{
		ClusterId: s.cluster, Era: uint32(s.era), Revision: s.view.revision, Resync: !ok}}}}}, false)
	st.push(items, false)
	st.told, st.since = s.view.revision, time.Now()
	s.subscribe(st, s.view.needs(st.host.Name))
	return !ok, nil
}

// dismiss ends what the host was to others. Its name is free only when control
// knows, so that a next HostUp comes later than this HostDown.
func (s *Server) dismiss(ctx context.Context, st *stream) {
	why := st.reason(ctx)
	if why == errSlow {
		s.metrics.slow.Inc()
	}
	s.log.Info("host gone", "host", st.host.Name, "session", st.session, "reason", why)
	s.mu.Lock()
	s.subscribe(st, nil)
	s.mu.Unlock()
	st.hearing.Lock()
	st.deaf = true
	st.hearing.Unlock()
	s.control.HostDown(st.host.Name)
	s.mu.Lock()
	delete(s.streams, st.host.Name)
	s.mu.Unlock()
	s.metrics.streams.Dec()
}

// push queues items. Changes that pile up behind a slow host end its stream: it
// comes back for a snapshot, and no other host waits for it.
func (st *stream) push(items []item, live bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.items = append(st.items, items...)
	if live {
		st.live += len(items)
	}
	if st.live > st.limit {
		st.items = nil
		st.endLocked(errSlow)
		return
	}
	st.wake()
}

var errSlow = status.Error(codes.ResourceExhausted, "the host does not keep up with its changes: come again")

func (st *stream) wake() {
	select {
	case st.queue <- struct{}{}:
	default:
	}
}

func (st *stream) end(why error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.endLocked(why)
}

func (st *stream) endLocked(why error) {
	if st.why == nil {
		st.why = why
		close(st.over)
	}
}

func (st *stream) reason(ctx context.Context) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.why != nil {
		return st.why
	}
	return ctx.Err()
}

// send writes what is queued, each message at once.
func (s *Server) send(rpc directorypb.Directory_AttachServer, st *stream) {
	for {
		select {
		case <-st.over:
			return
		case <-rpc.Context().Done():
			return
		case <-st.queue:
		}
		st.mu.Lock()
		items, acked, ack := st.items, st.acked, st.ack
		st.items, st.live, st.ack = nil, 0, false
		st.mu.Unlock()
		if ack {
			items = append(items, item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_StatusStored{StatusStored: acked}}})
		}
		for i := range items {
			if err := rpc.Send(items[i].message()); err != nil {
				st.end(err)
				return
			}
		}
		s.metrics.messages.Add(float64(len(items)))
	}
}

// receive hears the host until its stream ends.
func (s *Server) receive(rpc directorypb.Directory_AttachServer, st *stream, hello chan<- *directorypb.Hello) {
	for first := true; ; first = false {
		m, err := rpc.Recv()
		if errors.Is(err, io.EOF) {
			err = status.Error(codes.Canceled, "the host has ended its stream")
		}
		if err != nil {
			st.end(err)
			return
		}
		switch h := m.GetHello(); {
		case first && h != nil:
			hello <- h
			select {
			case <-st.greeted:
			case <-st.over:
				return
			case <-rpc.Context().Done():
				return
			}
		case first || h != nil:
			st.end(status.Error(codes.InvalidArgument, "Hello comes first, and once"))
			return
		default:
			s.hear(st, m)
		}
	}
}
