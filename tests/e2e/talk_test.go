package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"replug/tests/lab"
)

// talks sends bytes both ways at once over one TCP connection, and then datagrams
// of many sizes, most of them larger than a frame, which come back; and fails the
// test unless each byte arrives as it was sent. Ip is an address of the guest to.
func talks(ctx context.Context, t *testing.T, from, to *lab.Node, ip string) {
	t.Helper()
	addr := net.JoinHostPort(ip, "9731")
	if err := errors.Join(streams(ctx, from, to, addr), echoes(ctx, from, to, addr)); err != nil {
		t.Errorf("%s to %s at %s: %v", from.Name, to.Name, ip, err)
	}
}

// streams is 4 MiB over TCP, each way.
func streams(ctx context.Context, from, to *lab.Node, addr string) error {
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	sent := [2][]byte{noise(4 << 20), noise(4 << 20)}
	answered := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = exchange(ctx, c, sent[1], sent[0])
		}
		answered <- err
	}()
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(exchange(ctx, c, sent[0], sent[1]), <-answered)
}

// exchange writes all of one and reads all of the other, to the connection's end.
func exchange(ctx context.Context, c net.Conn, write, want []byte) error {
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(write)
		wrote <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("TCP: %d bytes arrived, other ones than the %d that were sent", len(got), len(want))
	}
	return errors.Join(err, <-wrote)
}

// echoes is UDP there and back. A datagram that is lost is sent again.
func echoes(ctx context.Context, from, to *lab.Node, addr string) error {
	var server net.PacketConn
	var c net.Conn
	err := to.Do(func() (err error) {
		server, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		b := make([]byte, 1<<16)
		for n, who, err := server.ReadFrom(b); err == nil; n, who, err = server.ReadFrom(b) {
			_, _ = server.WriteTo(b[:n], who)
		}
	}()
	if err = from.Do(func() (err error) { c, err = net.Dial("udp", addr); return err }); err != nil {
		return err
	}
	defer c.Close()
	got := make([]byte, 1<<16)
	for _, size := range []int{1, 700, 1402, 1403, 3001, 9000, 32000} {
		sent := noise(size)
		for ctx.Err() == nil {
			if _, err := c.Write(sent); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			n, err := c.Read(got)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			if err != nil || n == len(sent) && !bytes.Equal(got[:n], sent) {
				return fmt.Errorf("UDP: %d bytes came back as %d other ones (%w)", size, n, err)
			}
			if n == len(sent) { // else it is the late answer to another one
				break
			}
		}
	}
	return context.Cause(ctx)
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), rand.Uint64()))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
