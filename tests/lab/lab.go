// Package lab builds a small network world on one Linux machine: hosts as
// network namespaces on a routed underlay, a router between them, a namespace
// for the server, and virtual machines. Tests, the demo and `replug lab` share it.
//
//	l, err := lab.Up(ctx, lab.Config{Name: "mine", Hosts: 2})
//	defer l.Down(context.Background())
//	p, err := l.Host(1).Start(ctx, lab.Cmd{Args: []string{"replug-host", "--config", ...}})
//
// The underlay is routed, not switched: host n is up0 172.31.n.2/24 behind the
// router's 172.31.n.1, and its PA prefix 100.64.n.0/24 is routed to it. The
// prefix is a blackhole on the host: no PA is a local address there. The server
// is 172.31.250.2/24, and nothing has IPv6. With [IPv6] nothing has IPv4: host n is
// fd31:0:0:n::2/64, its PA prefix fd64:0:0:n::/112, the server fd31:0:0:fa::2/64.
//
// Whatever a lab makes is found again from its name alone: namespaces
// (rp-<lab>-*, below /run/replug/netns), its state directory (/run/replug/lab/<lab>), and
// processes, by their namespace and by REPLUG_LAB=<lab> in their environment.
// So another process can take it down, and [Residue] can tell what was left.
//
// It needs root, Linux 6.6 and a few packages; [Check] says which one is missing.
// It knows nothing of Replug's programs: it starts what it is told to.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Root is the directory that holds the state of every lab, one directory each.
const Root = "/run/replug/lab"

// DefaultMTU of the underlay leaves a guest 1500 bytes inside VXLAN over IPv4, and
// 1480 over IPv6.
const DefaultMTU = 1550

// Errors of [Up] and [Open].
var (
	ErrName  = errors.New("bad lab name: a letter, then up to 11 letters or digits, lower case")
	ErrIsUp  = errors.New("lab is up already")
	ErrNotUp = errors.New("no such lab is up")
)

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)

// A Wire is what connects a host with the router.
type Wire string

// The two wires. Stored in the lab's record.
const (
	// WireVeth is a veth pair. The kernel hands whole socket buffers across, so
	// they keep things that no real wire carries: their owner, GSO state.
	WireVeth Wire = "veth"
	// WireCable copies frames in user space between two taps with NAPI: only
	// bytes cross, as between real NICs, and frames are merged by GRO on arrival.
	// It can delay. It needs Config.Helper.
	WireCable Wire = "cable"
)

// Config says what to build.
type Config struct {
	Name  string // of the lab; part of namespace names
	Hosts int    // 1..200
	MTU   int    // of the underlay, bytes; 0: DefaultMTU
	Wire  Wire   // of the hosts' uplinks; "": WireVeth

	Family Family // of the underlay's addresses; "": IPv4

	// Threaded makes the NAPI of a cable's devices run in kernel threads, as busy
	// as a real NIC's. For measuring the order of frames.
	Threaded bool

	// Helper is the command that runs [HelperMain], argument by argument. Guests
	// of the cheap kind, cables and the reaper need it. [BuildHelper] makes one.
	Helper []string

	// Detached labs outlive the process that made them (`replug lab up`).
	// Others are taken down by a reaper process when their owner dies, even by
	// kill -9, if there is a Helper; without one, by the next Up of that name.
	Detached bool
}

// A Lab is a world that is up. Its methods may be called at once from several
// goroutines, except Down.
type Lab struct {
	rec   record
	nodes map[string]*Node
}

// Up builds a lab. On an error nothing is left. The error is [ErrIsUp] when one
// of that name lives; one whose owner is dead is taken down first.
func Up(ctx context.Context, c Config) (*Lab, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	unlock, err := lockName(ctx, c.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearStale(ctx, c.Name); err != nil {
		return nil, err
	}
	l := &Lab{rec: newRecord(c), nodes: map[string]*Node{}}
	if err := l.build(ctx); err != nil {
		down := context.WithoutCancel(ctx)
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", c.Name, err), takeDown(down, c.Name))
	}
	return l, nil
}

// Open returns a lab that is up, made by this process or another one.
func Open(name string) (*Lab, error) {
	rec, err := readRecord(name)
	if err != nil {
		return nil, err
	}
	l := &Lab{rec: rec, nodes: map[string]*Node{}}
	for _, n := range rec.Nodes {
		l.nodes[n] = &Node{lab: l, Name: n}
	}
	return l, nil
}

// Down removes everything of the lab and returns an error that names what
// resists. It is safe to call it twice.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.rec.Name) }

// Down removes everything of the lab of that name, half-built or broken ones
// and those of dead processes included. A lab that isn't there is no error.
func Down(ctx context.Context, name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%q: %w", name, ErrName)
	}
	unlock, err := lockName(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	return takeDown(ctx, name)
}

// DownStale takes down every lab whose owner is dead, and returns their names.
func DownStale(ctx context.Context) ([]string, error) {
	var gone []string
	var errs []error
	for _, name := range Names() {
		if rec, err := readRecord(name); err == nil && rec.alive() {
			continue
		}
		gone = append(gone, name)
		errs = append(errs, Down(ctx, name))
	}
	return gone, errors.Join(errs...)
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.rec.Name }

// Dir returns the lab's state directory.
func (l *Lab) Dir() string { return filepath.Join(Root, l.rec.Name) }

// MTU returns the underlay's MTU.
func (l *Lab) MTU() int { return l.rec.MTU }

// Hosts returns all hosts, in order.
func (l *Lab) Hosts() []*Node {
	hosts := make([]*Node, l.rec.Hosts)
	for i := range hosts {
		hosts[i] = l.Host(i + 1)
	}
	return hosts
}

// Host returns host n, counted from 1; nil if there is none.
func (l *Lab) Host(n int) *Node { return l.nodes[hostName(n)] }

// Server returns the namespace of the server.
func (l *Lab) Server() *Node { return l.nodes[serverName] }

// Router returns the namespace of the router. Its devices are named after what
// they lead to: h1, h2, s.
func (l *Lab) Router() *Node { return l.nodes[routerName] }

// Node returns any namespace of the lab by its short name (r, s, h1, g-name).
func (l *Lab) Node(name string) (*Node, error) {
	if n, ok := l.nodes[name]; ok {
		return n, nil
	}
	if _, err := os.Stat(netnsPath(l.rec.Name, name)); err == nil {
		return &Node{lab: l, Name: name}, nil
	}
	return nil, fmt.Errorf("lab %s has no %q (there is r, s, h1..h%d, g-<guest>)", l.rec.Name, name, l.rec.Hosts)
}

func (c Config) complete() (Config, error) {
	if !nameForm.MatchString(c.Name) {
		return c, fmt.Errorf("%q: %w", c.Name, ErrName)
	}
	if c.Hosts < 1 || c.Hosts > 200 {
		return c, fmt.Errorf("a lab has 1 to 200 hosts, not %d", c.Hosts)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Wire == "" {
		c.Wire = WireVeth
	}
	if c.Family == "" {
		c.Family = IPv4
	}
	if c.Family != IPv4 && c.Family != IPv6 {
		return c, fmt.Errorf("unknown family %q: it is %s or %s", c.Family, IPv4, IPv6)
	}
	if c.Wire != WireVeth && c.Wire != WireCable {
		return c, fmt.Errorf("unknown wire %q: it is %s or %s", c.Wire, WireVeth, WireCable)
	}
	if c.Wire == WireCable && len(c.Helper) == 0 {
		return c, errors.New("a cable is a process: set Config.Helper, see BuildHelper")
	}
	return c, nil
}

func (l *Lab) build(ctx context.Context) error {
	if err := l.rec.write(); err != nil {
		return err
	}
	if err := l.startReaper(ctx); err != nil {
		return err
	}
	for _, name := range l.rec.Nodes {
		n, err := l.addNode(name)
		if err != nil {
			return err
		}
		l.nodes[name] = n
		if err := l.rec.Family.enable(n); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := l.connect(ctx); err != nil {
		return fmt.Errorf("underlay (after %s): %w", time.Since(start).Round(time.Millisecond), err)
	}
	return nil
}
