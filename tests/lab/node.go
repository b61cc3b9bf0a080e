package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"replug/tests/lab/space"
)

// A Node is one network namespace of a lab: a host, the server, the router, or
// a cheap guest.
type Node struct {
	Name string // short: r, s, h1, g-web
	lab  *Lab
}

// NetNS returns the path of the namespace, as setns and `ip netns` want it.
func (n *Node) NetNS() string { return netnsPath(n.lab.rec.Name, n.Name) }

// Dir returns the node's directory for files, sockets and logs. It goes with
// the lab.
func (n *Node) Dir() string { return filepath.Join(n.lab.Dir(), n.Name) }

// Lab returns the lab that the node belongs to.
func (n *Node) Lab() *Lab { return n.lab }

// Do runs f on a thread inside the namespace. Goroutines that f starts run
// outside; sockets that f opens stay inside.
func (n *Node) Do(f func() error) error { return space.Do(n.NetNS(), f) }

// Netlink runs f with a netlink handle of the namespace.
func (n *Node) Netlink(f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(n.NetNS())
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", n.Name, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", n.Name, err)
	}
	defer h.Close()
	return f(h)
}

// Run runs a command inside the namespace and returns what it prints. Its
// error holds the end of what the command said. When ctx ends, it is killed.
func (n *Node) Run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = n.environ(nil)
	killGroup(cmd)
	var out bytes.Buffer
	both := &said{}
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, both), both
	if err := n.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("run %s in %s: %w", args[0], n.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("%s in %s: %w: %s", strings.Join(args, " "), n.Name, err, tail(both.all.Bytes()))
	}
	return out.Bytes(), nil
}

// Listens waits until a program in the namespace listens on a TCP port.
func (n *Node) Listens(ctx context.Context, port uint16) error {
	// proc_net_tcp(5): local address:port in hex, remote, state 0A for listening.
	suffix := fmt.Sprintf(":%04X", port)
	return Until(ctx, fmt.Sprintf("a listener on port %d in %s", port, n.Name), func() error {
		return n.Do(func() error {
			for _, table := range []string{"tcp", "tcp6"} {
				b, _ := os.ReadFile("/proc/thread-self/net/" + table)
				for line := range strings.Lines(string(b)) {
					f := strings.Fields(line)
					if len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == "0A" {
						return nil
					}
				}
			}
			return errors.New("nobody listens")
		})
	})
}

// sysctl writes "path/below/net=value" inside the namespace.
func (n *Node) sysctl(setting string) error {
	key, value, _ := strings.Cut(setting, "=")
	return n.Do(func() error {
		// The kernel shows the writing thread's namespace here.
		err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0)
		if os.IsNotExist(err) && strings.HasPrefix(key, "ipv6/") {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("set net/%s in %s: %w", key, n.Name, err)
		}
		return nil
	})
}

func (n *Node) environ(extra []string) []string {
	return append(append(os.Environ(), markLab+n.lab.rec.Name, "REPLUG_NODE="+n.Name), extra...)
}

// said takes what a program prints by both ways, which are copied at once.
type said struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(p)
}

// tail returns the end of a program's output, on one line.
func tail(b []byte) string {
	const most = 600
	s := strings.TrimSpace(string(b))
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return strings.ReplaceAll(s, "\n", " | ")
}
