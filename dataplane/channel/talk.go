package channel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"replug/directory/vnet"
)

// Bounds of what a guest may say: those of the metadata service.
const (
	ratePerSec = 20 // messages, sustained
	rateBurst  = 40
	maxAnswers = 8 // that wait to be said
	slowGuest  = 5 * time.Second
	retryFirst = 100 * time.Millisecond
	retryBound = 5 * time.Second
)

// Why a conversation is ended by the host. The text is a metrics label.
var (
	errFast   = errors.New("channel: too many messages")
	errLong   = errors.New("channel: message too long")
	errSpeech = errors.New("channel: message can't be read")
)

// run dials the socket again and again: QEMU may not be there yet, or no more.
func (p *port) run(ctx context.Context, socket string) {
	retry := p.s.retry
	for ctx.Err() == nil {
		begun, dial := time.Now(), p.dial
		err := p.talk(ctx, socket)
		if ctx.Err() != nil {
			return // another socket's conversation may have begun
		}
		p.heard("")
		for _, why := range []error{errFast, errLong, errSpeech} {
			if errors.Is(err, why) {
				p.s.cfg.Refused(p.id, why.Error())
				p.s.cfg.Log.Warn("guest's second channel is closed for a while", "port", p.id, "why", why)
				begun, retry, dial = time.Now(), retryBound, nil // it is not to cost more than that
			}
		}
		if time.Since(begun) > retryBound {
			retry = p.s.retry
		}
		select {
		case <-ctx.Done():
		case <-dial:
			retry = p.s.retry
			continue
		case <-time.After(retry):
		}
		retry = min(2*retry, retryBound)
	}
}

// talk holds one conversation.
func (p *port) talk(ctx context.Context, socket string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ended := make(chan struct{})
	var beside sync.WaitGroup
	defer beside.Wait()
	defer close(ended)
	defer conn.Close()
	beside.Go(func() {
		if err := p.tell(conn, ended); err != nil {
			conn.Close() // the reader ends by it
		}
	})
	return p.listen(ctx, conn)
}

// listen does what the guest says, within its bounds.
func (p *port) listen(ctx context.Context, conn net.Conn) error {
	in := bufio.NewScanner(conn)
	in.Buffer(nil, vnet.MaxFromGuest+2)
	tokens, filled := float64(rateBurst), time.Now()
	for in.Scan() {
		now := time.Now()
		tokens = min(rateBurst, tokens+now.Sub(filled).Seconds()*ratePerSec) - 1
		if filled = now; tokens < 0 {
			return errFast
		}
		var m vnet.FromGuest
		if json.Unmarshal(in.Bytes(), &m) != nil {
			return errSpeech
		}
		switch {
		case m.Hello != "":
			p.heard(m.Hello)
			p.s.cfg.OnHello(p.id)
		case m.Report != nil:
			p.reported(ctx, *m.Report)
		}
	}
	if errors.Is(in.Err(), bufio.ErrTooLong) {
		return errLong
	}
	return io.EOF
}

// heard notes who listens; nobody after "". An agent that has just come is told all.
func (p *port) heard(hello string) {
	const most = 64 // bytes that are said back
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.hello == "" && hello != "" { // a guest can't fill the log: it has to be away first
		p.s.cfg.Log.Info("guest's agent listens", "port", p.id)
	}
	p.hello = hello[:min(len(hello), most)]
	p.told, p.moved, p.queue = 0, nil, nil
	poke(p.wake)
}

// reported takes a report on the document that is published, and on no other one.
func (p *port) reported(ctx context.Context, r vnet.GuestReport) {
	answer := vnet.ReportAnswer{Epoch: r.Epoch}
	p.s.mu.Lock()
	doc, epoch := p.doc, p.epoch
	p.s.mu.Unlock()
	switch {
	case epoch == 0: // a host agent that has just started has not come so far
		answer.Error, answer.Again = "nothing published yet", true
	case doc == nil || doc.Epoch != r.Epoch:
		answer.Error = "report on another epoch"
	case r.Kind != vnet.ReportPartial && r.Kind != vnet.ReportFinal || doc.Partial() != (r.Kind == vnet.ReportPartial):
		answer.Error = "kind is not the document's"
	default:
		r.At = time.Now()
		if err := p.s.cfg.OnReport(ctx, p.id, r); err != nil {
			p.s.cfg.Log.Debug("guest report not taken", "port", p.id, "epoch", r.Epoch, "err", err) // it comes again
			answer.Error, answer.Again = "report not taken", true
		}
	}
	if answer.Error != "" {
		p.s.cfg.Refused(p.id, "channel: "+answer.Error)
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if len(p.queue) < maxAnswers {
		p.queue = append(p.queue, answer)
	}
	poke(p.wake)
}

// tell says what there is to say, until the conversation ends. A guest that does not
// read for long is given up. The first thing said is for nobody in particular: an
// agent that waits since before this host came says hello again.
func (p *port) tell(conn net.Conn, ended <-chan struct{}) error {
	say := func(m vnet.ToGuest) error {
		b, err := json.Marshal(m)
		if err != nil || len(b) > vnet.MaxToGuest {
			p.s.cfg.Log.Error("document is too long for the second channel", "port", p.id, "bytes", len(b), "err", err)
			return nil // the metadata service has it
		}
		conn.SetWriteDeadline(time.Now().Add(slowGuest))
		_, err = conn.Write(append(b, '\n'))
		return err
	}
	if err := say(vnet.ToGuest{Ping: true}); err != nil {
		return err
	}
	for {
		for m, ok := p.next(); ok; m, ok = p.next() {
			if err := say(m); err != nil {
				return err
			}
		}
		select {
		case <-ended:
			return nil
		case <-p.wake:
		}
	}
}

// next takes what is to be said next: news of the network come first, since the
// document may have to be fetched over it.
func (p *port) next() (vnet.ToGuest, bool) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	m := vnet.ToGuest{To: p.hello}
	switch {
	case p.hello == "":
		return m, false
	case p.moved != nil:
		m.Moved, p.moved = p.moved, nil
	case len(p.queue) > 0:
		answer := p.queue[0]
		m.Answer, p.queue = &answer, p.queue[1:]
	case p.doc != nil && p.told != p.doc.Epoch:
		m.Config, p.told = p.doc, p.doc.Epoch
	default:
		return m, false
	}
	return m, true
}
