package compute

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// An image is a directory of the repository. Without a kernel its disk boots. The
// machines made of it have it in their records.
type image struct {
	Kernel      string           `json:"kernel,omitempty"` // files; "" if there is none
	Initrd      string           `json:"initrd,omitempty"`
	Disk        string           `json:"disk,omitempty"`
	Cmdline     string           `json:"cmdline,omitempty"`
	Personality vnet.Personality `json:"-"` // a machine has its own
}

// about is image.json: what can't be told by looking.
type about struct {
	Personality vnet.Personality `json:"personality"`
}

// read takes what image.json says, if there is one. It is strict: a guest that is
// taken for another kind waits for ever.
func (a *about) read(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(a)
	}
	if err == nil {
		_, err = vnet.ParsePersonality(string(a.Personality))
	}
	if err != nil {
		return fmt.Errorf("image.json: %w", err)
	}
	return nil
}

// openImage finds an image. Links are resolved: an overlay stays on the file that
// it was made of when the name goes to a newer one.
func openImage(repository, name string) (image, error) {
	var im image
	dir, err := filepath.EvalSymlinks(filepath.Join(repository, name))
	if err != nil {
		return im, fmt.Errorf("image %s: %w: %w (put it into %s)", name, ErrNoImage, err, repository)
	}
	for file, at := range map[string]*string{"vmlinuz": &im.Kernel, "initrd.img": &im.Initrd, "disk.qcow2": &im.Disk} {
		path, err := filepath.EvalSymlinks(filepath.Join(dir, file))
		switch {
		case err == nil:
			*at = path
		case !errors.Is(err, fs.ErrNotExist):
			return im, fmt.Errorf("image %s: %w: %w", name, ErrNoImage, err)
		}
	}
	if im.Kernel == "" && im.Disk == "" {
		return im, fmt.Errorf("image %s: %w: it has neither vmlinuz nor disk.qcow2 in %s", name, ErrNoImage, dir)
	}
	b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return im, fmt.Errorf("image %s: %w: %w", name, ErrNoImage, err)
	}
	im.Cmdline = strings.TrimSpace(string(b))
	var a about
	if err := a.read(dir); err != nil {
		return im, fmt.Errorf("image %s: %w: %w", name, ErrNoImage, err)
	}
	im.Personality = a.Personality
	return im, nil
}

// An Image is one of the repository's, as the host offers it.
type Image struct {
	Name        string
	Personality vnet.Personality
}

// Images lists the repository. An image that can't be used is left out, and why
// is in the log.
func (q *QEMU) Images() ([]Image, error) {
	entries, err := os.ReadDir(q.c.Images)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var all []Image
	for _, e := range entries {
		if !word.MatchString(e.Name()) {
			continue
		}
		im, err := openImage(q.c.Images, e.Name())
		if err != nil {
			q.c.Log.Warn("image is not offered", "image", e.Name(), "why", err)
			continue
		}
		all = append(all, Image{Name: e.Name(), Personality: im.Personality})
	}
	return all, nil
}

// disks is what a machine's drives are: the OS disk, if any, then the data disks.
func disks(m *vnet.Machine, im image) []vnet.Disk {
	var first *vnet.Disk
	var rest []vnet.Disk
	for _, d := range m.Disks {
		if d.OS {
			first = &d
		} else {
			rest = append(rest, d)
		}
	}
	if first == nil && im.Disk != "" {
		first = &vnet.Disk{ID: "os", OS: true}
	}
	if first == nil || im.Disk == "" && first.Size == 0 {
		return rest
	}
	return append([]vnet.Disk{*first}, rest...)
}

func diskFile(dir string, d vnet.Disk) string {
	if d.OS {
		return filepath.Join(dir, "os.qcow2")
	}
	return filepath.Join(dir, "data-"+d.ID+".qcow2")
}

// makeDisks makes the disks that are not there yet. Each appears whole or not at all.
func (q *QEMU) makeDisks(ctx context.Context, dir string, m *vnet.Machine, im image) error {
	for _, d := range disks(m, im) {
		file := diskFile(dir, d)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if err := q.room(dir); err != nil {
			return fmt.Errorf("make disk %s: %w", d.ID, err)
		}
		if err := q.makeDisk(ctx, file, d, im); err != nil {
			return fmt.Errorf("make disk %s: %w", d.ID, err)
		}
	}
	return nil
}

func (q *QEMU) room(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return err
	}
	if free := int64(s.Bavail) * s.Bsize; free < q.c.MinFree {
		return fmt.Errorf("%w: %d MiB free in %s, want %d (delete machines, or give it another disk)", ErrDiskFull, free>>20, dir, q.c.MinFree>>20)
	}
	return nil
}

func (q *QEMU) makeDisk(ctx context.Context, file string, d vnet.Disk, im image) error {
	args := []string{"create", "-q", "-f", "qcow2"}
	if d.OS && im.Disk != "" {
		if err := q.fits(ctx, d, im); err != nil {
			return err
		}
		args = append(args, "-F", "qcow2", "-b", im.Disk)
	}
	next := file + ".new"
	defer os.Remove(next)
	args = append(args, next)
	if d.Size > 0 {
		args = append(args, strconv.FormatInt(d.Size, 10))
	}
	if _, err := q.img(ctx, args...); err != nil {
		return err
	}
	return settle(next, file)
}

// fits refuses an OS disk smaller than its image: the guest would lose its end.
func (q *QEMU) fits(ctx context.Context, d vnet.Disk, im image) error {
	out, err := q.img(ctx, "info", "--output=json", "-f", "qcow2", im.Disk)
	if err != nil {
		return err
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return fmt.Errorf("qemu-img info: %w", err)
	}
	if d.Size > 0 && d.Size < info.Size {
		return fmt.Errorf("%w: %d bytes, and its image has %d", ErrSpec, d.Size, info.Size)
	}
	return nil
}

// img runs qemu-img.
func (q *QEMU) img(ctx context.Context, args ...string) ([]byte, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, q.c.QemuImg, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("qemu-img %s: %w", args[0], ctx.Err())
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w (install qemu-utils)", ErrNoQEMU, err)
	case strings.Contains(said.String(), "No space left"):
		err = ErrDiskFull
	}
	return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
}
