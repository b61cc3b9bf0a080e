package tapguest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"replug/tests/lab/space"
)

// A Room is the guest's file system: a directory that looks like a small
// machine's root. What the guest's programs change (users, hostname, time zone)
// they change there; the machine's own files and name stay as they are.
type Room struct {
	Root   string            // directory of the guest
	Shared map[string]string // path below Root -> directory or file that all guests share
	Name   string            // hostname at first

	// Tree is a system's whole file system, laid below what the guest writes, which
	// goes to Scratch. Its /sys is read-only, as in a container: programs then expect
	// no udev. "": Root holds what the guest has.
	Tree, Scratch string
}

// lay mounts the tree at the root.
func (r *Room) lay() error {
	if r.Tree == "" {
		return nil
	}
	upper, work := filepath.Join(r.Scratch, "upper"), filepath.Join(r.Scratch, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("overlay", r.Root, "overlay", 0, "lowerdir="+r.Tree+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("lay %s below the room: %w", r.Tree, err)
	}
	return nil
}

// enter mounts the room. The process must have a mount and a UTS namespace of
// its own; what is mounted goes with it.
func (r *Room) enter(netns string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := r.lay(); err != nil {
		return err
	}
	for below, from := range r.Shared {
		if err := unix.Mount(from, filepath.Join(r.Root, below), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("share %s as %s: %w", from, below, err)
		}
	}
	if err := unix.Mount("proc", filepath.Join(r.Root, "proc"), "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	// A sysfs shows the devices of the namespace in which it is mounted.
	err := space.Do(netns, func() error {
		var flags uintptr
		if r.Tree != "" {
			flags = unix.MS_RDONLY
		}
		return unix.Mount("sys", filepath.Join(r.Root, "sys"), "sysfs", flags, "")
	})
	if err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	if err := unix.Sethostname([]byte(r.Name)); err != nil {
		return fmt.Errorf("set the room's hostname: %w", err)
	}
	return nil
}

// Enter replaces this process by a program inside the room that process pid
// keeps: its mounts, its hostname, its root. Args: PID ROOT PROGRAM ARGUMENT...; a
// program without a slash is one of /bin.
// The network namespace is not changed.
func Enter(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: enter PID ROOT PROGRAM [ARGUMENT...]")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("enter: pid: %w", err)
	}
	runtime.LockOSThread()
	keeper, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("enter: the guest's process %d: %w", pid, err)
	}
	// Only a thread that shares its root with no other may change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	if err := unix.Setns(keeper, unix.CLONE_NEWNS|unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("enter the room of %d: %w", pid, err)
	}
	if err := unix.Chroot(args[1]); err != nil {
		return fmt.Errorf("enter %s: %w", args[1], err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter %s: %w", args[1], err)
	}
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb"}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "REPLUG_") {
			env = append(env, e)
		}
	}
	program := args[2]
	if !strings.Contains(program, "/") {
		program = "/bin/" + program
	}
	if err := unix.Exec(program, args[2:], env); err != nil {
		return fmt.Errorf("run %s in the room: %w", program, err)
	}
	return nil
}
