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
	"regexp"
	"slices"
	"strings"
)

// kernelPackages name the newest kernel for virtual machines: Debian's, Ubuntu's.
var kernelPackages = []string{"linux-image-cloud-amd64", "linux-image-virtual"}

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

var dependsLine = regexp.MustCompile(`(?m)^\s*(?:Pre)?Depends: (linux-(?:image|modules)-[0-9]\S*)`)

// guestKernel returns the kernel of the small guest, see kernelWith.
func guestKernel(ctx context.Context, cache string) (string, error) {
	return kernelWith(ctx, cache, guestModules)
}

// kernelWith returns a directory with vmlinuz, the wanted modules and their
// order, taken from the machine's packages. It is made once; delete it to get a
// newer one.
func kernelWith(ctx context.Context, cache string, wanted []string) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(wanted, " ")))
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
	packages, err := downloadKernel(ctx, draft)
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

// downloadKernel fetches the packages that the first known name stands for.
func downloadKernel(ctx context.Context, dir string) (files []string, err error) {
	var errs []error
	for _, refresh := range []bool{false, true} {
		if refresh { // a machine whose package lists are old or empty
			if _, err := output(ctx, dir, "apt-get", "update", "-qq"); err != nil {
				errs = append(errs, err)
			}
		}
		for _, meta := range kernelPackages {
			names, err := dependencies(ctx, meta)
			if err == nil {
				_, err = output(ctx, dir, append([]string{"apt-get", "download", "-q", "-o", "APT::Sandbox::User=root"}, names...)...)
			}
			if err == nil {
				return filepath.Glob(filepath.Join(dir, "*.deb"))
			}
			errs = append(errs, err)
		}
	}
	return nil, fmt.Errorf("no package of %v can be fetched (is the network there?): %w", kernelPackages, errors.Join(errs...))
}

// dependencies follows a meta package to the images and modules behind it.
func dependencies(ctx context.Context, meta string) ([]string, error) {
	var names []string
	for todo := []string{meta}; len(todo) > 0; todo = todo[1:] {
		out, err := output(ctx, "/", "apt-cache", "depends", todo[0])
		if err != nil {
			return nil, err
		}
		for _, m := range dependsLine.FindAllStringSubmatch(string(out), -1) {
			if !slices.Contains(names, m[1]) {
				names, todo = append(names, m[1]), append(todo, m[1])
			}
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s is unknown to apt", meta)
	}
	return names, nil
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
		if strings.HasPrefix(name, "boot/vmlinuz-") {
			b, err := io.ReadAll(in)
			if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "vmlinuz"), b, 0o644)); err != nil {
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
