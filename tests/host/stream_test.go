package host_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"replug/tests/lab"
)

// A stream is a bystander: a thousand numbered datagrams a second from one guest
// to another.
type stream struct {
	from, to net.Conn
	wg       sync.WaitGroup
	end      chan struct{}
	sent     uint64
	got      map[uint64]int
	disorder int
}

func startStream(t *testing.T, from, to *lab.Guest, src, dst netip.AddrPort) *stream {
	t.Helper()
	s := &stream{end: make(chan struct{}), got: map[uint64]int{}}
	var err error
	if err2 := to.Do(func() error {
		s.to, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(dst), net.UDPAddrFromAddrPort(src))
		return err
	}); err2 != nil {
		t.Fatal(err2)
	}
	if err2 := from.Do(func() error {
		s.from, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(src), net.UDPAddrFromAddrPort(dst))
		return err
	}); err2 != nil {
		t.Fatal(err2)
	}
	s.wg.Go(s.send)
	s.wg.Go(s.receive)
	return s
}

func (s *stream) send() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	b := make([]byte, 64)
	for {
		select {
		case <-s.end:
			return
		case <-tick.C:
			s.sent++
			binary.BigEndian.PutUint64(b, s.sent)
			_, _ = s.from.Write(b)
		}
	}
}

func (s *stream) receive() {
	b := make([]byte, 128)
	last := uint64(0)
	for {
		n, err := s.to.Read(b)
		if err != nil {
			return
		}
		if n != 64 {
			continue
		}
		seq := binary.BigEndian.Uint64(b)
		if seq < last {
			s.disorder++
		}
		last = seq
		s.got[seq]++
	}
}

// stop ends it and says how many datagrams were sent and how many of them lost.
func (s *stream) stop(t *testing.T) (sent, lost uint64) {
	t.Helper()
	close(s.end)
	_ = s.to.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // for those on their way
	s.wg.Wait()
	_, _ = s.from.Close(), s.to.Close()
	if s.disorder > 0 {
		t.Errorf("%d datagrams out of order", s.disorder)
	}
	return s.sent, s.sent - uint64(len(s.got))
}
