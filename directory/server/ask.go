package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"replug/directory/directorypb"
)

// Errors of [Server.Ask].
var (
	ErrNoHost  = errors.New("the host is not connected")
	ErrSilent  = errors.New("the host does not answer")
	ErrBusy    = errors.New("too many questions to the host are open")
	ErrRefused = errors.New("the host can't answer")
)

// Bounds of what questions may cost a server: memory is maxAsks * askWindow *
// maxAnswer a host at most, and only while readers are slow.
const (
	maxAsks   = 64
	askWindow = 16
	maxAnswer = 128 << 10
)

// An asked question waits for answers of one stream.
type asked struct {
	id   uint64
	news chan struct{} // one token: there is something to take

	mu    sync.Mutex
	queue []*directorypb.Answer
	next  uint64 // seq of the answer that comes next
	taken uint64
	wrong error // the host breaks the rules
}

// Ask puts a question to a host, by the stream that the host has opened, and
// hands each answer to take, in order, until the host has said all. It returns
// take's error at once, and tells the host that nobody waits any more; so it does
// when ctx ends. However slow take is, the host's intents and statuses don't wait
// for it: the host may send only a few answers ahead.
//
// It returns [ErrNoHost] also when the stream ends meanwhile, [ErrSilent] from a
// host that is too old to know questions, [ErrRefused] with the host's own words.
func (s *Server) Ask(ctx context.Context, host, kind string, payload []byte, take func(payload []byte) error) error {
	st := s.attached(host)
	if st == nil {
		return fmt.Errorf("host %s: %w: is its agent running, and can it reach this server?", host, ErrNoHost)
	}
	a, err := st.open(s.asks.Add(1))
	if err != nil {
		return fmt.Errorf("host %s: %w", host, err)
	}
	st.push([]item{{ready: &directorypb.ToHost{Message: &directorypb.ToHost_Ask{
		Ask: &directorypb.Ask{Id: a.id, Kind: kind, Payload: payload, Window: askWindow}}}}}, false)
	done, err := st.listen(ctx, a, s.heardWithin, take)
	st.close(a, done)
	if err != nil && ctx.Err() == nil && !done {
		return fmt.Errorf("host %s: %w", host, err)
	}
	return err
}

// attached returns the stream of a host that the leader has taken; nil: none.
func (s *Server) attached(host string) *stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if st := s.streams[host]; st != nil && !st.since.IsZero() {
		return st
	}
	return nil
}

func (st *stream) open(id uint64) (*asked, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.asks) >= maxAsks {
		return nil, fmt.Errorf("%w: %d; end some of them", ErrBusy, maxAsks)
	}
	if st.asks == nil {
		st.asks = map[uint64]*asked{}
	}
	a := &asked{id: id, news: make(chan struct{}, 1)}
	st.asks[id] = a
	return a, nil
}

// close forgets a question, and lets the host know if it has not ended it itself.
func (st *stream) close(a *asked, done bool) {
	st.mu.Lock()
	delete(st.asks, a.id)
	st.mu.Unlock()
	if !done {
		st.push([]item{{ready: &directorypb.ToHost{Message: &directorypb.ToHost_AskCancelled{AskCancelled: a.id}}}}, false)
	}
}

// listen takes answers until the last one (done), or an error.
func (st *stream) listen(ctx context.Context, a *asked, within time.Duration, take func([]byte) error) (done bool, err error) {
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		over := false
		select {
		case <-a.news:
			late.Stop()
		case <-late.C:
			return false, fmt.Errorf("%w within %s: is its agent older than this server, or its stream full?", ErrSilent, within)
		case <-ctx.Done():
			return false, ctx.Err()
		case <-st.over:
			over = true
		}
		answers, wrong := a.all()
		for _, m := range answers {
			if m.Done {
				return true, refusedBy(st.host.Name, m.Error)
			}
			if err := st.take(a, m, take); err != nil {
				return false, err
			}
		}
		switch {
		case wrong != nil:
			return false, wrong
		case over:
			return false, fmt.Errorf("%w any more: %s", ErrNoHost, status.Convert(st.reason(ctx)).Message())
		}
	}
}

func refusedBy(host, why string) error {
	if why == "" {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", ErrRefused, host, why)
}

// take hands one answer on, and lets the host send more.
func (st *stream) take(a *asked, m *directorypb.Answer, take func([]byte) error) error {
	if m.Seq == 0 {
		return nil
	}
	if err := take(m.Payload); err != nil {
		return err
	}
	a.mu.Lock()
	a.taken = m.Seq
	a.mu.Unlock()
	if m.Seq%(askWindow/2) == 0 {
		st.push([]item{{ready: &directorypb.ToHost{Message: &directorypb.ToHost_AnswersTaken{
			AnswersTaken: &directorypb.AnswersTaken{Id: a.id, Seq: m.Seq}}}}}, false)
	}
	return nil
}

func (a *asked) all() ([]*directorypb.Answer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.queue
	a.queue = nil
	return all, a.wrong
}

// answered takes an answer from the host. It never waits: statuses come behind it.
func (st *stream) answered(m *directorypb.Answer) {
	st.mu.Lock()
	a := st.asks[m.Id]
	st.mu.Unlock()
	if a == nil {
		return // nobody waits for it any more
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.wrong != nil:
		return
	case m.Seq != a.next || m.Seq > a.taken+askWindow+1 || len(m.Payload) > maxAnswer:
		a.wrong = fmt.Errorf("%w: answer %d of %d bytes is out of turn, %d was expected: is its agent of another version?",
			ErrRefused, m.Seq, len(m.Payload), a.next)
	default:
		a.queue = append(a.queue, m)
		a.next++
	}
	select {
	case a.news <- struct{}{}:
	default:
	}
}
