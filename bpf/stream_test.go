package bpf

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// window is how many frames of a stream are on their way at most: queues hold
// them however slow the machine is, so that what doesn't arrive has been lost.
const window = 64

// A stream sends numbered datagrams from one guest to another, as fast as they
// arrive, until it is ended.
type stream struct {
	t        *testing.T
	in       net.PacketConn
	out      net.Conn
	credits  chan struct{}
	stop     chan struct{}
	sent     chan uint64 // how many, in the end
	received atomic.Uint64
	arrived  chan struct{} // has one if received has grown since it was last looked at
}

func newStream(t *testing.T, from, to *room) *stream {
	t.Helper()
	s := &stream{t: t, credits: make(chan struct{}, window), stop: make(chan struct{}), sent: make(chan uint64, 1), arrived: make(chan struct{}, 1)}
	at := netip.AddrPortFrom(caB, 7946).String()
	to.in(func() (err error) { s.in, err = net.ListenPacket("udp4", at); return err })
	from.in(func() (err error) { s.out, err = net.Dial("udp4", at); return err })
	t.Cleanup(func() { _, _ = s.in.Close(), s.out.Close() })
	for range window {
		s.credits <- struct{}{}
	}
	go s.receive()
	go s.send()
	return s
}

func (s *stream) send() {
	frame := make([]byte, 64)
	for n := uint64(0); ; {
		select {
		case <-s.stop:
			s.sent <- n
			return
		case <-s.credits:
		}
		n++
		binary.BigEndian.PutUint64(frame, n)
		if _, err := s.out.Write(frame); err != nil {
			s.sent <- n
			return
		}
	}
}

func (s *stream) receive() {
	frame := make([]byte, 65536)
	seen := map[uint64]bool{} // of the last window: none counts twice
	for {
		n, _, err := s.in.ReadFrom(frame)
		if err != nil {
			return
		}
		number := binary.BigEndian.Uint64(frame[:max(n, 8)])
		if n < 8 || seen[number] {
			continue
		}
		seen[number] = true
		delete(seen, number-4*window)
		s.received.Add(1)
		select {
		case s.arrived <- struct{}{}:
		default:
		}
		s.credits <- struct{}{}
	}
}

// carry waits until so many more frames have arrived.
func (s *stream) carry(n uint64) {
	s.t.Helper()
	if want := s.received.Load() + n; !s.reaches(want, 30*time.Second) {
		s.t.Fatalf("the stream stands still: %d arrived, waiting for %d", s.received.Load(), want)
	}
}

// reaches waits until so many frames have arrived in all.
func (s *stream) reaches(want uint64, patience time.Duration) bool {
	late := time.After(patience)
	for s.received.Load() < want {
		select {
		case <-s.arrived:
		case <-late:
			return false
		}
	}
	return true
}

// end stops the stream and returns how many frames it lost of how many.
func (s *stream) end() (lost, of uint64) {
	s.t.Helper()
	close(s.stop)
	of = <-s.sent
	s.reaches(of, 2*time.Second)
	return of - s.received.Load(), of
}

// next is the agent's next start, with what it attaches.
func (m *machine) next(change func(*Options)) {
	m.t.Helper()
	old := m.dp
	change(&m.options)
	m.load()
	m.in(func() error {
		return errors.Join(m.dp.AttachUplink(m.uplink), m.dp.AttachVXLAN(m.vxlan), m.attachTaps())
	})
	if err := old.Close(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) attachTaps() error {
	var errs []error
	for _, tap := range m.taps {
		errs = append(errs, m.dp.AttachTap(tap))
	}
	return errors.Join(errs...)
}

// Invariant 7: whoever isn't in a swap loses no frame, also over a restart of the
// agent and over an upgrade that changes the shape of maps, on either host.
func TestRestartAndUpgradeLoseNothing(t *testing.T) {
	a, b := newMachines(t)
	client, _ := a.add(redA, a, b)
	server, _ := b.add(redB, a, b)
	s := newStream(t, client, server)
	s.carry(500)
	for _, m := range []*machine{a, b} {
		m.next(func(*Options) {})
		s.carry(500)
		m.next(func(o *Options) { o.Mappings, o.Flows = 70001, 80001 })
		s.carry(500)
	}
	lost, of := s.end()
	t.Logf("%d frames, %d lost", of, lost)
	if lost != 0 {
		t.Errorf("%d of %d frames are lost; dropped: %v and %v", lost, of, a.reasons(), b.reasons())
	}
}
