package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// kernelLine boots fast under emulation: no probing of what QEMU doesn't have,
// no wait before a reboot, and a console that is quiet but for /init.
const kernelLine = "console=ttyS0 quiet loglevel=3 panic=-1 nokaslr mitigations=off random.trust_cpu=on " +
	"no_timer_check tsc=reliable noreplace-smp rcupdate.rcu_expedited=1 audit=0 selinux=0 apparmor=0 cryptomgr.notests i8042.noaux i8042.nokbd 8250.nr_uarts=2"

// diskSize of the blank disk that a guest's OS disk is laid over.
const diskSize = "16M"

// CacheDir is where guest images and kernels are kept: $REPLUG_CACHE, or
// replug in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("REPLUG_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory (set REPLUG_CACHE): %w", err)
	}
	return filepath.Join(dir, "replug"), nil
}

// BuildGuest makes the small guest and returns its directory:
//
//	vmlinuz initrd.img cmdline disk.qcow2
//
// Agent is the static replug-guest to put in, "" for udhcpc alone. Nothing is
// done if an image of the same parts is in the cache. The first one fetches a
// kernel of some 30 MB through apt.
func BuildGuest(ctx context.Context, agent string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	kernel, err := guestKernel(ctx, cache)
	if err != nil {
		return "", err
	}
	draft, err := os.MkdirTemp(cache, ".guest-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(draft)
	initrd, err := makeInitrd(ctx, filepath.Join(draft, "root"), kernel, agent)
	if err != nil {
		return "", fmt.Errorf("make the guest's file system: %w", err)
	}
	sum := sha256.Sum256(append(initrd, kernelLine...))
	dir := filepath.Join(cache, "guest-"+release()+"-"+hex.EncodeToString(sum[:8]))
	if now := time.Now(); os.Chtimes(dir, now, now) == nil {
		return dir, nil // and used again: see prune
	}
	prune(cache, "guest", 24*time.Hour)
	if err := fillImage(ctx, draft, kernel, initrd); err != nil {
		return "", fmt.Errorf("make the guest's image: %w", err)
	}
	if err := os.Rename(draft, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// prune removes images of a kind that nobody has asked for in so long.
func prune(cache, kind string, unused time.Duration) {
	images, _ := filepath.Glob(filepath.Join(cache, kind+"-*"))
	for _, dir := range images {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > unused {
			os.RemoveAll(dir)
		}
	}
}

// InstallImage makes a built image known as name in a host's image repository.
func InstallImage(image, repository, name string) error {
	if err := os.MkdirAll(repository, 0o755); err != nil {
		return fmt.Errorf("image repository: %w", err)
	}
	if err := os.Symlink(image, filepath.Join(repository, name)); err != nil {
		return fmt.Errorf("install image %s: %w", name, err)
	}
	return nil
}

// fillImage writes the image's four files into dir and nothing else.
func fillImage(ctx context.Context, dir, kernel string, initrd []byte) error {
	if _, err := output(ctx, dir, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", diskSize); err != nil {
		return err
	}
	return errors.Join(
		os.RemoveAll(filepath.Join(dir, "root")),
		copyFile(filepath.Join(dir, "vmlinuz"), filepath.Join(kernel, "vmlinuz"), 0o644),
		os.WriteFile(filepath.Join(dir, "initrd.img"), initrd, 0o644),
		os.WriteFile(filepath.Join(dir, "cmdline"), []byte(kernelLine+"\n"), 0o644),
		os.Chmod(dir, 0o755),
	)
}

// makeInitrd lays the guest's root out in dir and packs it. It isn't compressed:
// emulated, unpacking costs more time than loading.
func makeInitrd(ctx context.Context, dir, kernel, agent string) ([]byte, error) {
	for _, d := range guestDirs {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(
		installBusybox(ctx, filepath.Join(dir, "bin")),
		installZones(filepath.Join(dir, "usr/share/zoneinfo")),
		writeEtc(dir, "placeholder"),
	); err != nil {
		return nil, err
	}
	if agent != "" {
		if err := copyFile(filepath.Join(dir, "bin/replug-guest"), agent, 0o755); err != nil {
			return nil, fmt.Errorf("the guest agent (`make build` makes it): %w", err)
		}
	}
	var out bytes.Buffer
	w := &cpioWriter{out: &out}
	if err := w.tree("", dir); err != nil {
		return nil, err
	}
	w.dir("lib")
	if err := w.tree("lib/modules", filepath.Join(kernel, "modules")); err != nil {
		return nil, err
	}
	for _, own := range []struct{ name, from string }{{"init", "guest/init"}, {"etc/exec.sh", "guest/exec.sh"}} {
		b, err := guestFiles.ReadFile(own.from)
		if err != nil {
			return nil, err
		}
		w.file(own.name, 0o755, b)
	}
	return out.Bytes(), w.close()
}
