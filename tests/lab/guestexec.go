package lab

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A GuestError is a script that ended with another status than 0.
type GuestError struct {
	Status int
	Output string
}

func (e *GuestError) Error() string {
	return fmt.Sprintf("status %d in the guest: %s", e.Status, tail([]byte(e.Output)))
}

// GuestExec runs a shell script inside a VM, over the unix socket of its second
// serial port, and returns what it prints. It waits for the guest to boot, until
// ctx ends. A failed script is a [GuestError]. Several calls at once wait for
// one another; a script that hangs ends with the call's ctx for the caller only.
func GuestExec(ctx context.Context, sock, script string) (string, error) {
	c := &channel{nonce: rand.Text()[:12]}
	conn, err := dialQueued(ctx, sock)
	if err != nil {
		return "", fmt.Errorf("guest's exec channel: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.conn, c.in = conn, bufio.NewReader(conn)
	out, err := c.exec(script)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = errors.Join(cause, err)
	}
	var failed *GuestError
	if err != nil && !errors.As(err, &failed) {
		err = fmt.Errorf("run in the guest: %w", err)
	}
	return out, err
}

// listens is how long QEMU may take from the bind of a socket to its listen.
const listens = 5 * time.Second

// dialQueued dials QEMU, which serves one client of a serial port at a time and
// lets few wait. One that has just begun refuses: its socket is there before it listens.
func dialQueued(ctx context.Context, sock string) (net.Conn, error) {
	for begun := time.Now(); ; {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", sock)
		begins := errors.Is(err, unix.ECONNREFUSED) && time.Since(begun) < listens
		if !begins && !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		if waited := pause(ctx, 5*time.Millisecond); waited != nil {
			return nil, errors.Join(waited, err)
		}
	}
}

// A channel is one request to the guest's etc/exec.sh.
type channel struct {
	conn  net.Conn
	in    *bufio.Reader
	nonce string
}

func (c *channel) exec(script string) (string, error) {
	if err := c.knock(); err != nil {
		return "", fmt.Errorf("the guest does not answer: %w", err)
	}
	if _, err := fmt.Fprintf(c.conn, "\nX %s %s\n", c.nonce, base64.StdEncoding.EncodeToString([]byte(script))); err != nil {
		return "", err
	}
	words, err := c.await("RPX", 4)
	if err != nil {
		return "", fmt.Errorf("no answer to %q: %w", script, err)
	}
	status, err1 := strconv.Atoi(words[2])
	out, err2 := base64.StdEncoding.DecodeString(words[3])
	if err := errors.Join(err1, err2); err != nil {
		return "", fmt.Errorf("garbled answer to %q: %w", script, err)
	}
	if status != 0 {
		return string(out), &GuestError{Status: status, Output: string(out)}
	}
	return string(out), nil
}

// knock asks until the guest listens: what is sent before is lost.
func (c *channel) knock() error {
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			fmt.Fprintf(c.conn, "\nP %s\n", c.nonce)
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	_, err := c.await("RPA", 2)
	return err
}

// await reads lines until one is the answer to this request.
func (c *channel) await(verb string, words int) ([]string, error) {
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		// An empty output is an empty last word.
		fields := strings.Split(strings.Trim(line, "\r\n"), " ")
		if len(fields) == words && fields[0] == verb && fields[1] == c.nonce {
			return fields, nil
		}
	}
}

// ExecScript is what a guest runs, by sh, to serve [GuestExec].
func ExecScript() []byte {
	b, _ := guestFiles.ReadFile("guest/exec.sh") // embedded
	return b
}
