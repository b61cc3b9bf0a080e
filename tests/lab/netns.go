package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"replug/tests/lab/space"
)

// Namespaces are mounted in a directory of the lab's own, and iproute2 finds them
// by a link. Mounted in iproute2's directory they could get stuck: the first
// `ip netns add` on a machine mounts that directory over itself, and hides them.
const (
	netnsDir = "/run/replug/netns"
	linksDir = "/run/netns"
)

func netnsName(lab, node string) string { return "rp-" + lab + "-" + node }

func netnsPath(lab, node string) string { return filepath.Join(netnsDir, netnsName(lab, node)) }

func linkOf(path string) string { return filepath.Join(linksDir, filepath.Base(path)) }

// labOfNetns takes "rp-<lab>-<node>" apart.
func labOfNetns(name string) (lab string, ok bool) {
	rest, ok := strings.CutPrefix(name, "rp-")
	lab, _, dash := strings.Cut(rest, "-")
	return lab, ok && dash && nameForm.MatchString(lab)
}

// createNetns makes a named namespace, which `ip netns exec` finds too.
func createNetns(lab, node string) error {
	path := netnsPath(lab, node)
	for _, dir := range []string{netnsDir, linksDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("make namespace: %w", err)
	}
	f.Close()
	if err := os.Symlink(path, linkOf(path)); err != nil {
		return errors.Join(fmt.Errorf("link namespace: %w", err), os.Remove(path))
	}
	return space.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace %s: %w", filepath.Base(path), err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "bind", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name namespace %s: %w", filepath.Base(path), err)
		}
		return nil
	})
}

// deleteNetns drops the name; the kernel frees the namespace when the last
// process in it is gone.
func deleteNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	for _, p := range []string{path, linkOf(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", p, err)
		}
	}
	return nil
}

// netnsInodes maps the inode of each namespace of the lab to its name.
func netnsInodes(lab string) map[uint64]string {
	paths, _ := filepath.Glob(netnsPath(lab, "*"))
	inodes := make(map[uint64]string, len(paths))
	for _, p := range paths {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			inodes[st.Ino] = filepath.Base(p)
		}
	}
	return inodes
}
