package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// kernelPackages name the newest kernel for virtual machines: Debian's, Ubuntu's.
func kernelPackages(arch string) []string {
	return []string{"linux-image-cloud-" + arch, "linux-image-virtual"}
}

// guestModules are what the guest needs; their dependencies are found. One that
// isn't in the package is built into the kernel.
var guestModules = []string{"virtio_pci", "virtio_net", "virtio_blk", "virtio_console"}

// moduleHomes are the directories of a kernel package that hold them all.
var moduleHomes = []string{
	"kernel/drivers/virtio/", "kernel/drivers/net/virtio_net", "kernel/drivers/net/net_failover",
	"kernel/net/core/", "kernel/drivers/block/virtio_blk", "kernel/net/packet/", "kernel/drivers/char/virtio_console",
	"kernel/drivers/net/veth", "kernel/drivers/net/tun", "kernel/drivers/net/vxlan", "kernel/net/ipv4/", "kernel/net/ipv6/",
	"kernel/net/sched/", "kernel/net/netfilter/", "kernel/lib/",
}

// guestKernel returns the kernel of the small guest, see kernelWith.
func guestKernel(ctx context.Context, cache string) (string, error) {
	return kernelWith(ctx, cache, runtime.GOARCH, guestModules)
}

// kernelWith returns a directory with vmlinuz, the wanted modules and their
// order, taken from the distribution's packages; for another architecture than this
// machine's a busybox too. It is made once; delete it to get a newer one.
func kernelWith(ctx context.Context, cache, arch string, wanted []string) (string, error) {
	made := strings.Join(wanted, " ")
	if arch != runtime.GOARCH {
		made += " " + arch
	}
	sum := sha256.Sum256([]byte(made))
	dir := filepath.Join(cache, "kernel-"+release()+"-"+hex.EncodeToString(sum[:4]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	draft, err := os.MkdirTemp(cache, ".kernel-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(draft)
	from, err := aptOf(arch, cache)
	if err != nil {
		return "", err
	}
	packages, err := downloadKernel(ctx, draft, from)
	if err != nil {
		return "", fmt.Errorf("get a kernel for guests: %w", err)
	}
	modules := map[string][]byte{}
	for _, p := range packages {
		if err := unpackKernel(ctx, p, draft, modules); err != nil {
			return "", fmt.Errorf("unpack %s: %w", filepath.Base(p), err)
		}
		os.Remove(p)
	}
	if err := writeModules(ctx, filepath.Join(draft, "modules"), modules, wanted); err != nil {
		return "", fmt.Errorf("modules of the guest's kernel: %w", err)
	}
	if _, err := os.Stat(filepath.Join(draft, "vmlinuz")); err != nil {
		return "", fmt.Errorf("the packages %v hold no kernel: %w", packages, err)
	}
	if err := errors.Join(os.Chmod(draft, 0o755), os.Rename(draft, dir)); err != nil {
		return "", err
	}
	return dir, nil
}

// release names the distribution, of which a kernel package is taken.
func release() string {
	b, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return "unknown"
}

// downloadKernel fetches the packages that the first known name stands for, and
// for another architecture the busybox that goes with them.
func downloadKernel(ctx context.Context, dir string, from apt) ([]string, error) {
	var errs []error
	var more []string
	if from.arch != runtime.GOARCH {
		more = []string{"busybox-static"}
	}
	metas := kernelPackages(from.arch)
	for _, refresh := range []bool{false, true} {
		if refresh {
			errs = append(errs, from.update(ctx))
		}
		for _, meta := range metas {
			names, err := from.kernelOf(ctx, meta)
			var files []string
			if err == nil {
				files, err = from.download(ctx, dir, append(names, more...)...)
			}
			if err == nil {
				return files, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, fmt.Errorf("no package of %v can be fetched (is the network there?): %w", metas, errors.Join(errs...))
}

// unpackKernel takes the kernel and the candidates for modules out of a package
// without writing the hundreds of megabytes of the rest.
func unpackKernel(ctx context.Context, deb, dir string, modules map[string][]byte) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = pick(tar.NewReader(out), dir, modules)
	io.Copy(io.Discard, out)
	return errors.Join(err, cmd.Wait())
}

func pick(in *tar.Reader, dir string, modules map[string][]byte) error {
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		for _, whole := range []string{"boot/vmlinuz-", "bin/busybox"} {
			if !strings.HasPrefix(name, whole) {
				continue
			}
			b, err := io.ReadAll(in)
			file := strings.TrimSuffix(path.Base(whole), "-")
			if err := errors.Join(err, os.WriteFile(filepath.Join(dir, file), b, 0o755)); err != nil {
				return err
			}
		}
		inHome := slices.ContainsFunc(moduleHomes, func(home string) bool { return strings.Contains(name, "/"+home) })
		if inHome && strings.Contains(path.Base(name), ".ko") {
			b, err := io.ReadAll(in)
			if err != nil {
				return err
			}
			modules[path.Base(name)] = b
		}
	}
}

// writeModules writes the wanted modules, uncompressed, and the order in which
// they are loaded.
func writeModules(ctx context.Context, dir string, files map[string][]byte, wanted []string) error {
	modules := map[string][]byte{}
	for file, b := range files {
		name, packing, _ := strings.Cut(file, ".ko")
		if packing != "" {
			var err error
			if b, err = unpack(ctx, packing, b); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		// Names in dependencies have no dashes.
		modules[strings.ReplaceAll(name, "-", "_")] = b
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var order []string
	for _, m := range wanted {
		if err := load(m, modules, &order); err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
	}
	for i, m := range order {
		order[i] = m + ".ko"
		if err := os.WriteFile(filepath.Join(dir, order[i]), modules[m], 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "order"), []byte(strings.Join(order, "\n")+"\n"), 0o644)
}

// load adds a module to the order, after those that it depends on.
func load(name string, modules map[string][]byte, order *[]string) error {
	b, ok := modules[name]
	if !ok || slices.Contains(*order, name) {
		return nil // built in, or there
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return errors.New("it has no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		list, ok := strings.CutPrefix(field, "depends=")
		if !ok || list == "" {
			continue
		}
		for dep := range strings.SplitSeq(list, ",") {
			if err := load(strings.ReplaceAll(dep, "-", "_"), modules, order); err != nil {
				return err
			}
		}
	}
	*order = append(*order, name)
	return nil
}

// unpack decompresses a module; Debian 13 packs them with xz, Ubuntu with zstd.
func unpack(ctx context.Context, packing string, b []byte) ([]byte, error) {
	tools := map[string][]string{".xz": {"xz", "-dc"}, ".zst": {"zstd", "-dc"}, ".gz": {"gzip", "-dc"}}
	tool, ok := tools[packing]
	if !ok {
		return nil, fmt.Errorf("packed as %s: nothing here unpacks that", packing)
	}
	cmd := exec.CommandContext(ctx, tool[0], tool[1:]...)
	cmd.Stdin = bytes.NewReader(b)
	return cmd.Output()
}

// output runs a command of this machine.
func output(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tail(said.Bytes()))
	}
	return out, nil
}
