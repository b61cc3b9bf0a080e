// Package space lets Go code work inside a network namespace for a moment.
package space

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Do runs f on a thread that is in the namespace. Goroutines that f starts
// are not; sockets that f opens are, for good.
func Do(path string, f func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", filepath.Base(path), err)
	}
	defer ns.Close()
	return OnThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", filepath.Base(path), err)
		}
		return f()
	})
}

// OnThread runs f, which may change the thread's network namespace, and puts
// the thread back. A thread that can't be put back dies with its goroutine.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("find my namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if back := netns.Set(home); back != nil {
			done <- errors.Join(err, fmt.Errorf("leave the namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Sysfs runs f where /sys shows the devices of the namespace: a named network
// namespace alone doesn't change what is mounted there. F's thread has its own
// mounts and ends with it.
func Sysfs(path string, f func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", filepath.Base(path), err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- sysfs(ns, f)
	}()
	return <-done
}

func sysfs(ns netns.NsHandle, f func() error) error {
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter the namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("sys", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return f()
}
