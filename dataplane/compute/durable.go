package compute

import (
	"errors"
	"os"
)

// Files that a machine goes on from must outlive a host that loses its power.

// replace writes a file in one step: after a crash it is the old one or the new one,
// whole. Which of them, [syncDir] decides.
func replace(file string, b []byte) error {
	next := file + ".new"
	if err := os.WriteFile(next, append(b, '\n'), 0o600); err != nil {
		os.Remove(next)
		return full(err)
	}
	return settle(next, file)
}

// settle gives a file that is complete its name. Without the sync the name may be on
// the disk before the content.
func settle(next, file string) error {
	if err := flush(next); err != nil {
		return full(err)
	}
	return os.Rename(next, file)
}

// syncDir returns when files that got a name in a directory have it, and those that
// were removed from it are gone, whatever happens to the host.
func syncDir(dir string) error { return flush(dir) }

func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
