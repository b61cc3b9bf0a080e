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

const netnsDir = "/run/netns" // where iproute2 looks

func netnsName(lab, node string) string { return "rp-" + lab + "-" + node }

func netnsPath(lab, node string) string { return filepath.Join(netnsDir, netnsName(lab, node)) }

// labOfNetns takes "rp-<lab>-<node>" apart.
func labOfNetns(name string) (lab string, ok bool) {
	rest, ok := strings.CutPrefix(name, "rp-")
	lab, _, dash := strings.Cut(rest, "-")
	return lab, ok && dash && nameForm.MatchString(lab)
}

// createNetns makes a named namespace, as `ip netns add` does.
func createNetns(lab, node string) error {
	path := netnsPath(lab, node)
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", netnsDir, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("make namespace: %w", err)
	}
	f.Close()
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
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
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
