package server_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"replug/directory/directorypb"
	"replug/directory/server"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A witness answers a host's questions: "count" with so many numbers as it is
// asked for, "wait" when nobody waits any more, all else with a refusal.
type witness struct {
	sent  atomic.Uint64 // numbers that answer has taken over
	begun chan struct{}
	ended chan error
}

func newWitness() *witness {
	return &witness{begun: make(chan struct{}, 100), ended: make(chan error, 100)}
}

func (w *witness) answer(ctx context.Context, kind string, payload []byte, answer func([]byte) error) error {
	switch kind {
	case "count":
		for n := range binary.BigEndian.Uint64(payload) {
			if err := answer(number(n)); err != nil {
				w.ended <- err
				return err
			}
			w.sent.Add(1)
		}
		return nil
	case "wait":
		w.begun <- struct{}{}
		<-ctx.Done()
		w.ended <- ctx.Err()
		return ctx.Err()
	case "huge":
		return answer(make([]byte, 200<<10))
	}
	return fmt.Errorf("no port %q here", payload)
}

// end waits until a question has ended on the host.
func (w *witness) end(t *testing.T) {
	t.Helper()
	select {
	case <-w.ended:
	case <-time.After(deadline):
		t.Fatal("the host goes on although nobody waits")
	}
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// asking is a site with one host, h7, that answers.
func asking(t *testing.T) (*site, *store.Store, *control, *world, *witness, func()) {
	e, s := openStore(t, t.TempDir())
	t.Cleanup(func() { _ = e.Close() })
	c := newControl()
	commit(t, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, 5)))
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	w, host := newWorld(t), newWitness()
	_, stop := attachAsked(t, site, "h7", 4, w, host.answer)
	w.until("attached", func() bool { return w.revision > 0 && w.repeated == nil })
	return site, s, c, w, host, stop
}

// patient ends before the test hangs.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func TestAsk(t *testing.T) {
	site, _, _, _, _, _ := asking(t)
	ctx := patient(t)
	var got uint64
	err := site.Ask(ctx, "h7", "count", number(1000), func(b []byte) error {
		if n := binary.BigEndian.Uint64(b); n != got {
			return fmt.Errorf("answer %d, want %d", n, got)
		}
		got++
		return nil
	})
	if err != nil || got != 1000 {
		t.Errorf("%d answers of 1000, %v", got, err)
	}
	nothing := func([]byte) error { return nil }
	if err := site.Ask(ctx, "h7", "where", []byte("p99"), nothing); !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), `h7: no port "p99" here`) {
		t.Errorf("a question that the host can't answer: %v", err)
	}
	if err := site.Ask(ctx, "h8", "count", number(1), nothing); !errors.Is(err, server.ErrNoHost) {
		t.Errorf("a host that is not there: %v", err)
	}
	if err := site.Ask(ctx, "h7", "huge", nil, nothing); !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), "204800 bytes") {
		t.Errorf("an answer above the bound: %v", err)
	}
	enough := errors.New("enough")
	if err := site.Ask(ctx, "h7", "count", number(5), func([]byte) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a reader that has had enough: %v", err)
	}
}

// Who asks and doesn't read holds up neither intents nor statuses, and the host
// sends only a few answers ahead.
func TestAskSlowReader(t *testing.T) {
	site, s, _, w, host, _ := asking(t)
	ctx := patient(t)
	reading, read := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	first := true
	go func() {
		done <- site.Ask(ctx, "h7", "count", number(300), func([]byte) error {
			if first {
				first = false
				close(reading)
				<-read
			}
			return nil
		})
	}()
	<-reading
	// Nothing tells that the host has stopped; that it does not go on while all of
	// this happens does.
	for epoch := uint64(6); epoch < 30; epoch++ {
		w.at(commit(t, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, epoch))))
	}
	if n := host.sent.Load(); n > 17 {
		t.Errorf("%d answers are under way to a reader that has read one", n)
	}
	close(read)
	if err := <-done; err != nil || host.sent.Load() != 300 {
		t.Errorf("read on: %v, %d answers", err, host.sent.Load())
	}
}

// A status is heard while the same host's answers wait for their reader.
func TestAskBesideStatus(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	c := newControl()
	commit(t, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, 5)))
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	w, host := newWorld(t), newWitness()
	reporter, _ := attachAsked(t, site, "h7", 4, w, host.answer)
	w.until("attached", func() bool { return w.revision > 0 && w.repeated == nil })
	reading, read, done := make(chan struct{}, 300), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- site.Ask(patient(t), "h7", "count", number(300), func([]byte) error {
			reading <- struct{}{}
			<-read
			return nil
		})
	}()
	<-reading
	reporter.Report(vnet.Status{Port: "p23", Epoch: vnet.NewEpoch(3, 5), Phase: vnet.StatusLeased})
	c.wait(t, "the status", func(calls []string) bool { return slices.Contains(calls, "status p23 3.5 leased seq 1") })
	close(read)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whoever asked may stop waiting: the host hears it.
func TestAskCancelled(t *testing.T) {
	site, _, _, _, host, _ := asking(t)
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 1)
	go func() { done <- site.Ask(ctx, "h7", "wait", nil, func([]byte) error { return nil }) }()
	<-host.begun
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	host.end(t)
}

// A host that goes away ends its questions on both sides; when it is back it can
// be asked again.
func TestAskHostGone(t *testing.T) {
	site, _, c, _, host, stop := asking(t)
	done := make(chan error, 1)
	go func() { done <- site.Ask(patient(t), "h7", "wait", nil, func([]byte) error { return nil }) }()
	<-host.begun
	stop()
	if err := <-done; !errors.Is(err, server.ErrNoHost) {
		t.Errorf("the host is gone: %v", err)
	}
	host.end(t)
	c.wait(t, "the end", func(calls []string) bool { return calls[len(calls)-1] == "down h7" })
	if err := site.Ask(patient(t), "h7", "count", number(3), func([]byte) error { return nil }); !errors.Is(err, server.ErrNoHost) {
		t.Errorf("asked meanwhile: %v", err)
	}
	w := newWorld(t)
	attachAsked(t, site, "h7", 5, w, host.answer)
	w.until("attached again", func() bool { return w.revision > 0 && w.repeated == nil })
	n := 0
	if err := site.Ask(patient(t), "h7", "count", number(3), func([]byte) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("asked again: %d answers, %v", n, err)
	}
}

// A server that loses the leadership ends its questions with the leader's name.
func TestAskDeposed(t *testing.T) {
	site, _, _, _, host, _ := asking(t)
	done := make(chan error, 1)
	go func() { done <- site.Ask(patient(t), "h7", "wait", nil, func([]byte) error { return nil }) }()
	<-host.begun
	site.SetLeader(false, "s2 at 172.31.7.9")
	if err := <-done; !errors.Is(err, server.ErrNoHost) || !strings.Contains(err.Error(), "s2 at 172.31.7.9") {
		t.Errorf("deposed: %v", err)
	}
}

// Both ends bound how many questions are open; the bound of the host is the lower.
func TestAskTooMany(t *testing.T) {
	site, _, _, _, host, _ := asking(t)
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 100)
	for range 32 {
		go func() { done <- site.Ask(ctx, "h7", "wait", nil, func([]byte) error { return nil }) }()
		<-host.begun
	}
	if err := site.Ask(ctx, "h7", "wait", nil, func([]byte) error { return nil }); !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), "32") {
		t.Errorf("question 33: %v", err)
	}
	cancel()
	for range 32 {
		<-done
		host.end(t)
	}
	ctx = patient(t)
	for { // an answerer may still be on its way out
		err := site.Ask(ctx, "h7", "count", number(3), func([]byte) error { return nil })
		if err == nil {
			break
		}
		if !errors.Is(err, server.ErrRefused) {
			t.Fatalf("when the others have ended: %v", err)
		}
	}
}

// An agent of before there were questions says nothing; that must not look like a
// host on which nothing happens. Nor may one that answers out of turn be believed.
func TestAskStrangers(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	stranger := func(o server.Options) (*site, directorypb.Directory_AttachClient) {
		o.Store, o.Control, o.Identify = s, newControl(), anyHost("h7")
		site := serve(t, o, "")
		rpc := say(t, site.addr, hello("h7"))
		if _, err := rpc.Recv(); err != nil {
			t.Fatal(err)
		}
		return site, rpc
	}
	nothing := func([]byte) error { return nil }
	site, _ := stranger(server.Options{HeardWithin: 50 * time.Millisecond})
	if err := site.Ask(patient(t), "h7", "wait", nil, nothing); !errors.Is(err, server.ErrSilent) {
		t.Errorf("a host that says nothing: %v", err)
	}
	site, rpc := stranger(server.Options{})
	for seqs, want := range map[[3]uint64]error{{0, 2, 3}: server.ErrRefused, {0, 1, 2}: nil} {
		go func() {
			for {
				m, err := rpc.Recv()
				if err != nil {
					return
				}
				if m.GetAsk() == nil || m.GetAsk().Kind != fmt.Sprint(seqs) {
					continue
				}
				for i, seq := range seqs {
					a := &directorypb.Answer{Id: m.GetAsk().Id, Seq: seq, Done: i == 2}
					_ = rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Answer{Answer: a}})
				}
				return
			}
		}()
		if err := site.Ask(patient(t), "h7", fmt.Sprint(seqs), nil, nothing); !errors.Is(err, want) {
			t.Errorf("answers %v: %v", seqs, err)
		}
	}
}
