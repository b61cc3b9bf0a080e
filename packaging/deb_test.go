// Package packaging holds what makes packages of the programs.
package packaging

import (
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
	build := func(version string) string {
		cmd := exec.Command("./deb.sh", "amd64", dir)
		cmd.Env = append(os.Environ(), "VERSION="+version)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("deb.sh: %v", err)
		}
		return strings.TrimSpace(string(out))
	}
	first := build("1.0")
	before, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(build("1.0")); string(again) != string(before) {
		t.Error("made twice, it has other bytes")
	}
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
