package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"replug/tests/lab"
)

// ICMP echo (RFC 792).
const (
	echoReply   = 0
	echoRequest = 8
	icmpHeader  = 8
)

var pingers atomic.Uint32

// A Pinger asks an address for an echo again and again, from inside a namespace,
// and remembers every answer.
type Pinger struct {
	conn net.PacketConn
	dst  netip.Addr
	id   uint16
	stop context.CancelFunc
	done sync.WaitGroup

	mu       sync.Mutex
	news     chan struct{} // closed and replaced at each answer
	sent     []time.Time   // by sequence number
	answered []time.Time   // by sequence number; zero: not
}

// StartPinger sends an echo request to dst each time that every has passed,
// 65,535 at most.
func StartPinger(n *lab.Node, dst netip.Addr, every time.Duration) (*Pinger, error) {
	p := &Pinger{dst: dst, id: uint16(os.Getpid()) + uint16(pingers.Add(1)), news: make(chan struct{})}
	err := n.Do(func() (err error) {
		p.conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping from %s: %w", n.Name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.done.Go(func() { p.ask(ctx, every) })
	p.done.Go(p.listen)
	return p, nil
}

// Stop ends the pinger and returns how many requests it sent and how many of
// them were answered.
func (p *Pinger) Stop() (sent, answered int) {
	p.stop()
	p.conn.Close()
	p.done.Wait()
	for _, at := range p.answered {
		if !at.IsZero() {
			answered++
		}
	}
	return len(p.sent), answered
}

// First waits for the answer to a request that was sent after the time given,
// and returns when it came.
func (p *Pinger) First(ctx context.Context, after time.Time) (time.Time, error) {
	for {
		p.mu.Lock()
		news := p.news
		at := p.earliest(after)
		p.mu.Unlock()
		if !at.IsZero() {
			return at, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no echo from %s: %w", p.dst, ctx.Err())
		}
	}
}

// earliest answer to a request sent after the time given; zero: none.
func (p *Pinger) earliest(after time.Time) (first time.Time) {
	for i := len(p.sent) - 1; i >= 0 && p.sent[i].After(after); i-- {
		if at := p.answered[i]; !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

func (p *Pinger) ask(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		p.mu.Lock()
		seq := len(p.sent)
		if seq > 0xffff {
			p.mu.Unlock()
			return
		}
		p.sent = append(p.sent, time.Now())
		p.answered = append(p.answered, time.Time{})
		p.mu.Unlock()
		_, _ = p.conn.WriteTo(echo(p.id, uint16(seq)), &net.IPAddr{IP: p.dst.AsSlice()}) // unanswered is the result
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (p *Pinger) listen() {
	b := make([]byte, 1500)
	for {
		n, from, err := p.conn.ReadFrom(b)
		now := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < icmpHeader || b[0] != echoReply || binary.BigEndian.Uint16(b[4:]) != p.id || from.String() != p.dst.String() {
			continue
		}
		seq := int(binary.BigEndian.Uint16(b[6:]))
		p.mu.Lock()
		if seq < len(p.answered) && p.answered[seq].IsZero() {
			p.answered[seq] = now
			close(p.news)
			p.news = make(chan struct{})
		}
		p.mu.Unlock()
	}
}

func echo(id, seq uint16) []byte {
	b := make([]byte, icmpHeader)
	b[0] = echoRequest
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	sum := uint32(echoRequest)<<8 + uint32(id) + uint32(seq)
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

// Ping waits until dst answers one echo request sent from now on.
func Ping(ctx context.Context, n *lab.Node, dst netip.Addr) error {
	p, err := StartPinger(n, dst, 5*time.Millisecond)
	if err != nil {
		return err
	}
	defer p.Stop()
	_, err = p.First(ctx, time.Now().Add(-time.Second))
	return err
}
