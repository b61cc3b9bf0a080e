package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// A machine is the system that documents are applied to. Below another root than
// "/" the running kernel is left alone.
type machine struct {
	files
	names *resolvConf
}

func newMachine(root string) machine {
	f := files{root}
	return machine{f, &resolvConf{files: f}}
}

// apply makes d true. It goes on after an error, so that one wrong setting doesn't
// take the others away, and returns all of them.
func (m machine) apply(d *vnet.Document, s *state) error {
	return errors.Join(m.wake(d.Woken), m.setDNS(d, s), m.again(d, s))
}

// again is apply for a document that was applied before: a disk may have grown, or
// come, while the machine was off. What the owner may have changed since is done once.
func (m machine) again(d *vnet.Document, s *state) error {
	on, err := m.setDisks(d) // first: they would hide what is below their paths
	return errors.Join(err,
		s.once("host name", rootDisk, d.Hostname, func() error { return m.setHostname(d.Hostname) }),
		m.setUser(d, s, on),
		s.once("time zone", rootDisk, d.TimeZone, func() error { return m.setTimeZone(d.TimeZone) }),
		m.putFiles(d.Files, s, on),
		m.keep("etc")) // may be another disk than the state's, which says what was applied
}

// command is a line of the shell in a session of its own, so that its end takes all it started.
func (m machine) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	cmd.Dir, cmd.Env = "/", append(clientEnv(), "HOME=/root")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	return cmd
}

func (m machine) setHostname(h string) error {
	if h == "" {
		return nil
	}
	if !isName(h) || len(h) > 64 {
		return fmt.Errorf("host name %q: %w", h, errInvalid)
	}
	if m.root == "/" {
		if err := unix.Sethostname([]byte(h)); err != nil {
			return fmt.Errorf("set host name %s: %w", h, err)
		}
	}
	if err := m.write("etc/hostname", 0o644, []byte(h+"\n")); err != nil {
		return fmt.Errorf("set host name %s: %w", h, err)
	}
	return m.edit("etc/hosts", 0o644, func(lines []string) []string {
		short, _, _ := strings.Cut(h, ".")
		own := "127.0.1.1\t" + h
		if short != h {
			own += " " + short
		}
		for i, l := range lines {
			if f := strings.Fields(l); len(f) > 0 && f[0] == "127.0.1.1" {
				lines[i] = own
				return lines
			}
		}
		return append(lines, own)
	})
}

func (m machine) uuid() string {
	b, _ := os.ReadFile(m.path("sys/class/dmi/id/product_uuid"))
	return strings.ToLower(strings.TrimSpace(string(b)))
}

// hostname is the machine's own view of its name.
func (m machine) hostname() string {
	if m.root == "/" {
		h, _ := os.Hostname()
		return h
	}
	b, _ := os.ReadFile(m.path("etc/hostname"))
	return strings.TrimSpace(string(b))
}

func (m machine) setTimeZone(tz string) error {
	if tz == "" {
		return nil
	}
	file := filepath.Join("usr/share/zoneinfo", tz)
	if !filepath.IsLocal(tz) || filepath.Clean(tz) != tz || strings.ContainsAny(tz, "\n\x00") {
		return fmt.Errorf("time zone %q: %w", tz, errInvalid)
	}
	if info, err := os.Stat(m.path(file)); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("time zone %s is not in this image (no /%s)", tz, file)
	}
	next := m.path("etc/.localtime.replug")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set time zone: %w", err)
	}
	if err := os.Symlink("/"+file, next); err != nil {
		return fmt.Errorf("set time zone: %w", err)
	}
	if err := os.Rename(next, m.path("etc/localtime")); err != nil {
		return fmt.Errorf("set time zone: %w", err)
	}
	return m.write("etc/timezone", 0o644, []byte(tz+"\n"))
}
