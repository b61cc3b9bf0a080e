package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long the lab's processes have after SIGTERM, and after SIGKILL.
const (
	termGrace = 3 * time.Second
	killGrace = 5 * time.Second
)

// takeDown removes processes, then mounts, then namespaces, then files: each
// would hold the next one.
func takeDown(ctx context.Context, name string) error {
	if err := killAll(ctx, name); err != nil {
		return err
	}
	var errs []error
	dir := filepath.Join(Root, name)
	mounts := mountsBelow(dir)
	slices.Reverse(mounts) // the inner ones first
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	spaces, _ := filepath.Glob(netnsPath(name, "*"))
	for _, path := range spaces {
		errs = append(errs, deleteNetns(path))
	}
	if len(mountsBelow(dir)) > 0 {
		// Deleting would reach into whatever is mounted there.
		return errors.Join(append(errs, fmt.Errorf("%s still has mounts: it stays", dir))...)
	}
	if err := os.RemoveAll(dir); err != nil {
		errs = append(errs, fmt.Errorf("remove state: %w", err))
	}
	return errors.Join(errs...)
}

// killAll ends the lab's processes, politely at first.
func killAll(ctx context.Context, name string) error {
	for _, step := range []struct {
		sig   unix.Signal
		grace time.Duration
	}{{unix.SIGTERM, termGrace}, {unix.SIGKILL, killGrace}} {
		deadline := time.Now().Add(step.grace)
		sent := map[pidRef]bool{}
		for {
			left := members(name)
			if len(left) == 0 {
				return nil
			}
			for _, m := range left {
				// New ones may have been forked since.
				if !sent[m.pidRef] {
					sent[m.pidRef] = true
					m.signal(step.sig)
				}
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				break
			}
			pause(ctx, 10*time.Millisecond)
		}
	}
	if left := members(name); len(left) > 0 {
		return fmt.Errorf("these processes of lab %s do not die: %v", name, left)
	}
	return nil
}

// A member is a process that belongs to a lab, and why that is known.
type member struct {
	pidRef
	why  string
	node string // "" if it is none's
}

// String says which process it is.
func (m member) String() string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.PID))
	args := strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
	if len(args) > 120 {
		args = args[:120] + "..."
	}
	return fmt.Sprintf("process %d (%s): %s", m.PID, m.why, args)
}

// members finds the living processes of a lab: by namespace, by environment
// and by record. This process and its ancestors are never among them.
func members(name string) []member {
	spaces := netnsInodes(name)
	recorded := map[pidRef]procRecord{}
	for _, r := range procRecords(name) {
		recorded[r.pidRef] = r
	}
	family := ancestors()
	var found []member
	for _, pid := range pids() {
		ref, err := refer(pid)
		if family[pid] || err != nil || !ref.alive() {
			continue
		}
		why, node := "", recorded[ref].Node
		if node != "" {
			why = "started as " + recorded[ref].Name
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && spaces[st.Ino] != "" {
			why = "in namespace " + spaces[st.Ino]
		}
		if lab, ok := envOf(pid, markLab); why == "" && ok && lab == name {
			why = "environment says " + markLab + name
		}
		if node == "" {
			node, _ = envOf(pid, "REPLUG_NODE=")
		}
		if why != "" {
			found = append(found, member{ref, why, node})
		}
	}
	return found
}

// envOf reads a variable, "NAME=", of another process's environment.
func envOf(pid int, name string) (string, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return "", false
	}
	for entry := range strings.SplitSeq(string(b), "\x00") {
		if value, ok := strings.CutPrefix(entry, name); ok {
			return value, true
		}
	}
	return "", false
}

// mountsBelow lists mount points at or below a directory, outer ones first.
func mountsBelow(dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		const mountPoint = 4 // proc(5), counted from 0
		if len(fields) <= mountPoint {
			continue
		}
		p := fields[mountPoint]
		if p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	return points
}
