package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

var errInvalid = errors.New("not valid")

// A machine is the system that documents are applied to: everything below root.
// Below another root than "/" the running kernel is left alone.
type machine struct{ root string }

func (m machine) path(p string) string { return filepath.Join(m.root, p) }

// apply makes d true. It goes on after an error, so that one wrong setting doesn't
// take the others away, and returns all of them.
func (m machine) apply(d *vnet.Document, s *state) error {
	return errors.Join(m.setHostname(d.Hostname), m.setUser(d, s), m.setTimeZone(d.TimeZone), m.putFiles(d.Files))
}

// name is a host name as RFC 1123, section 2.1 has it. Linux takes 64 bytes of it.
var name = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

func isName(s string) bool { return len(s) <= 253 && name.MatchString(s) }

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

func (m machine) putFiles(files []vnet.File) error {
	var errs []error
	for _, f := range files {
		if err := m.putFile(f); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// putFile refuses what is not plainly one place: a path with "..", with a
// trailing slash, or relative; and modes beyond permissions (set-uid).
func (m machine) putFile(f vnet.File) error {
	mode := fs.FileMode(f.Mode)
	if mode == 0 {
		mode = 0o644
	}
	if !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path || f.Path == "/" || strings.ContainsRune(f.Path, 0) {
		return fmt.Errorf("file %q: %w path (want absolute, without '..')", f.Path, errInvalid)
	}
	if mode&^0o777 != 0 {
		return fmt.Errorf("file %s: mode %#o: %w (want permission bits)", f.Path, f.Mode, errInvalid)
	}
	return m.write(f.Path, mode, []byte(f.Content))
}

// write replaces a file in one step, so that a reader or a crash sees the old one
// or the new one. It makes the directories above it. The owner is root.
func (m machine) write(path string, mode fs.FileMode, content []byte) error {
	return m.put(path, mode, content, true)
}

// put is write; without sync a crash may leave the file empty. That is for what
// the next boot writes again anyhow: a guest's disk can take 10 ms for a sync.
func (m machine) put(path string, mode fs.FileMode, content []byte, sync bool) (err error) {
	full := m.path(path)
	if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, content) {
		return os.Chmod(full, mode)
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return fmt.Errorf("write /%s: %w", strings.TrimPrefix(path, "/"), err)
	}
	f, err := os.CreateTemp(filepath.Dir(full), ".replug-*")
	if err != nil {
		return fmt.Errorf("write /%s: %w", strings.TrimPrefix(path, "/"), err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write /%s: %w", strings.TrimPrefix(path, "/"), err)
		}
	}()
	_, err = f.Write(content)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), full)
}

// edit changes a file of lines; a missing one is empty.
func (m machine) edit(path string, mode fs.FileMode, change func([]string) []string) error {
	b, err := os.ReadFile(m.path(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read /%s: %w", path, err)
	}
	if info, err := os.Stat(m.path(path)); err == nil {
		mode = info.Mode().Perm()
	}
	var lines []string
	if t := strings.TrimRight(string(b), "\n"); t != "" {
		lines = strings.Split(t, "\n")
	}
	return m.write(path, mode, []byte(strings.Join(change(lines), "\n")+"\n"))
}
