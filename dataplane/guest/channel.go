package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"replug/directory/vnet"
)

// A channel is the second way to the host: see [vnet.ChannelName]. A VM that has no
// such port does without. What the host says is taken as what IMDS says: newer
// documents are applied, older ones are not.
type channel struct {
	agent *agent
	wake  chan struct{} // of length 1: look for a report to send

	writing sync.Mutex // held while a line is written, which nobody may ever read

	mu    sync.Mutex         // never held while something waits
	port  io.ReadWriteCloser // nil: not open
	hello string             // what was last said; answers are to it
	heard bool               // the host has answered it
	asked int                // reports since then that are not answered
	gone  chan struct{}      // closed and replaced when a report has been answered
}

func newChannel(a *agent) *channel {
	return &channel{agent: a, wake: make(chan struct{}, 1), gone: make(chan struct{})}
}

// How often a port is looked for that is not there, or has no host behind it: the
// kernel tells neither, except by a signal.
const (
	channelRetry  = 100 * time.Millisecond
	channelAbsent = 2 * time.Second
)

// run speaks until ctx ends.
func (c *channel) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		port, err := openPort(c.agent.Channel)
		wait := channelRetry
		if err == nil {
			err = c.speak(ctx, port)
		} else if errors.Is(err, os.ErrNotExist) {
			wait = channelAbsent
		}
		if why := fmt.Sprint(err); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrNotExist) && why != said && ctx.Err() == nil {
			said = why
			c.agent.log.say("second channel: %v", err)
		}
		pause(ctx, wait)
	}
}

// speak says hello and then does what the host says, until the port ends.
func (c *channel) speak(ctx context.Context, port io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() { port.Close() })
	defer stop()
	c.open(port)
	defer c.open(nil)
	ended := make(chan struct{})
	var beside sync.WaitGroup
	defer beside.Wait()
	defer port.Close() // a report may wait for its reader
	defer close(ended)
	if err := c.greet(); err != nil {
		return err
	}
	beside.Go(func() { c.reports(ended) })
	for in := lines(port); in.Scan(); {
		var m vnet.ToGuest
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			continue // the end of a line whose begin went to an earlier agent
		}
		if err := c.hear(&m); err != nil {
			return err
		}
	}
	return io.EOF
}

// lines reads what ends in a newline, no longer than the bound.
func lines(r io.Reader) *bufio.Scanner {
	in := bufio.NewScanner(r)
	in.Buffer(nil, vnet.MaxToGuest+2)
	return in
}

func (c *channel) open(port io.ReadWriteCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.port, c.heard = port, false
}

// greet says who is to be answered from now on.
func (c *channel) greet() error {
	c.mu.Lock()
	c.hello, c.heard, c.asked = rand.Text()[:12], false, 0
	hello := c.hello
	c.mu.Unlock()
	return c.say(vnet.FromGuest{Hello: hello})
}

func (c *channel) say(m vnet.FromGuest) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode for the second channel: %w", err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	port := c.port
	c.mu.Unlock()
	if port == nil {
		return io.EOF
	}
	_, err = port.Write(append(b, '\n'))
	return err
}

// hear does what one message says.
func (c *channel) hear(m *vnet.ToGuest) error {
	if m.Ping { // a host that has just come: it knows nobody yet
		return c.greet()
	}
	c.mu.Lock()
	mine := m.To != "" && m.To == c.hello
	first := mine && !c.heard
	c.heard = c.heard || mine
	c.mu.Unlock()
	switch {
	case !mine:
		return nil
	case first:
		c.agent.log.say("second channel is open")
		c.poke()
	}
	if m.Config != nil && m.Config.Epoch != 0 && c.agent.offer(m.Config) {
		c.agent.log.say("config epoch %s came by the second channel", m.Config.Epoch)
	}
	if m.Moved != nil {
		c.agent.onMoved(m.Moved)
	}
	if m.Answer != nil {
		c.answered(m.Answer)
	}
	return nil
}

// answered ends the wait for a report's fate. One that is to come again goes to IMDS. An
// answer to an earlier one, of the same epoch perhaps, says nothing of the last.
func (c *channel) answered(r *vnet.ReportAnswer) {
	c.mu.Lock()
	c.asked--
	earlier := c.asked > 0
	c.mu.Unlock()
	switch {
	case r.Again, earlier:
	case r.Error != "":
		c.agent.settled(r.Epoch, "report for epoch %s is refused: %s", r.Epoch, r.Error)
	default:
		c.agent.settled(r.Epoch, "reported epoch %s by the second channel", r.Epoch)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.gone)
	c.gone = make(chan struct{})
}

// poke says that there may be a report to send.
func (c *channel) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// reports sends each report that is due, once.
func (c *channel) reports(ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-c.wake:
		}
		if r, _ := c.agent.due(); r != nil && c.live() {
			c.mu.Lock()
			c.asked++
			c.mu.Unlock()
			if err := c.say(vnet.FromGuest{Report: r}); err != nil {
				return // the reader hears of it as well
			}
		}
	}
}

// live reports whether the host listens.
func (c *channel) live() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.port != nil && c.heard
}

// awaits returns what is closed when a report has been answered, and whether the
// host listens.
func (c *channel) awaits() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone, c.port != nil && c.heard
}
