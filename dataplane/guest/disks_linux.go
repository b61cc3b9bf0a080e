package guest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// setDisks formats data disks that are blank, grows those with a smaller ext4 than
// they have room for, and mounts them, the outer ones first. Repeating it changes nothing.
func (m machine) setDisks(d *vnet.Document) (on mounts, err error) {
	on = mounts{}
	byPath := func(a, b vnet.DataDisk) int { return strings.Compare(a.Path, b.Path) }
	var errs []error
	for _, x := range slices.SortedStableFunc(slices.Values(d.Disks), byPath) {
		disk, err := m.setDisk(d.Instance, x)
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", x.ID, err))
		}
		if x.Path != "" {
			on[x.Path] = disk
		}
	}
	return on, errors.Join(errs...)
}

// setDisk returns which disk is at the path now.
func (m machine) setDisk(instance string, x vnet.DataDisk) (disk string, err error) {
	if x.Path != "" && (!filepath.IsAbs(x.Path) || filepath.Clean(x.Path) != x.Path || x.Path == "/" || strings.ContainsAny(x.Path, " \t\r\n\\\x00")) {
		return awayDisk, fmt.Errorf("path %q: %w (want an absolute one without spaces)", x.Path, errInvalid)
	}
	dev, err := m.findDisk(x.ID, instance)
	if err != nil {
		return awayDisk, err
	}
	fs, err := m.look(dev)
	if err != nil {
		return awayDisk, err
	}
	if fs.blank {
		if fs, err = m.format(dev, x.Path); err != nil {
			return awayDisk, err
		}
	}
	if x.Path != "" {
		if err := m.mount(dev, x.Path, &fs); err != nil {
			return awayDisk, err
		}
	}
	return cmp.Or(fs.uuid, x.ID), m.grow(dev, &fs)
}

// format makes an ext4, whose root belongs to whom the image has given the directory
// that it is to be mounted at: a user's home, or a database's.
func (m machine) format(dev, path string) (fs filesystem, err error) {
	args := []string{"-q", "-F", "-m", "1"}
	var at unix.Stat_t
	there := path != "" && unix.Stat(m.path(path), &at) == nil
	if there {
		args = append(args, "-E", fmt.Sprintf("root_owner=%d:%d", at.Uid, at.Gid))
	}
	if err := m.tool("mkfs.ext4", append(args, dev)...); err != nil {
		return fs, err
	}
	if fs, err = m.look(dev); there {
		fs.mode = at.Mode & 0o7777
	}
	return fs, err
}

// findDisk finds the disk whose serial number is the id, or that of the VM's disk of
// this number. A virtio disk keeps 20 bytes of it.
func (m machine) findDisk(id, instance string) (string, error) {
	if id == "" {
		return "", fmt.Errorf("no id: %w", errInvalid)
	}
	blocks, _ := filepath.Glob(m.path("sys/block/*")) // the pattern is well formed
	for _, dir := range blocks {
		for _, at := range []string{"serial", "device/serial"} {
			b, err := os.ReadFile(filepath.Join(dir, at))
			serial := strings.TrimSpace(string(b))
			if err == nil && (serial == fmt.Sprintf("%.20s", id) || instance != "" && serial == fmt.Sprintf("%.20s", instance+"-"+id)) {
				return m.path("dev/" + filepath.Base(dir)), nil
			}
		}
	}
	return "", errors.New("is not in this machine: is it attached?")
}

// A filesystem is what is found on a disk.
type filesystem struct {
	blank bool  // nothing but zeros where anything would begin or end
	ext4  bool  // or an older one of its family
	size  int64 // bytes that the file system uses, of ext4
	disk  int64 // bytes that the disk has
	uuid  string
	mode  uint32 // that its root is to have; 0: as it is
}

// look reads what is on a disk. Blank is only what has nothing at all where
// partition tables, file systems, volume managers and RAID keep their marks: its
// first and its last mebibyte. Anything else is somebody's data.
func (m machine) look(dev string) (filesystem, error) {
	var fs filesystem
	f, err := os.Open(dev)
	if err != nil {
		return fs, err
	}
	defer f.Close()
	const edge = 1 << 20
	if fs.disk, err = f.Seek(0, io.SeekEnd); err != nil {
		return fs, err
	}
	if fs.disk < 4*edge {
		return fs, fmt.Errorf("has %d bytes, too few for a file system", fs.disk)
	}
	head, last := make([]byte, edge), make([]byte, edge)
	if _, err := f.ReadAt(head, 0); err != nil {
		return fs, err
	}
	if _, err := f.ReadAt(last, fs.disk-edge); err != nil {
		return fs, err
	}
	parts, _ := filepath.Glob(m.path("sys/block/" + filepath.Base(dev) + "/" + filepath.Base(dev) + "*"))
	fs.blank = len(parts) == 0 && allZero(head) && allZero(last)
	// The superblock: Documentation/filesystems/ext4/super.rst.
	super := head[1024:2048]
	if binary.LittleEndian.Uint16(super[56:]) == 0xef53 {
		blocks := uint64(binary.LittleEndian.Uint32(super[4:]))
		if binary.LittleEndian.Uint32(super[96:])&0x80 != 0 { // INCOMPAT_64BIT
			blocks |= uint64(binary.LittleEndian.Uint32(super[336:])) << 32
		}
		u := super[104:120]
		fs.ext4, fs.size = true, int64(blocks<<(10+binary.LittleEndian.Uint32(super[24:])))
		fs.uuid = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	}
	return fs, nil
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// mount mounts the file system now and at each boot. What is mounted there stays.
func (m machine) mount(dev, path string, fs *filesystem) error {
	what := dev
	if fs.uuid != "" {
		what = "UUID=" + fs.uuid
	}
	if err := os.MkdirAll(m.path(path), 0o755); err != nil {
		return err
	}
	err := m.edit("etc/fstab", 0o644, func(lines []string) []string {
		var kept []string
		for _, l := range lines {
			if f := strings.Fields(l); len(f) < 2 || f[1] != path || strings.HasPrefix(l, "#") {
				kept = append(kept, l)
			}
		}
		return append(kept, what+"\t"+path+"\tauto\tdefaults,nofail\t0\t2")
	})
	if err != nil || m.root != "/" || mounted(path) {
		return err
	}
	if !fs.ext4 {
		return m.tool("mount", dev, path)
	}
	err = whenFree(toolTime, func() error { return unix.Mount(dev, path, "ext4", 0, "") }, func() bool { return mounted(path) })
	if err == nil && fs.mode != 0 {
		err = unix.Chmod(path, fs.mode)
	}
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", dev, path, err)
	}
	return nil
}

// whenFree mounts a disk that something may have for itself just now: the boot goes on
// beside the check of a disk that it needs not wait for, and mounts it then. No event
// tells that a device held exclusively has been let go.
func whenFree(in time.Duration, mount func() error, there func() bool) error {
	for end := time.Now().Add(in); ; time.Sleep(100 * time.Millisecond) {
		err := mount()
		switch {
		case err != nil && there():
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(end):
			return err
		}
	}
}

// mounted reports whether something is mounted at path.
func mounted(path string) bool {
	b, _ := os.ReadFile("/proc/self/mounts") // none: nothing is mounted
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 1 && f[1] == path {
			return true
		}
	}
	return false
}

// inUse reports whether the disk is mounted, at its path or where else its owner wants it.
func inUse(dev string) bool {
	var s unix.Stat_t
	if err := unix.Stat(dev, &s); err != nil {
		return false // whatever wants it next says why
	}
	id := fmt.Sprintf("%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
	b, _ := os.ReadFile("/proc/self/mountinfo") // none: nothing is mounted
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 2 && f[2] == id {
			return true
		}
	}
	return false
}

// grow lets an ext4 use what its disk has gained: at least 1 %, since mkfs leaves
// the rest of a block group unused. Mounted, by whomever, it grows in place; otherwise
// resize2fs wants it checked first.
func (m machine) grow(dev string, fs *filesystem) error {
	if !fs.ext4 || fs.disk-fs.size < fs.size/100 {
		return nil
	}
	if m.root != "/" || !inUse(dev) {
		if err := m.tool("e2fsck", "-f", "-p", dev); err != nil {
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() > 1 { // 1: it has repaired something
				return err
			}
		}
	}
	return m.tool("resize2fs", dev)
}

// toolTime is what a program may take on a large disk.
const toolTime = 5 * time.Minute

// tool runs a program for disks.
func (m machine) tool(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = clientEnv()
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%s is not in this image (install e2fsprogs): %w", name, err)
	case err != nil:
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}
