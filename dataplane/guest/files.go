package guest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"replug/directory/vnet"
)

var errInvalid = errors.New("not valid")

// files is everything below root.
type files struct{ root string }

func (m files) path(p string) string { return filepath.Join(m.root, p) }

// name is a host name as RFC 1123, section 2.1 has it. Linux takes 64 bytes of it.
var name = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// login is what useradd of the common systems takes.
var login = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

func isName(s string) bool { return len(s) <= 253 && name.MatchString(s) }

// mounts are the disks of a document by their paths, in whose order they are mounted: a
// word that tells each from others, or awayDisk.
type mounts map[string]string

const (
	rootDisk = ""
	awayDisk = "away" // or could not be mounted
)

// of returns the disk that path is on.
func (m mounts) of(path string) string {
	for path = filepath.Clean(path); ; path = filepath.Dir(path) {
		if disk, ok := m[path]; ok {
			return disk
		}
		if path == filepath.Dir(path) {
			return rootDisk
		}
	}
}

func (m files) putFiles(files []vnet.File, s *state, on mounts) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, s.once("file "+f.Path, on.of(f.Path), f, func() error { return m.putFile(f) }))
	}
	return errors.Join(errs...)
}

func (m files) putFile(f vnet.File) error {
	if err := f.Check(); err != nil {
		return fmt.Errorf("file %w", err)
	}
	if err := m.write(f.Path, fs.FileMode(cmp.Or(f.Mode, 0o644)), []byte(f.Content)); err != nil {
		return err
	}
	return m.keep(filepath.Dir(f.Path))
}

// keep has what was written into a directory outlast a loss of power: a file that took
// another one's place has its own content on the disk before, not its name.
func (m files) keep(dir string) error {
	if err := syncDir(m.path(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write /%s: %w", strings.TrimPrefix(dir, "/"), err)
	}
	return nil
}

// write replaces a file in one step, so that a reader or a crash sees the old one
// or the new one; which one a crash sees is known after keep. It makes the directories above it. The owner is root.
func (m files) write(path string, mode fs.FileMode, content []byte) error {
	return m.put(path, content, true, func(file string) error { return os.Chmod(file, mode) })
}

// put is write, where dress gives the file its mode; without sync a crash may leave it
// empty. That is for what the next boot writes again anyhow: a guest's disk can take
// 10 ms for a sync.
func (m files) put(path string, content []byte, sync bool, dress func(file string) error) (err error) {
	full := m.path(path)
	if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, content) {
		return dress(full)
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
	err = errors.Join(err, dress(f.Name()))
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), full)
}

func join(addrs []netip.Addr, between string) string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return strings.Join(all, between)
}
