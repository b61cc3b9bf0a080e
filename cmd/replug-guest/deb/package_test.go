// Package deb makes the Debian package of the agent in guests.
package deb

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The package installs into a system that has a shell and nothing else, enables its
// unit once, respects who disabled it over an upgrade, and goes without a trace.
func TestDeb(t *testing.T) {
	dir := t.TempDir()
	build := func(version string) string { return deb(t, "amd64", version, dir) }
	first := build("1.0")
	before, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(build("1.0")); string(again) != string(before) {
		t.Error("made twice, it has other bytes")
	}
	sameForArm64(t, first, deb(t, "arm64", "1.0", dir))
	root := small(t)
	dpkg := func(args ...string) {
		t.Helper()
		cmd := exec.Command("dpkg", append([]string{"--root=" + root, "--log=/dev/null", "--force-not-root", "--force-bad-path"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("dpkg %v: %v: %s", args, err, out)
		}
	}
	const enabled = "etc/systemd/system/multi-user.target.wants/replug-guest.service"
	dpkg("-i", first)
	if to, err := os.Readlink(filepath.Join(root, enabled)); err != nil || to != "/lib/systemd/system/replug-guest.service" {
		t.Errorf("unit leads to %q: %v", to, err)
	}
	if unit, _ := os.ReadFile(filepath.Join(root, "lib/systemd/system/replug-guest.service")); !strings.Contains(string(unit), "ExecStart=/usr/sbin/replug-guest\n") ||
		!strings.Contains(string(unit), "NetworkManager.service networking.service") {
		t.Errorf("unit:\n%s", unit)
	}
	if out, err := exec.Command("chroot", root, "/usr/sbin/replug-guest", "--help").Output(); err != nil || !strings.Contains(string(out), "replug-guest") {
		t.Errorf("the program in the chroot: %v: %s", err, out)
	}
	if err := os.Remove(filepath.Join(root, enabled)); err != nil {
		t.Fatal(err)
	}
	dpkg("-i", build("1.1"))
	if _, err := os.Lstat(filepath.Join(root, enabled)); err == nil {
		t.Error("an upgrade has enabled it again")
	}
	state := filepath.Join(root, "var/lib/replug-guest")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	dpkg("--purge", "replug-guest")
	for _, gone := range []string{"usr/sbin/replug-guest", "lib/systemd/system/replug-guest.service", "var/lib/replug-guest", enabled} {
		if _, err := os.Lstat(filepath.Join(root, gone)); err == nil {
			t.Errorf("/%s is left", gone)
		}
	}
}

// sameForArm64 looks whether the package for arm64 is that for amd64 but for the
// program, which is static and for that machine. It runs in
// tests/kernel.
func sameForArm64(t *testing.T, amd64, arm64 string) {
	t.Helper()
	rest := func(file string) (files, root string) {
		root = t.TempDir()
		said(t, "dpkg-deb", "--raw-extract", file, root)
		return said(t, "sh", "-c", "cd "+root+" && find . -type f ! -name replug-guest ! -name control -exec sha256sum {} + | sort -k2"), root
	}
	files, root := rest(arm64)
	if want, _ := rest(amd64); files != want || strings.Count(files, "\n") < 4 {
		t.Errorf("for arm64 it has\n%s\nand for amd64\n%s", files, want)
	}
	if field := said(t, "dpkg-deb", "--field", arm64, "Architecture"); field != "arm64" {
		t.Errorf("that for arm64 is for %q", field)
	}
	program, err := elf.Open(filepath.Join(root, "usr/sbin/replug-guest"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if program.Machine != elf.EM_AARCH64 || program.Class != elf.ELFCLASS64 {
		t.Errorf("its program is for %s, %s", program.Machine, program.Class)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("its program wants a dynamic loader")
		}
	}
}

// deb makes the package of a version and returns its file.
func deb(t *testing.T, arch, version, dir string) string {
	t.Helper()
	t.Setenv("VERSION", version)
	return said(t, "./make.sh", arch, dir)
}

// said is what a program prints.
func said(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// small makes a root with a shell and dpkg's database.
func small(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "etc", "usr/sbin", "lib", "var/lib/dpkg/info", "var/lib/dpkg/updates", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"var/lib/dpkg/status", "var/lib/dpkg/available"} {
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox is missing: apt-get install busybox-static: %v", err)
	}
	b, err := os.ReadFile(busybox)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755)
	}
	for _, name := range []string{"sh", "mkdir", "ln", "rm"} {
		if err == nil {
			err = os.Symlink("busybox", filepath.Join(root, "bin", name))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}
