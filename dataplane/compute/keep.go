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
// find its modules on the root disk, and no image its command line. So a record that
// can't be read is not taken for none.
func (q *QEMU) imageOf(m *vnet.Machine) (im image, kept bool, err error) {
	dir := q.dir(m.ID)
	r, err := readRecord(dir)
	if err == nil && r.Image != nil {
		return *r.Image, true, nil
	}
	if _, none := os.Stat(diskFile(dir, vnet.Disk{OS: true})); none == nil && err != nil && !errors.Is(err, fs.ErrNotExist) {
		return image{}, false, fmt.Errorf("%w: %w (if %s is still the image that it was made of, remove that file, and it is written anew; else delete the VM)",
			ErrRecord, err, filepath.Join(q.c.Images, m.Image))
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
	return settle(next, to)
}
