package tests

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// root is the repository's directory, seen from this package's tests.
const root = ".."

// patience bounds what these tests start. It is what one that fails takes, so a busy
// machine is given all of it: all that is generated takes minutes of a CPU to make.
const patience = 10 * time.Minute

func vagrant(t *testing.T, dir string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "vagrant", "validate", "--ignore-provider")
	home := t.TempDir()
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VAGRANT_HOME="+home, "VAGRANT_DOTFILE_PATH="+filepath.Join(home, "state"), "VAGRANT_CHECKPOINT_DISABLE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestVagrantfile(t *testing.T) {
	if out, err := vagrant(t, root); err != nil {
		t.Errorf("vagrant validate: %v (needs the package vagrant): %s", err, out)
	}
	// The judge can say no: a misspelt setting is refused.
	b, err := os.ReadFile(filepath.Join(root, "Vagrantfile"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	broken := strings.Replace(string(b), "config.vm.box =", "config.vm.boxx =", 1)
	if err := os.WriteFile(filepath.Join(dir, "Vagrantfile"), []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := vagrant(t, dir); err == nil {
		t.Errorf("a misspelt Vagrantfile is fine too: %s", out)
	}
}
