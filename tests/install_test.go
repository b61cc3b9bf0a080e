package tests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"replug/tests/lab"
)

// TestInstall runs the documented install below a directory and starts what it
// has installed, with the configuration that it has written: the server knows the
// host a moment later.
func TestInstall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := lab.Check(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := lab.Build(ctx, filepath.Join(dir, "bin"), "replug/cmd/replug", "replug/cmd/replug-server", "replug/cmd/replug-host"); err != nil {
		t.Fatal(err)
	}
	script := copyScript(t, dir)
	for _, family := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run(string(family), func(t *testing.T) { installs(ctx, t, dir, script, family) })
	}
}

// installs puts a server and a host on machines of a lab, and starts them.
func installs(ctx context.Context, t *testing.T, dir, script string, family lab.Family) {
	l, err := lab.Up(ctx, lab.Config{Name: "install", Hosts: 1, Family: family})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})

	pki, at := filepath.Join(dir, string(family), "pki"), filepath.Join(dir, string(family), "at")
	install := func(n *lab.Node, args ...string) {
		t.Helper()
		env := []string{"env", "NAME=h1", "START=no", "ROOT=" + at, script}
		if _, err := n.Run(ctx, append(env, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	server := l.ServerAddr().String()
	install(l.Server(), "pki", pki, server, "h1")
	install(l.Server(), "server", pki)
	install(l.Host(1), "host", pki, server, l.PAPrefix(1).String())
	install(l.Host(1), "host", pki, server, l.PAPrefix(1).String()) // again, as documented
	if info, err := os.Stat(filepath.Join(at, "etc/replug/pki/h1.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the host's key: %v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(at, "etc/replug/pki/ca.key")); err == nil {
		t.Error("the authority's key was installed")
	}

	for _, name := range []string{"replug-server", "replug-host"} {
		comesAtBoot(t, at, name)
	}

	startInstalled(ctx, t, l.Server(), at, "server")
	startInstalled(ctx, t, l.Host(1), at, "host", "--bpffs", l.Host(1).BPF())
	err = lab.Until(ctx, "the server to know the host", func() error {
		out, err := l.Server().Run(ctx, filepath.Join(at, "usr/local/bin/replug"), "host", "list",
			"--pki", filepath.Join(at, "etc/replug/pki"))
		if err == nil && !(strings.Contains(string(out), "h1") && strings.Contains(string(out), l.HostAddr(1).String())) {
			err = fmt.Errorf("host list: %s", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// comesAtBoot looks whether systemd begins the program at boot, and takes its unit
// without a word.
func comesAtBoot(t *testing.T, at, name string) {
	t.Helper()
	units := filepath.Join(at, "etc/systemd/system")
	if to, err := os.Readlink(filepath.Join(units, "multi-user.target.wants", name+".service")); err != nil || to != "/etc/systemd/system/"+name+".service" {
		t.Errorf("at boot systemd begins %q: %v", to, err)
	}
	b, err := os.ReadFile(filepath.Join(units, name+".service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), name+".service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), "/usr/local/bin/", at+"/usr/local/bin/")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd of %s: %v: %s\n%s", name, err, out, b)
	}
}

func copyScript(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docs/install.sh"))
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "docs/install.sh")
	if err := os.Mkdir(filepath.Dir(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}

// startInstalled starts a program with its installed configuration, whose
// absolute paths are put below the directory it was installed in.
func startInstalled(ctx context.Context, t *testing.T, n *lab.Node, at, role string, args ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(at, "etc/replug", role+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), role+".yaml")
	moved := strings.NewReplacer(" /etc/", " "+at+"/etc/", " /var/", " "+at+"/var/").Replace(string(b))
	if err := os.WriteFile(config, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	program := "replug-" + role
	if role == "host" {
		args = append(args, "--state-dir", filepath.Join(at, "var/lib/replug-host"), "--images", filepath.Join(at, "var/lib/replug-host/images"))
	}
	p, err := n.Start(ctx, lab.Cmd{Args: append([]string{filepath.Join(at, "usr/local/bin", program), "--config", config}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if said, _ := os.ReadFile(p.Log()); t.Failed() {
			t.Logf("%s said: %s", program, said)
		}
	})
}

// What is wrong is said, and nothing is half done.
func TestInstallSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	script := copyScript(t, dir)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "in this order"},
		{[]string{"nonsense"}, "in this order"},
		{[]string{"host", "/nowhere"}, "in this order"},
		{[]string{"pki", dir, "192.0.2.7", "h1"}, "run 'make build' first"},
		{[]string{"server", "/nowhere"}, "run 'make build' there first"},
	} {
		cmd := exec.CommandContext(t.Context(), script, c.args...)
		cmd.Env = append(os.Environ(), "START=no", "ROOT="+filepath.Join(dir, "at"))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(strings.ToLower(string(out)), c.want) {
			t.Errorf("install.sh %v: %v, said %q, want %q", c.args, err, out, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "at/etc")); err == nil {
		t.Error("a refused install has written configuration")
	}
}
