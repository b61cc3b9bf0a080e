// Package qmp speaks QEMU's monitor protocol over a unix socket: what it takes
// to move a NIC's link, watch a machine and stop it.
//
// It starts no machine and does not reconnect: a [Client] that has lost its
// monitor says why and stays dead, and its owner, who knows whether the machine
// is to be there, dials anew. QEMU serves one client of a socket at a time.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

const (
	maxMessage = 1 << 20         // bytes of one message; QEMU's own are far smaller
	maxEvents  = 64              // events that may wait to be taken
	slowWrite  = 2 * time.Second // a monitor that reads nothing for so long is dead
)

// Errors of a client, wrapped with what happened.
var (
	ErrClosed   = errors.New("the monitor connection is closed") // also wrapped by every call after it
	ErrProtocol = errors.New("not a QMP monitor, or it broke the protocol")
)

// An Error is QEMU's answer to a command that it refused. The client lives on.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"` // "GenericError", "DeviceNotFound", ...
	Desc    string `json:"desc"`
}

// Error returns QEMU's words.
func (e *Error) Error() string { return fmt.Sprintf("%s: %s (%s)", e.Command, e.Desc, e.Class) }

// An Event is what QEMU says unasked ("SHUTDOWN", "NIC_RX_FILTER_CHANGED").
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time // by QEMU's clock, which is the host's
}

// A Client is one connection to a monitor. Its methods may be called at once.
type Client struct {
	conn   net.Conn
	events chan Event
	resets chan struct{}
	done   chan struct{}

	mu      sync.Mutex // guards what follows, and writing
	next    uint64
	waiting map[string]chan message
	err     error // why the client is dead
}

// A message is anything that QEMU sends.
type message struct {
	Greeting  json.RawMessage `json:"QMP"`
	ID        string          `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Dial connects to the monitor at a unix socket and negotiates. It waits no
// longer than ctx: a monitor that another client holds never greets.
func Dial(ctx context.Context, socket string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("dial monitor: %w", err)
	}
	c := &Client{conn: conn, events: make(chan Event, maxEvents), resets: make(chan struct{}, 1), done: make(chan struct{}), waiting: map[string]chan message{}}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 4096), maxMessage)
	if err := greet(ctx, conn, lines); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("monitor %s: %w", socket, err)
	}
	go c.read(lines)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("monitor %s: %w", socket, err)
	}
	return c, nil
}

// greet reads the first message, which is the only one that comes unasked.
func greet(ctx context.Context, conn net.Conn, lines *bufio.Scanner) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var m message
	switch ok := lines.Scan(); {
	case !ok && ctx.Err() != nil:
		return fmt.Errorf("no greeting, does another client hold it? %w", ctx.Err())
	case !ok:
		return fmt.Errorf("no greeting: %w", errors.Join(ErrProtocol, lines.Err()))
	case json.Unmarshal(lines.Bytes(), &m) != nil || m.Greeting == nil:
		return fmt.Errorf("greeted with %.80q: %w", lines.Text(), ErrProtocol)
	}
	if !stop() {
		return ctx.Err() // the deadline is set, or will be
	}
	return nil
}

// Execute runs a command and waits for its answer, no longer than ctx. What the
// command returns is decoded into out, unless that is nil. It returns an
// [*Error] if QEMU refuses, and wraps [ErrClosed] if the monitor is lost before
// the answer: then nobody knows whether the command took effect.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	id, answer, err := c.send(ctx, command, args)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer c.forget(id)
	select {
	case m := <-answer:
		return decode(command, m, out)
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer: %w", command, ctx.Err())
	case <-c.done:
	}
	select {
	case m := <-answer: // it came with the last words
		return decode(command, m, out)
	default:
		return fmt.Errorf("%s: no answer: %w", command, c.Err())
	}
}

func decode(command string, m message, out any) error {
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("%s: returned %.80q: %w", command, m.Return, err)
	}
	return nil
}

// send writes a command; its answer comes over the channel.
func (c *Client) send(ctx context.Context, command string, args any) (string, <-chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", nil, c.err
	}
	c.next++
	id := strconv.FormatUint(c.next, 10)
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return "", nil, err
	}
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(slowWrite))
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		// Half a command may be written: the next one would be read as its end.
		c.fail(fmt.Errorf("write: %w", err))
		return "", nil, c.err
	}
	answer := make(chan message, 1)
	c.waiting[id] = answer
	return id, answer, nil
}

func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// read hands out what comes until the connection ends.
func (c *Client) read(lines *bufio.Scanner) {
	defer close(c.events)
	defer close(c.resets)
	defer close(c.done)
	why := error(io.EOF)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			why = fmt.Errorf("%w: %w", ErrProtocol, err)
			break
		}
		c.deliver(m)
	}
	if err := lines.Err(); err != nil {
		why = err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(why)
}

func (c *Client) deliver(m message) {
	if m.Event == "RESET" {
		select {
		case c.resets <- struct{}{}:
		default:
		}
		return
	}
	if m.Event != "" {
		at := time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
		select {
		case c.events <- Event{Name: m.Event, Data: m.Data, At: at}:
		default:
		}
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.waiting[m.ID]; ok {
		delete(c.waiting, m.ID)
		answer <- m
	}
}

// fail makes the client dead. The caller holds mu.
func (c *Client) fail(why error) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrClosed, why)
	}
	_ = c.conn.Close()
}

// Events returns what QEMU says unasked, but for resets. An event that comes while
// 64 wait to be taken is lost; the channel is closed when the client is dead.
func (c *Client) Events() <-chan Event { return c.events }

// Resets says that the machine was reset, by its guest or from outside: it boots,
// and the process stays. Several that come before one is taken are one. The channel
// is closed when the client is dead.
func (c *Client) Resets() <-chan struct{} { return c.resets }

// Done is closed when the client is dead; [Client.Err] then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns nil while the client lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection; the machine goes on. It waits for the reader.
func (c *Client) Close() error {
	c.mu.Lock()
	c.fail(errors.New("closed by its owner"))
	c.mu.Unlock()
	<-c.done
	return nil
}
