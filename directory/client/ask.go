package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"replug/directory/directorypb"
)

// An Asked answers a question that an operator has for this host. answer sends a
// part of the answer; it waits while the asker does not keep up, and fails when
// nobody waits any more, as ctx then has ended. The error says why there is no
// more. Calls come from a goroutine each.
type Asked func(ctx context.Context, kind string, payload []byte, answer func(payload []byte) error) error

// maxAsks bounds how many questions a host answers at once.
const maxAsks = 32

var errBusy = fmt.Errorf("it answers %d questions already: end some of them", maxAsks)

// asks are the questions of one stream: they end with it.
type asks struct {
	ctx     context.Context // of the stream
	handle  Asked
	log     *slog.Logger
	answers chan *directorypb.Answer
	running *sync.WaitGroup // of the client

	mu   sync.Mutex
	open map[uint64]*ask
}

// An ask is one question that is being answered.
type ask struct {
	*asks
	id, window uint64
	cancel     context.CancelFunc

	mu    sync.Mutex
	seq   uint64
	taken uint64
	more  chan struct{} // closed and replaced when the asker has taken some
}

func (c *Client) newAsks(ctx context.Context) *asks {
	return &asks{ctx: ctx, handle: c.config.OnAsk, log: c.log, answers: make(chan *directorypb.Answer),
		running: &c.asking, open: map[uint64]*ask{}}
}

// hear takes a message that is about questions; false: it is about something else.
func (as *asks) hear(m *directorypb.ToHost) bool {
	switch m := m.Message.(type) {
	case *directorypb.ToHost_Ask:
		as.begin(m.Ask)
	case *directorypb.ToHost_AnswersTaken:
		if a := as.get(m.AnswersTaken.GetId()); a != nil {
			a.credit(m.AnswersTaken.GetSeq())
		}
	case *directorypb.ToHost_AskCancelled:
		if a := as.get(m.AskCancelled); a != nil {
			a.cancel()
		}
	default:
		return false
	}
	return true
}

func (as *asks) get(id uint64) *ask {
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.open[id]
}

// begin answers a question in a goroutine of its own: the stream goes on.
func (as *asks) begin(m *directorypb.Ask) {
	ctx, cancel := context.WithCancel(as.ctx)
	a := &ask{asks: as, id: m.GetId(), window: m.GetWindow(), cancel: cancel, more: make(chan struct{})}
	as.mu.Lock()
	full := len(as.open) >= maxAsks
	if !full {
		as.open[a.id] = a
	}
	as.mu.Unlock()
	as.running.Go(func() {
		defer cancel()
		err := a.send(ctx, &directorypb.Answer{}) // heard
		switch {
		case err != nil:
		case full:
			err = errBusy
		case as.handle == nil:
			err = errors.New("this agent answers no questions")
		default:
			err = as.handle(ctx, m.GetKind(), m.GetPayload(), func(b []byte) error { return a.answer(ctx, b) })
		}
		if !full {
			as.mu.Lock()
			delete(as.open, a.id)
			as.mu.Unlock()
		}
		a.end(ctx, m.GetKind(), err)
	})
}

// end says that this was all, unless nobody waits for it any more.
func (a *ask) end(ctx context.Context, kind string, err error) {
	last := &directorypb.Answer{Done: true}
	if err != nil {
		last.Error = err.Error()
	}
	if ctx.Err() == nil {
		_ = a.send(ctx, last) // fails only when the stream ends, and the question with it
	}
	a.log.Debug("question answered", "kind", kind, "id", a.id, "error", err)
}

func (a *ask) answer(ctx context.Context, payload []byte) error {
	for {
		a.mu.Lock()
		ready, more := a.seq <= a.taken+a.window, a.more
		a.mu.Unlock()
		if ready {
			return a.send(ctx, &directorypb.Answer{Payload: payload})
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *ask) send(ctx context.Context, m *directorypb.Answer) error {
	a.mu.Lock()
	m.Id, m.Seq = a.id, a.seq
	a.seq++
	a.mu.Unlock()
	select {
	case a.answers <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *ask) credit(seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken = max(a.taken, seq)
	close(a.more)
	a.more = make(chan struct{})
}
