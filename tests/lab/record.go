package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Short names of the namespaces that every lab has, and the server's subnet.
const (
	routerName   = "r"
	serverName   = "s"
	serverSubnet = 250
)

func hostName(n int) string { return fmt.Sprintf("h%d", n) }

// A record is what a lab writes down about itself before it makes anything.
type record struct {
	Name     string   `json:"name"`
	Hosts    int      `json:"hosts"`
	MTU      int      `json:"mtu"`
	Wire     Wire     `json:"wire"`
	Family   Family   `json:"family"`
	Threaded bool     `json:"threaded,omitempty"`
	Nodes    []string `json:"nodes"` // short names of namespaces; guests come and go, and aren't listed
	Helper   []string `json:"helper,omitempty"`
	Detached bool     `json:"detached,omitempty"`
	Owner    pidRef   `json:"owner"`
	Boot     string   `json:"boot"` // the machine's boot id: /run may outlive a reboot
}

func newRecord(c Config) record {
	nodes := []string{routerName, serverName}
	for n := 1; n <= c.Hosts; n++ {
		nodes = append(nodes, hostName(n))
	}
	self, _ := refer(os.Getpid())
	return record{
		Name: c.Name, Hosts: c.Hosts, MTU: c.MTU, Wire: c.Wire, Family: c.Family, Threaded: c.Threaded, Nodes: nodes,
		Helper: c.Helper, Detached: c.Detached, Owner: self, Boot: bootID(),
	}
}

// alive reports whether somebody still wants the lab.
func (r *record) alive() bool {
	if r.Boot != bootID() {
		return false
	}
	return r.Detached || r.Owner.alive()
}

func (r *record) write() error {
	return writeJSON(filepath.Join(Root, r.Name, "lab.json"), r)
}

func readRecord(name string) (record, error) {
	var r record
	if !nameForm.MatchString(name) {
		return r, fmt.Errorf("%q: %w", name, ErrName)
	}
	b, err := os.ReadFile(filepath.Join(Root, name, "lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("lab %s: %w (up: %s)", name, ErrNotUp, strings.Join(Names(), " "))
	}
	if err != nil {
		return r, fmt.Errorf("read the lab's record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("lab %s: its record is broken (%w): take it down", name, err)
	}
	return r, nil
}

// Names returns the labs that have a state directory, a namespace, or a process
// that says so in its environment, in order.
func Names() []string {
	var names []string
	dirs, _ := os.ReadDir(Root)
	for _, d := range dirs {
		if d.IsDir() && nameForm.MatchString(d.Name()) {
			names = append(names, d.Name())
		}
	}
	spaces, _ := filepath.Glob(netnsPath("*", "*"))
	for _, s := range spaces {
		if lab, ok := labOfNetns(filepath.Base(s)); ok {
			names = append(names, lab)
		}
	}
	for _, pid := range pids() {
		if lab, ok := envOf(pid, markLab); ok && !ancestors()[pid] && nameForm.MatchString(lab) {
			names = append(names, lab)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// clearStale makes room for a new lab of that name.
func clearStale(ctx context.Context, name string) error {
	rec, err := readRecord(name)
	if err == nil && rec.alive() {
		return fmt.Errorf("lab %s (owner pid %d): %w: take it down with `replug lab down --name %s`", name, rec.Owner.PID, ErrIsUp, name)
	}
	return takeDown(ctx, name)
}

// lockName keeps Up and Down of one lab apart, across processes. The lock is an
// abstract socket's name: it leaves no file and ends with its process.
func lockName(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l, err := net.Listen("unix", "@replug-lab-"+name)
		if err == nil {
			return func() { l.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock lab %s: %w", name, err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for another process to finish with lab %s: %w", name, err)
		}
	}
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return os.Rename(tmp, path)
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}
