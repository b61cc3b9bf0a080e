package netdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveBuffer holds some ten thousand changes, should many come at once.
const receiveBuffer = 4 << 20

// A listener is a subscription to the kernel's changes.
type listener interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

// Watch calls changed once when it has begun to listen, and then after each
// change of a link, a neighbour or an IPv4 route; many changes may be one call.
// What changed is not said: the caller reads anew what it needs, and so loses
// nothing when the kernel's queue overflows, which is a change like any other.
// It returns nil when ctx is done.
func Watch(ctx context.Context, log *slog.Logger, changed func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		return fmt.Errorf("listen for changes of the network: %w", err)
	}
	if err := s.SetReceiveBufferSize(receiveBuffer, true); err != nil {
		log.Warn("small netlink receive buffer: changes may be lost and read anew", "err", err)
	}
	return watch(ctx, log, s, changed)
}

func watch(ctx context.Context, log *slog.Logger, s listener, changed func()) error {
	dirty, failed := make(chan struct{}, 1), make(chan error, 1)
	dirty <- struct{}{}
	go func() { failed <- receive(log, s, dirty) }()
	for {
		select {
		case <-ctx.Done():
			s.Close()
			<-failed
			return nil
		case err := <-failed:
			s.Close()
			return fmt.Errorf("listen for changes of the network: %w", err)
		case <-dirty:
			changed()
		}
	}
}

// receive marks dirty until the subscription ends.
func receive(log *slog.Logger, s listener, dirty chan<- struct{}) error {
	for {
		_, _, err := s.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			log.Warn("changes of the network came too fast: reading all anew")
		} else if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return err
		}
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
}
