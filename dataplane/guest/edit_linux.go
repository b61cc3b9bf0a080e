package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// syncDir has the disk take what was put into a directory.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// edit changes a file of lines, whose owner, group and mode stay: Debian's programs for
// passwords read /etc/shadow by its group. A missing one is empty, and root's.
func (m files) edit(path string, mode fs.FileMode, change func([]string) []string) error {
	b, err := os.ReadFile(m.path(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read /%s: %w", path, err)
	}
	var of syscall.Stat_t
	if info, err := os.Stat(m.path(path)); err == nil {
		mode, of = info.Mode().Perm(), *info.Sys().(*syscall.Stat_t)
	}
	var lines []string
	if t := strings.TrimRight(string(b), "\n"); t != "" {
		lines = strings.Split(t, "\n")
	}
	return m.put(path, []byte(strings.Join(change(lines), "\n")+"\n"), true, func(file string) error {
		return errors.Join(os.Chown(file, int(of.Uid), int(of.Gid)), os.Chmod(file, mode))
	})
}
