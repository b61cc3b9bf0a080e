// Package guest is the agent that runs inside a VM. It keeps one NIC in step
// with the network behind it and the machine in step with the document that the
// host's metadata service (IMDS) publishes:
//
//   - a link event ends whatever is going on; when the carrier is there, a fresh
//     DHCP exchange follows at once (never a request for the former address);
//   - IMDS is asked in a long poll with short time-outs. A time-out means that the
//     address may be dead: renew the lease, then ask again;
//   - a partial document is applied as a placeholder and reported as a partial
//     success, a final one is applied and reported as a final success. The two are
//     never mixed, and an older epoch than the last one is never applied.
//
// It needs no other program in the guest. It will not manage a second NIC, IPv6,
// or a NIC that another DHCP client of the guest manages (that one is told to renew).
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
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
	Root      string        // prefix of every file that is read or written
	Wait      time.Duration // how long IMDS may hold a poll open
	LinkPoll  time.Duration // how often the link is asked beside its events
	Once      bool          // end after the first document that was reported
	Log       io.Writer     // one line an event
}

// Default returns the configuration of an agent in a real VM.
func Default() Config {
	return Config{DHCP: DHCPAuto, IMDS: "http://169.254.169.254", Root: "/",
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

// errDone ends an agent that was asked for one document only.
var errDone = errors.New("the document was reported")

// An agent is one run of the program.
type agent struct {
	Config
	log       logger
	link      *link
	nic       *nic
	imds      *imds
	machine   machine
	state     state
	since     vnet.Epoch        // of the last document handled; polls ask for newer ones
	pending   *vnet.GuestReport // not yet accepted by the host
	malformed string            // what was last said of a document that can't be read
	settled   bool              // another DHCP client was found before
	stale     int               // lease renewals since IMDS last answered
}

// Run follows the NIC and IMDS until ctx ends, which is not an error. It returns
// an error only for what no waiting would mend: a wrong configuration, or no rights.
func Run(ctx context.Context, c Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	a := &agent{Config: c, log: newLogger(c.Log), imds: newIMDS(c.IMDS, c.Wait), machine: machine{root: c.Root}}
	var err error
	if a.state, err = loadState(c.Root); err != nil {
		a.log.say("state is unreadable, starting without it: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.link, err = watchLink(ctx, c.Interface, c.LinkPoll, a.log); err != nil {
		return err
	}
	defer a.link.wait()
	defer cancel()
	if a.nic, err = newNIC(); err != nil {
		return err
	}
	defer a.nic.close()
	if err := a.sessions(ctx); !errors.Is(err, errDone) && ctx.Err() == nil {
		return err
	}
	return nil
}

// sessions runs one session for each time the carrier is there.
func (a *agent) sessions(ctx context.Context) error {
	for {
		up, st, end, err := a.link.session(ctx)
		if err != nil {
			return err
		}
		err = a.session(up, st)
		end()
		if errors.Is(err, errDone) || ctx.Err() != nil {
			return err
		}
	}
}

// session gets an address and follows IMDS until the link changes.
func (a *agent) session(ctx context.Context, st linkState) error {
	a.stale = 0
	for ctx.Err() == nil {
		renewAt, err := a.configure(ctx, st)
		if err != nil && ctx.Err() == nil {
			a.log.say("dhcp failed, trying again: %v", err)
			pause(ctx, time.Second)
			continue
		}
		switch err := a.follow(ctx, renewAt); {
		case errors.Is(err, errDone):
			return err
		case errors.Is(err, errStale):
			a.stale++
			a.log.say("metadata service does not answer, renewing the lease: %v", err)
		}
	}
	return nil
}

// configure brings the address up to date, or leaves it to whom it belongs. It
// returns when the lease is to be renewed; zero is never.
func (a *agent) configure(ctx context.Context, st linkState) (time.Time, error) {
	if a.DHCP == DHCPNone || a.handsOff() {
		return time.Time{}, nil
	}
	if a.DHCP == DHCPAuto {
		if c, ok := findClient(); ok {
			told := ""
			if a.settled { // not at the agent's start: the client has just asked
				told = c.kick()
			}
			a.settled = true
			a.log.say("dhcp is left to %s%s", c.name, told)
			return time.Time{}, nil
		}
	}
	return a.nic.lease(ctx, st, a.machine, a.log)
}

// handsOff reports whether the maintenance switch is set: the operator of the VM
// wants the NIC left alone.
func (a *agent) handsOff() bool {
	_, err := os.Stat(a.machine.path("run/replug-guest/dhcp-off"))
	if err == nil {
		a.log.say("dhcp is off: run/replug-guest/dhcp-off exists")
	}
	return err == nil
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
