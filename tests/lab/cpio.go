package lab

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A cpioWriter writes the "newc" form that the kernel unpacks as its first file
// system, Documentation/driver-api/early-userspace/buffer-format. Owners are
// root and times are zero, so that equal trees make equal archives.
type cpioWriter struct {
	out   io.Writer
	inode int
	err   error
}

// File types of cpio(5) modes.
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioLink = 0o120000
)

func (w *cpioWriter) dir(name string) { w.entry(name, cpioDir|0o755, nil) }

func (w *cpioWriter) file(name string, mode fs.FileMode, content []byte) {
	w.entry(name, cpioFile|uint32(mode.Perm()), content)
}

func (w *cpioWriter) symlink(name, to string) { w.entry(name, cpioLink|0o777, []byte(to)) }

// tree adds a directory of this machine, in order of names.
func (w *cpioWriter) tree(prefix, dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		name := path.Join(prefix, rel)
		switch {
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(p)
			w.symlink(name, to)
			return err
		case d.IsDir():
			if name != "." {
				w.dir(name)
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(p)
		w.file(name, info.Mode(), content)
		return err
	})
}

// close writes the trailer and returns the first error of all.
func (w *cpioWriter) close() error {
	w.inode = 0
	w.entry("TRAILER!!!", 0, nil)
	return w.err
}

func (w *cpioWriter) entry(name string, mode uint32, content []byte) {
	if w.err != nil {
		return
	}
	w.inode++
	const magic, fields = "070701", 13
	var h strings.Builder
	h.WriteString(magic)
	links := 1
	for _, v := range [fields]int{w.inode, int(mode), 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		fmt.Fprintf(&h, "%08x", v)
	}
	h.WriteString(name)
	h.WriteByte(0)
	pad(&h, h.Len())
	body := slices.Concat([]byte(h.String()), content)
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	_, w.err = w.out.Write(body)
}

// pad fills up to a multiple of four.
func pad(h *strings.Builder, n int) {
	for ; n%4 != 0; n++ {
		h.WriteByte(0)
	}
}
