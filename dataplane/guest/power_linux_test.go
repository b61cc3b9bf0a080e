package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"replug/directory/vnet"
)

// What is remembered, a command that was begun and a setting that was applied, is there
// when the power is lost a moment later, and so is what was applied, on each disk by
// itself. It is looked at while it is mounted: what its journal has not by then would be
// lost.
func TestLossOfPower(t *testing.T) {
	dir := t.TempDir()
	sh := func(line string) {
		t.Helper()
		if out, err := exec.Command("/bin/sh", "-ec", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	m := image(t)
	sh("cd " + dir + "; truncate -s 64M os home; mkfs.ext4 -q -F -d " + m.root + " os; mkfs.ext4 -q -F home; mkdir root; mount -o loop,commit=900 os root")
	t.Cleanup(func() { sh("umount -R " + dir + "/root") })
	sh("cd " + dir + "; mkdir -p root/home; mount -o loop,commit=900 home root/home")
	m = newMachine(filepath.Join(dir, "root"))
	is := func(disk, path, want string) {
		t.Helper()
		sh("cd " + dir + "; cp " + disk + " lost; e2fsck -p lost >&2 || [ $? = 1 ]") // the next boot reads the journal
		if b, err := exec.Command("debugfs", "-R", "cat /"+path, dir+"/lost").Output(); err != nil || string(b) != want {
			t.Errorf("/%s of %s is %q, want %q", path, disk, b, want)
		}
	}
	s := &state{}
	check(t, s.save(m.files))
	if _, err := s.begin(m.files, "app"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(m.path(stateFile))
	check(t, err)
	is("os", stateFile, string(b))
	for _, c := range []struct {
		d                vnet.Document
		disk, path, want string
	}{
		{vnet.Document{Hostname: "web-3"}, "os", "etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tweb-3\n"},
		{vnet.Document{User: "carla", SSHKeys: []string{"ssh-rsa AAAA1"}}, "home", "carla/.ssh/authorized_keys", "ssh-rsa AAAA1\n"},
		{vnet.Document{Files: []vnet.File{{Path: "/home/app/a", Content: "a\n"}}}, "home", "app/a", "a\n"},
	} {
		check(t, m.again(&c.d, s))
		is(c.disk, c.path, c.want)
	}
}
