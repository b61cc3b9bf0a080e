package lab_test

import (
	"os"
	"path/filepath"
	"testing"

	"replug/tests/lab"
)

// The Debian guest is built once, and is a whole image.
func TestBuildDebian(t *testing.T) {
	dir, err := lab.BuildDebian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vmlinuz", "initrd.img", "cmdline", "disk.qcow2", "image.json"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again, err := lab.BuildDebian(t.Context()); err != nil || again != dir {
		t.Errorf("built again as %s, %v; was %s", again, err, dir)
	}
}
