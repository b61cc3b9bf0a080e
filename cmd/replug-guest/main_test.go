package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--help", 0, "Example:\n  replug-guest"},
		{"--dhpc own", 2, "flag provided but not defined: -dhpc (see --help)"},
		{"--dhcp maybe", 2, "want auto, own or none (see --help)"},
		{"--wait 2s now", 2, `unexpected argument "now"`},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), strings.Fields(c.args), &out, &out); code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.args, code, c.code)
		}
		if !strings.Contains(out.String(), c.says) || c.code == 0 && !strings.HasPrefix(out.String(), c.says) {
			t.Errorf("%s: said %q, want %q", c.args, out.String(), c.says)
		}
	}
}

// The binary goes into images that have nothing else: it is static and small, and
// there is one for each machine that a guest may have.
func TestBinary(t *testing.T) {
	for _, target := range []string{"linux/amd64", "linux/arm64", "windows/amd64"} {
		system, machine, _ := strings.Cut(target, "/")
		file := filepath.Join(t.TempDir(), "replug-guest")
		env := append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+machine)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, ".")
		vet := exec.Command("go", "vet", ".", "replug/dataplane/guest")
		for _, cmd := range []*exec.Cmd{build, vet} {
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %v\n%s", target, cmd.Args, err, out)
			}
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() >= 8e6 {
			t.Errorf("%s: %d bytes, want less than 8 MB", target, info.Size())
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("/lib64/ld-linux")) || bytes.Contains(b, []byte("/lib/ld-linux")) {
			t.Errorf("%s: not static: it names a dynamic loader", target)
		}
	}
}
