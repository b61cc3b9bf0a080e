// Package guest is the agent that runs inside a VM. It keeps one NIC in step
// with the network behind it and the machine in step with the document that the
// host's metadata service (IMDS) publishes:
//
//   - a link event ends whatever is going on; when the carrier is there, a fresh
//     DHCP exchange follows at once (never a request for the former address);
//   - IMDS is asked in a long poll with short time-outs. A time-out means that the
//     address may be dead: renew the lease, then ask again;
//   - what the document wants to be run once runs after that was reported;
//   - a partial document is applied as a placeholder and reported as a partial
//     success, a final one is applied and reported as a final success. The two are
//     never mixed, and an older epoch than the last one is never applied.
//
// Documents, and the news that the network has changed, come by a virtio-serial
// port as well ([vnet.ChannelName]): then none of it waits for the NIC.
//
// It needs no other program in the guest. A NIC that another DHCP client of the
// guest manages is left to that one: it is told to renew, by its own means, and what
// it leaves of the old network is taken away. Network managers are never restarted.
// It will not manage a second NIC.
//
// Files ending in _linux and _windows are the two systems; the rest is for both.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"replug/directory/vnet"
)

// Who runs DHCP, for [Config].DHCP.
const (
	DHCPAuto = "auto" // the agent, unless a DHCP client already runs
	DHCPOwn  = "own"  // the agent
	DHCPNone = "none" // nobody: addresses are set by others
)

// Config is what the agent is told by its command line.
type Config struct {
	Interface string        // NIC; "": the first Ethernet NIC
	DHCP      string        // [DHCPAuto], [DHCPOwn] or [DHCPNone]
	IMDS      string        // URL of the metadata service, without a path
	Channel   string        // file or Unix socket of the second channel; "": the port of its name, if there is one
	Root      string        // prefix of every file that is read or written
	Wait      time.Duration // how long IMDS may hold a poll open
	LinkPoll  time.Duration // how often the link is asked beside its events
	Once      bool          // end after the first document that was reported
	Log       io.Writer     // one line an event
}

// Default returns the configuration of an agent in a real VM.
func Default() Config {
	return Config{DHCP: DHCPAuto, IMDS: "http://169.254.169.254", Root: defaultRoot,
		Wait: 2 * time.Second, LinkPoll: 20 * time.Millisecond, Log: os.Stderr}
}

// Check says what is wrong with c, and what would be right.
func (c *Config) Check() error {
	u, err := url.Parse(c.IMDS)
	switch {
	case err != nil || u.Scheme != "http" || u.Host == "" || u.Path != "":
		return fmt.Errorf("metadata service %q: want http://ADDRESS[:PORT]", c.IMDS)
	case c.DHCP != DHCPAuto && c.DHCP != DHCPOwn && c.DHCP != DHCPNone:
		return fmt.Errorf("dhcp %q: want auto, own or none", c.DHCP)
	case c.Wait < time.Second || c.Wait > time.Minute:
		return fmt.Errorf("wait %s: want 1s to 60s", c.Wait)
	case c.LinkPoll < time.Millisecond || c.LinkPoll > time.Minute:
		return fmt.Errorf("link-poll %s: want 1ms to 60s", c.LinkPoll)
	case !filepath.IsAbs(c.Root):
		return fmt.Errorf("root %q: want an absolute directory", c.Root)
	}
	return nil
}

// Why a session configures the NIC once more.
var (
	errDone  = errors.New("the document was reported") // ends an agent that was asked for one only
	errDue   = errors.New("the lease is to be renewed")
	errMoved = errors.New("the host says that the network has changed")
)

// A system is the machine that the agent runs on.
type system interface {
	// session waits until the NIC can carry frames. The context ends when that
	// changes; end it with the function.
	session(ctx context.Context) (context.Context, func(), error)
	// configure brings the NIC's addresses up to date. It returns when the lease is
	// to be renewed; zero is never.
	configure(ctx context.Context, why reason) (time.Time, error)
	// apply makes the document true, but for its commands. It goes on after an error, so that one wrong
	// setting doesn't take the others away.
	apply(d *vnet.Document, s *state) error
	// command is what runs a line of the document's, until it ends or ctx does.
	command(ctx context.Context, line string) *exec.Cmd
	// again is apply for a document that was applied before: only what was not, and disks.
	again(d *vnet.Document, s *state) error
	// describe fills in the guest's own view.
	describe(r *vnet.GuestReport)
	// uuid is the machine's as SMBIOS has it; "": not known.
	uuid() string
	files() files
	close()
}

// A reason is why the NIC is to be configured; the zero one: it has just come up.
type reason struct {
	due   bool        // the lease's time is half over
	moved *vnet.Moved // the host says so
	stale int         // times in a row that IMDS went silent
}

// An agent is one run of the program.
type agent struct {
	Config
	log     logger
	sys     system
	imds    *imds
	channel *channel

	state *state
	tasks chan task // of length 1: commands to be run

	mu        sync.Mutex
	since     vnet.Epoch              // of the last document taken; polls ask for newer ones
	offered   *vnet.Document          // to be applied next
	busy      bool                    // one is being applied
	idle      chan struct{}           // closed when it is done
	pending   *vnet.GuestReport       // not yet accepted by the host
	pendingAt time.Time               // since when
	over      chan struct{}           // closed when it is accepted, refused, or another one has taken its place
	ran       chan struct{}           // closed when the last document's commands have ended
	moved     *vnet.Moved             // not acted upon yet
	interrupt context.CancelCauseFunc // ends what the session does, for moved
	work      chan struct{}           // of length 1: there is a document
	malformed string                  // what was last said of a document that can't be read
	stale     int                     // lease renewals since IMDS last answered
}

// Run follows the NIC and IMDS until ctx ends, which is not an error. It returns
// an error only for what no waiting would mend: a wrong configuration, or no rights.
func Run(ctx context.Context, c Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	a := &agent{Config: c, log: newLogger(c.Log), imds: newIMDS(c.IMDS, c.Wait), work: make(chan struct{}, 1), tasks: make(chan task, 1)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	if a.sys, err = openSystem(ctx, &a.Config, a.log); err != nil {
		return err
	}
	defer a.sys.close()
	if a.state, err = loadState(a.sys.files()); err != nil {
		a.log.say("state is unreadable, starting without it: %v", err)
	}
	a.channel = newChannel(a)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() { a.applier(ctx) })
	beside.Go(func() { a.runner(ctx) })
	beside.Go(func() { a.channel.run(ctx) })
	if err := a.sessions(ctx); !errors.Is(err, errDone) && ctx.Err() == nil {
		return err
	}
	return nil
}

// sessions runs one session for each time the carrier is there.
func (a *agent) sessions(ctx context.Context) error {
	for {
		up, end, err := a.sys.session(ctx)
		if err != nil {
			return err
		}
		err = a.session(up)
		end()
		if errors.Is(err, errDone) || ctx.Err() != nil {
			return err
		}
	}
}

// session gets an address and follows IMDS until the link changes.
func (a *agent) session(ctx context.Context) error {
	a.stale = 0
	why := reason{moved: a.movedBefore()}
	for ctx.Err() == nil {
		err := a.round(ctx, why)
		before := why.moved
		why = reason{moved: a.movedBefore(), due: errors.Is(err, errDue)}
		switch {
		case errors.Is(err, errDone):
			return err
		case errors.Is(err, errStale):
			a.stale++
			why.stale = a.stale
			a.log.say("metadata service does not answer, renewing the lease: %v", err)
		case err != nil && why.moved == nil && !why.due && ctx.Err() == nil:
			a.log.say("dhcp failed, trying again: %v", err)
			why.moved = before
			pause(ctx, time.Second)
		}
	}
	return nil
}

// round configures the NIC and polls, until there is a reason to do so again.
func (a *agent) round(ctx context.Context, why reason) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.mu.Lock()
	a.interrupt = cancel
	if a.moved != nil { // it came in between
		cancel(errMoved)
	}
	a.mu.Unlock()
	renewAt, err := a.sys.configure(ctx, why)
	if err != nil {
		return err
	}
	return a.follow(ctx, renewAt)
}

// onMoved takes what the host says of the network. The older one of two is late.
func (a *agent) onMoved(m *vnet.Moved) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.Epoch < a.since || a.moved != nil && m.Epoch < a.moved.Epoch {
		a.log.say("news of epoch %s is late", m.Epoch)
		return
	}
	a.log.say("network has changed, epoch %s", m.Epoch)
	a.moved = m
	if a.interrupt != nil {
		a.interrupt(errMoved)
	}
}

// movedBefore takes over the news that came since the last round.
func (a *agent) movedBefore() *vnet.Moved {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.moved
	a.moved = nil
	return m
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
