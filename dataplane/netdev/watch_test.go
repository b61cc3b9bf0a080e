package netdev

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A script is a subscription that fails when it is told to.
type script struct{ errs, closed chan error }

func newScript() *script { return &script{make(chan error), make(chan error)} }

func (s *script) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	select {
	case err := <-s.errs:
		return nil, nil, err
	case <-s.closed:
		return nil, nil, io.EOF
	}
}

func (s *script) Close() { close(s.closed) }

// TestOverflow loses changes as a full queue does: the caller reads all anew,
// also if it was reading when that happened, and goes on being told.
func TestOverflow(t *testing.T) {
	s := newScript()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	told := 0
	changed := func() {
		if told++; told == 2 {
			cancel()
			return
		}
		s.errs <- unix.ENOBUFS
	}
	if err := watch(ctx, slog.New(slog.DiscardHandler), s, changed); err != nil || told != 2 {
		t.Errorf("told %d times, %v", told, err)
	}
	broken := newScript()
	err := watch(t.Context(), slog.New(slog.DiscardHandler), broken, func() { broken.errs <- unix.EBADF })
	if !errors.Is(err, unix.EBADF) {
		t.Errorf("a broken subscription: %v", err)
	}
}
