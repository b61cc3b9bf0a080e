package lab

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"replug/tests/lab/tapguest"
)

// guestFiles are the files that both kinds of guests have, and what only the
// machine's image has.
//
//go:embed guest
var guestFiles embed.FS

// guestZones are the time zones that a guest knows.
var guestZones = []string{"UTC", "Europe/Zurich", "America/New_York", "Asia/Tokyo"}

// guestDirs are the directories of a guest's own.
var guestDirs = []string{"etc", "root", "home", "tmp", "run", "var/lib", "proc", "sys", "dev"}

// makeRoom lays out the file system of a cheap guest. Programs and zones are
// shared by all guests of the lab; the rest is its own. With a tree all of it is that.
func (l *Lab) makeRoom(ctx context.Context, n *Node, hostname, tree string) (tapguest.Room, error) {
	if tree != "" {
		root := filepath.Join(n.Dir(), "root")
		return tapguest.Room{Root: root, Name: hostname, Tree: tree, Scratch: filepath.Join(n.Dir(), "scratch"),
			Shared: map[string]string{"dev": "/dev"}}, os.MkdirAll(root, 0o755)
	}
	shared := filepath.Join(l.Dir(), "room")
	root := filepath.Join(n.Dir(), "root")
	if err := l.makeShared(ctx, shared); err != nil {
		return tapguest.Room{}, fmt.Errorf("lay out what guests share: %w", err)
	}
	for _, d := range append([]string{"bin", "usr"}, guestDirs...) {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return tapguest.Room{}, err
		}
	}
	if err := writeEtc(root, hostname); err != nil {
		return tapguest.Room{}, err
	}
	return tapguest.Room{
		Root: root, Name: hostname,
		Shared: map[string]string{"bin": shared + "/bin", "usr": shared + "/usr", "dev": "/dev"},
	}, nil
}

// makeShared makes the shared part once, whole or not at all.
func (l *Lab) makeShared(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	draft, err := os.MkdirTemp(l.Dir(), "room-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(draft)
	if err := installBusybox(ctx, filepath.Join(draft, "bin")); err != nil {
		return err
	}
	if err := installZones(filepath.Join(draft, "usr/share/zoneinfo")); err != nil {
		return err
	}
	if err := os.Chmod(draft, 0o755); err != nil {
		return err
	}
	if err := os.Rename(draft, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// installBusybox copies the machine's busybox, which must be the static one,
// and links its names.
func installBusybox(ctx context.Context, bin string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox is missing: apt-get install busybox-static: %w", err)
	}
	if err := copyFile(filepath.Join(bin, "busybox"), path, 0o755); err != nil {
		return err
	}
	names, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox's names: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(names)); s.Scan(); {
		if err := os.Symlink("busybox", filepath.Join(bin, s.Text())); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// installZones copies the few zones from the machine, whose tzdata may keep
// some of them as links.
func installZones(dir string) error {
	for _, z := range guestZones {
		if err := copyFile(filepath.Join(dir, z), filepath.Join("/usr/share/zoneinfo", z), 0o644); err != nil {
			return fmt.Errorf("time zone %s (apt-get install tzdata): %w", z, err)
		}
	}
	return nil
}

// writeEtc writes the guest's own /etc.
func writeEtc(root, hostname string) error {
	files, err := guestFiles.ReadDir("guest/etc")
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := guestFiles.ReadFile("guest/etc/" + f.Name())
		if err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		switch {
		case strings.HasSuffix(f.Name(), ".script"):
			mode = 0o755
		case f.Name() == "shadow":
			mode = 0o640
		}
		if err := os.WriteFile(filepath.Join(root, "etc", f.Name()), b, mode); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "etc/hostname"), []byte(hostname+"\n"), 0o644)
}

// copyFile copies a file and makes the directory above it. The new file takes
// its place whole: a program that runs keeps the old one.
func copyFile(to, from string, mode os.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	dst, err := os.CreateTemp(filepath.Dir(to), ".copy-")
	if err != nil {
		return err
	}
	defer os.Remove(dst.Name())
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Chmod(mode), dst.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return os.Rename(dst.Name(), to)
}
