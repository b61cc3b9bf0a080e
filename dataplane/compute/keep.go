package compute

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"replug/directory/vnet"
)

// imageOf returns what the machine is made of: as its record has it (kept) from its
// first start on, whatever the image's name means by now. Another kernel would not
// find its modules on the root disk, and no image its command line.
func (q *QEMU) imageOf(m *vnet.Machine) (im image, kept bool, err error) {
	if r, err := readRecord(q.dir(m.ID)); err == nil && r.Image != nil {
		return *r.Image, true, nil
	}
	im, err = openImage(q.c.Images, m.Image)
	return im, false, err
}

// keep puts the files that boot a machine into its directory, where they stay when
// the image is replaced or removed. The disk is too large for that: an overlay names
// its file.
func (im *image) keep(dir string) error {
	for name, at := range map[string]*string{"vmlinuz": &im.Kernel, "initrd.img": &im.Initrd} {
		if *at == "" {
			continue
		}
		file := filepath.Join(dir, name)
		if err := linkOrCopy(*at, file); err != nil {
			return fmt.Errorf("keep %s of the image: %w", name, full(err))
		}
		*at = file
	}
	return nil
}

// linkOrCopy gives a file another name; where that can't be, as in another file
// system, it copies it.
func linkOrCopy(from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	next := to + ".new"
	defer os.Remove(next)
	out, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(next, to)
}
