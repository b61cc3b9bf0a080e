package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rrTime = 1500 * time.Millisecond
	rrPort = 7001
)

// roundTrips returns how many TCP requests of one byte are answered with one byte
// for each second of CPU that both ends and all between them took. Plain system
// calls on threads of one CPU: nothing but the way should be measured.
func (w *world) roundTrips(ctx context.Context) (float64, error) {
	a, b := w.sides[0], w.sides[1]
	var listener int
	if err := b.guest.Node.Do(func() (err error) { listener, err = listen(rrPort); return err }); err != nil {
		return 0, err
	}
	defer unix.Close(listener)
	served := make(chan spentResult, 1)
	go func() { served <- answerAll(listener) }()
	before := cpu()
	var done int
	var own time.Duration
	err := a.guest.Node.Do(func() (err error) {
		done, own, err = askFor(ctx, b.nics[vethNIC].addr.As4(), rrTime)
		return err
	})
	if err != nil {
		return 0, err
	}
	s := <-served
	return float64(done) / (own + s.cpu + cpu() - before).Seconds(), s.err
}

type spentResult struct {
	cpu time.Duration
	err error
}

func listen(port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 1)); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("listen for round trips: %w", err)
	}
	return fd, nil
}

// answerAll answers one connection until it ends.
func answerAll(listener int) spentResult {
	release, err := keepToFirstCPU()
	if err != nil {
		return spentResult{err: err}
	}
	defer release()
	fd, _, err := unix.Accept(listener)
	if err != nil {
		return spentResult{err: fmt.Errorf("accept: %w", err)}
	}
	defer unix.Close(fd)
	begin := threadCPU()
	err = noDelay(fd)
	for b := make([]byte, 1); err == nil; {
		n, rerr := unix.Read(fd, b)
		if n == 0 || rerr != nil {
			return spentResult{threadCPU() - begin, rerr}
		}
		_, err = unix.Write(fd, b)
	}
	return spentResult{threadCPU() - begin, err}
}

// askFor makes round trips for some time.
func askFor(ctx context.Context, to [4]byte, d time.Duration) (done int, spent time.Duration, err error) {
	release, err := keepToFirstCPU()
	if err != nil {
		return 0, 0, err
	}
	defer release()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: rrPort, Addr: to}); err != nil {
		return 0, 0, fmt.Errorf("connect for round trips: %w", err)
	}
	if err := noDelay(fd); err != nil {
		return 0, 0, err
	}
	begin, end, b := threadCPU(), time.Now().Add(d), make([]byte, 1)
	for time.Now().Before(end) && ctx.Err() == nil {
		for range 64 {
			if _, err := unix.Write(fd, b); err != nil {
				return done, 0, err
			}
			if n, err := unix.Read(fd, b); n != 1 || err != nil {
				return done, 0, fmt.Errorf("round trip: %d bytes, %w", n, err)
			}
			done++
		}
	}
	return done, threadCPU() - begin, ctx.Err()
}

func noDelay(fd int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}
