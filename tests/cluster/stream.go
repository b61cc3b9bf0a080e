package cluster

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

// A Stream is UDP from one namespace to another, a fixed number of datagrams a
// second, each with its number. It counts what did not arrive.
type Stream struct {
	from net.Conn
	to   net.PacketConn
	stop context.CancelFunc
	send sync.WaitGroup
	recv sync.WaitGroup

	sent int

	mu       sync.Mutex
	seen     map[uint64]bool
	last     uint64 // the number that came last
	disorder int
}

const (
	streamPayload = 64  // bytes of a datagram
	burst         = 100 // datagrams; a tap's queue takes 500
)

// StartStream sends perSecond datagrams a second from one namespace to the
// address dst, which must be one of the other's.
func StartStream(from, to *lab.Node, dst netip.AddrPort, perSecond int) (*Stream, error) {
	s := &Stream{seen: make(map[uint64]bool)}
	if err := to.Do(func() (err error) { s.to, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(dst)); return err }); err != nil {
		return nil, fmt.Errorf("receive stream in %s: %w", to.Name, err)
	}
	// A busy machine must not count as a lossy network.
	if raw, err := s.to.(*net.UDPConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	}
	if err := from.Do(func() (err error) { s.from, err = net.Dial("udp4", dst.String()); return err }); err != nil {
		s.to.Close()
		return nil, fmt.Errorf("send stream from %s: %w", from.Name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.send.Go(func() { s.write(ctx, perSecond) })
	s.recv.Go(s.read)
	return s, nil
}

func (s *Stream) write(ctx context.Context, perSecond int) {
	b := make([]byte, streamPayload)
	pace(ctx, perSecond, func(n int) {
		binary.BigEndian.PutUint64(b, uint64(n))
		_, _ = s.from.Write(b) // what is not sent is lost, and counted so
		s.sent = n + 1
	})
}

func (s *Stream) read() {
	b := make([]byte, 2*streamPayload)
	for {
		n, _, err := s.to.ReadFrom(b)
		if err != nil {
			return
		}
		if n == streamPayload {
			s.note(binary.BigEndian.Uint64(b))
		}
	}
}

func (s *Stream) note(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n < s.last {
		s.disorder++
	}
	s.last, s.seen[n] = n, true
}

// Disorder returns how many datagrams have come after one that was sent later.
func (s *Stream) Disorder() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disorder
}

// Arrived returns how many datagrams have come so far.
func (s *Stream) Arrived() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// Stop ends the stream, waits up to two seconds for what is under way, and
// returns how many datagrams were sent and how many of them never arrived.
func (s *Stream) Stop() (sent, lost int) {
	s.stop()
	s.send.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = lab.Until(ctx, "the stream's last datagrams", func() error {
		if missing := s.sent - s.Arrived(); missing > 0 {
			return fmt.Errorf("%d are missing", missing)
		}
		return nil
	})
	s.from.Close()
	s.to.Close()
	s.recv.Wait()
	return s.sent, s.sent - s.Arrived()
}

// A Sender sends the same datagram again and again and expects no answer.
type Sender struct {
	conn net.Conn
	stop context.CancelFunc
	done sync.WaitGroup
	sent atomic.Int64
}

// StartSender sends payload to dst perSecond times a second, on average.
func StartSender(from *lab.Node, dst netip.AddrPort, perSecond int, payload []byte) (*Sender, error) {
	s := &Sender{}
	if err := from.Do(func() (err error) { s.conn, err = net.Dial("udp4", dst.String()); return err }); err != nil {
		return nil, fmt.Errorf("send from %s: %w", from.Name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.done.Go(func() {
		pace(ctx, perSecond, func(int) {
			// A refusal by ICMP shows at the next write: it was sent all the same.
			_, _ = s.conn.Write(payload)
			s.sent.Add(1)
		})
	})
	return s, nil
}

// Sent returns how many were sent so far.
func (s *Sender) Sent() int { return int(s.sent.Load()) }

// Stop ends the sender.
func (s *Sender) Stop() {
	s.stop()
	s.done.Wait()
	s.conn.Close()
}

// pace calls f with 0, 1, 2, ... perSecond times a second on average, until ctx
// ends. After a pause of the machine it catches up by no more than burst: a queue that
// is too short for the pause is no loss of the network's.
func pace(ctx context.Context, perSecond int, f func(n int)) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	begin, n, missed := time.Now(), 0, 0
	for ctx.Err() == nil {
		due := int(time.Since(begin).Seconds()*float64(perSecond)) - missed
		if late := due - n - burst; late > 0 {
			missed, due = missed+late, due-late
		}
		for ; n < due; n++ {
			f(n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
