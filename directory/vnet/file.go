package vnet

import (
	"fmt"
	"path"
	"strings"
)

// A File is written by the guest agent as root.
type File struct {
	Path    string `json:"path"` // absolute
	Mode    uint32 `json:"mode"` // permission bits, 0 means 0644
	Content string `json:"content"`
}

// Check returns [ErrFile] for a file that a guest must not write: one whose path is not
// plainly one place, on Linux and on Windows, or whose mode is more than permissions.
// Whoever takes a document asks it, and the guest again.
func (f *File) Check() error {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || strings.ContainsAny(f.Path, "\x00\\:") {
		return fmt.Errorf("%q: %w path: give an absolute one without '..', a slash at its end, ':' or '\\', as in /etc/motd", f.Path, ErrFile)
	}
	if f.Mode&^0o777 != 0 {
		return fmt.Errorf("%s: %w mode %#o: give permission bits, 0 to 0777; set others by a command to run once", f.Path, ErrFile, f.Mode)
	}
	return nil
}
