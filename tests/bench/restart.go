package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/cluster"
	"replug/tests/lab"
)

const (
	restartFrames = 1_000_000
	restartRate   = 50_000 // frames a second at most
	// flying is how many frames are on their way at most. Queues hold them however
	// slow the machine is: what doesn't arrive was lost by what is measured.
	flying = 256
)

// restart counts what a stream of small frames between two guests of two hosts
// loses while their agents are killed and start again, and while they are
// replaced by ones whose maps have another shape.
func restart(ctx context.Context, o Options) (figures []Figure, err error) {
	c, end, err := startCluster(ctx, o, 2, cluster.Config{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	guests, err := twoGuests(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, kind := range []struct {
		id   string
		args func(round int) []string
	}{
		{"restart_lost", func(int) []string { return nil }},
		{"upgrade_lost", func(round int) []string { return []string{"--max-mappings", strconv.Itoa(70_000 + round)} }},
	} {
		r, err := surviving(ctx, c, guests, kind.args)
		if err != nil {
			return figures, fmt.Errorf("%s: %w", kind.id, err)
		}
		fmt.Fprintf(o.Out, "%s: %d of %d frames over %d starts, %.0f frames a second\n", kind.id, r.lost, r.sent, r.starts, float64(r.sent)/r.took.Seconds())
		figures = append(figures, atMost(kind.id, fmt.Sprintf("of %d frames", r.sent), []float64{float64(r.lost)}, median, 0, "", 0))
	}
	return figures, nil
}

// twoGuests attaches one to each host.
func twoGuests(ctx context.Context, c *cluster.Cluster) (guests [2]*lab.Guest, err error) {
	conn, err := c.Conn()
	if err != nil {
		return guests, err
	}
	if err := redNetwork(ctx, conn); err != nil {
		return guests, err
	}
	for i := range guests {
		guests[i], err = c.Attach(ctx, cluster.Attachment{Name: fmt.Sprintf("end%d", i+1), Host: i + 1, Tenant: tenant, Network: "red",
			IP: endAddr(i).String(), Bits: 16, Static: true})
		if err != nil {
			return guests, err
		}
	}
	return guests, cluster.Ping(ctx, guests[0].Node, endAddr(1))
}

func endAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 20, 7, byte(31 + i)}) }

// A survival is how a stream came through.
type survival struct {
	sent, lost uint64
	starts     int
	took       time.Duration
}

// surviving starts the agents of both hosts anew, in turn, for as long as the
// stream has frames.
func surviving(ctx context.Context, c *cluster.Cluster, guests [2]*lab.Guest, args func(round int) []string) (survival, error) {
	s, err := newFlood(guests)
	if err != nil {
		return survival{}, err
	}
	defer s.close()
	begin := time.Now()
	done := make(chan error, 1)
	go func() { done <- s.send(ctx, restartFrames) }()
	r := survival{}
	for ; ; r.starts++ {
		select {
		case err := <-done:
			r.sent, r.took = s.sent, time.Since(begin)
			r.lost = s.missing(ctx)
			return r, err
		default:
		}
		if err := startAgain(ctx, c, 1+r.starts%2, args(r.starts)); err != nil {
			return r, err
		}
	}
}

// startAgain kills an agent and waits until the next one serves.
func startAgain(ctx context.Context, c *cluster.Cluster, host int, args []string) error {
	log := c.Agent(host).Log()
	before, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	if err := errors.Join(c.KillHost(ctx, host), c.StartHost(ctx, host, args...)); err != nil {
		return err
	}
	return lab.Until(ctx, fmt.Sprintf("the agent of h%d", host), func() error {
		said, err := os.ReadFile(log)
		if err == nil && !bytes.Contains(said[len(before):], []byte("attached to the directory")) {
			err = errors.New("it isn't attached to the directory yet")
		}
		if !c.Agent(host).Alive() {
			return fmt.Errorf("it has ended; see %s", log)
		}
		return err
	})
}

// A flood is numbered datagrams from one guest to the other.
type flood struct {
	out     net.Conn
	in      net.PacketConn
	credits chan struct{}
	sent    uint64
	arrived atomic.Uint64
}

func newFlood(guests [2]*lab.Guest) (*flood, error) {
	f := &flood{credits: make(chan struct{}, flying)}
	to := netip.AddrPortFrom(endAddr(1), 7946).String()
	if err := errors.Join(
		guests[1].Do(func() (err error) { f.in, err = net.ListenPacket("udp4", to); return err }),
		guests[0].Do(func() (err error) { f.out, err = net.Dial("udp4", to); return err }),
	); err != nil {
		return nil, err
	}
	if raw, err := f.in.(*net.UDPConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	}
	for range flying {
		f.credits <- struct{}{}
	}
	go f.receive()
	return f, nil
}

// send sends n frames, no faster than restartRate. A frame that was lost keeps
// its place among the flying ones, so a flood that loses them all stands still:
// after a while without an arrival it ends.
func (f *flood) send(ctx context.Context, n uint64) error {
	frame := make([]byte, 64)
	begin := time.Now()
	for f.sent < n {
		select {
		case <-f.credits:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Second):
			return fmt.Errorf("nothing has arrived for ten seconds: %d of %d frames are missing", f.sent-f.arrived.Load(), f.sent)
		}
		if early := time.Duration(f.sent)*time.Second/restartRate - time.Since(begin); early > time.Millisecond {
			time.Sleep(early) // the pace, not a wait for anything
		}
		f.sent++
		binary.BigEndian.PutUint64(frame, f.sent)
		if _, err := f.out.Write(frame); err != nil {
			return fmt.Errorf("send frame %d: %w", f.sent, err)
		}
	}
	return nil
}

// receive gives a credit back for every number that is new.
func (f *flood) receive() {
	frame := make([]byte, 128)
	seen := map[uint64]bool{}
	for {
		n, _, err := f.in.ReadFrom(frame)
		if err != nil {
			return
		}
		number := binary.BigEndian.Uint64(frame)
		if n != 64 || seen[number] {
			continue
		}
		seen[number] = true
		delete(seen, number-4*flying)
		f.arrived.Add(1)
		f.credits <- struct{}{}
	}
}

// missing waits up to two seconds for what is on its way, and counts the rest.
func (f *flood) missing(ctx context.Context) uint64 {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_ = lab.Until(ctx, "the last frames", func() error {
		if f.arrived.Load() < f.sent {
			return errors.New("some are missing")
		}
		return nil
	})
	return f.sent - f.arrived.Load()
}

func (f *flood) close() {
	f.out.Close()
	f.in.Close()
}
