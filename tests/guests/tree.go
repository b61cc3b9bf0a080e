// Package guests swaps guests of every common DHCP client between networks, by the
// real programs over a real tap, and says what each of them makes of it: whether it
// follows, on which rung of the ladder, how fast, and what it keeps of its old address.
//
// A client runs from Debian's own package, with Debian's unit and configuration, in
// a virtual machine with Debian's kernel; a few of them also in the room of a cheap
// guest, which is a namespace with the same file system, where a test has no time for
// a machine. What differs there: all namespaces of a machine share the second in which
// its kernel holds link messages back, so short cuts of the link are seen less often.
package guests

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"replug/tests/lab"
)

// treePackages hold the clients and what they need. None of them is installed on
// this machine, whose own network they would take over.
var treePackages = []string{"systemd", "systemd-sysv", "udev", "kmod", "dbus", "netbase", "linux-image-cloud-amd64", "network-manager",
	"dhcpcd", "isc-dhcp-client", "ifupdown", "iproute2", "busybox-static", "procps", "e2fsprogs"}

//go:embed image
var recipe embed.FS

// BuildImage makes the Debian of the clients in the cache, once, and returns its
// directory: the image of a machine, and its file system in tree. It takes a minute
// or two, and fetches some 150 MB through apt.
func BuildImage(ctx context.Context) (string, error) {
	cache, err := lab.CacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	draft, err := os.MkdirTemp(cache, ".clients-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(draft)
	sum, err := unpack(filepath.Join(draft, "recipe"))
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "clients-"+sum)
	if now := time.Now(); os.Chtimes(dir, now, now) == nil {
		return dir, nil
	}
	out := filepath.Join(draft, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "bash", append([]string{filepath.Join(draft, "recipe/image/build.sh"), out, filepath.Join(draft, "recipe/exec.sh")}, treePackages...)...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the Debian with the DHCP clients (`make setup-test` installs what it needs): %w: %s", err, said[max(0, len(said)-800):])
	}
	if err := os.Rename(out, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// unpack writes the recipe into a directory and returns what names its content.
func unpack(dir string) (string, error) {
	hash := sha256.New()
	put := func(name string, b []byte) error {
		fmt.Fprintf(hash, "%s %d\n%s", name, len(b), b)
		file := filepath.Join(dir, name)
		return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, b, 0o755))
	}
	err := fs.WalkDir(recipe, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := recipe.ReadFile(name)
		return errors.Join(err, put(name, b))
	})
	fmt.Fprint(hash, strings.Join(treePackages, " "))
	return hex.EncodeToString(hash.Sum(nil)[:6]), errors.Join(err, put("exec.sh", lab.ExecScript()))
}
