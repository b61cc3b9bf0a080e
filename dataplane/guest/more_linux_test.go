package guest

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"replug/directory/vnet"
)

// A password is taken as a hash only, and changes nothing but its field.
func TestPassword(t *testing.T) {
	m := image(t)
	d := vnet.Document{User: "carla", PasswordHash: "$6$saltsalt$aB3./xyz"}
	check(t, m.apply(&d, &state{}))
	if b, _ := os.ReadFile(m.path("etc/shadow")); !strings.Contains(string(b), "\ncarla:$6$saltsalt$aB3./xyz:19000:0:99999:7:::\n") {
		t.Errorf("shadow:\n%s", b)
	}
	d.PasswordHash = ""
	check(t, m.apply(&d, &state{}))
	if b, _ := os.ReadFile(m.path("etc/shadow")); !strings.Contains(string(b), "carla:$6$") {
		t.Errorf("a document that says nothing of it has taken the password:\n%s", b)
	}
	for _, bad := range []string{"secret", "$6$saltsalt$aB3:\nroot::0:", "$6$saltsalt$aB3./xyz:"} {
		d.PasswordHash = bad
		if err := m.apply(&d, &state{}); !errors.Is(err, errInvalid) || strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v (want an error that does not print it)", bad, err)
		}
	}
}

// Commands run in order, once in the life of the machine, and what came of them is
// said again, not done again. One that ends the agent is not begun a second time.
func TestRunOnce(t *testing.T) {
	m := image(t)
	out := filepath.Join(m.root, "out")
	d := vnet.Document{RunOnce: []vnet.Command{
		{ID: "first", Command: "echo 1 >>" + out},
		{ID: "bad", Command: "echo 2 >>" + out + "; echo no such thing >&2; exit 3"},
		{ID: "last", Command: "echo 3 >>" + out},
	}}
	var s state
	for range 2 {
		err := m.apply(&d, &s)
		if err == nil || err.Error() != "command bad: exit status 3: no such thing" {
			t.Errorf("got %v", err)
		}
		if b, _ := os.ReadFile(out); string(b) != "1\n2\n3\n" {
			t.Errorf("they wrote %q", b)
		}
		loaded, err := loadState(m.files) // as after a reboot
		check(t, err)
		s = loaded
	}
	d.RunOnce = []vnet.Command{{ID: "reboot", Command: "grep -q 'cut off by a reboot' " + m.path(stateFile)}}
	if err := m.apply(&d, &s); err != nil {
		t.Errorf("not remembered while it ran: %v", err)
	}
	s.Ran["reboot"] = cutOff
	check(t, s.save(m.files))
	if err := m.apply(&d, &s); err == nil || !strings.Contains(err.Error(), "command reboot: was cut off") {
		t.Errorf("a command that was cut off: %v", err)
	}
}

// Name servers of the document stand before those of a lease, for every resolver
// that the image has, and go again without a trace.
func TestDNS(t *testing.T) {
	m := image(t)
	write := func(path, content string) {
		check(t, os.MkdirAll(filepath.Dir(m.path(path)), 0o755))
		check(t, os.WriteFile(m.path(path), []byte(content), 0o644))
	}
	write("etc/dhcp/dhclient.conf", "timeout 300;\n")
	write("etc/dhcpcd.conf", "hostname\nstatic domain_name_servers=192.0.2.1\n")
	write("etc/systemd/resolved.conf", "")
	write("etc/resolv.conf", "search red.example\nnameserver 10.0.0.53\n")
	d := vnet.Document{DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::9")}}
	var s state
	for range 2 {
		check(t, m.apply(&d, &s))
		for path, want := range map[string]string{
			"etc/dhcp/dhclient.conf":                     "timeout 300;\nsupersede domain-name-servers 9.9.9.9, 2620:fe::9; # by replug-guest\n",
			"etc/dhcpcd.conf":                            "hostname\nstatic domain_name_servers=192.0.2.1\nstatic domain_name_servers=9.9.9.9 2620:fe::9\n",
			"etc/systemd/resolved.conf.d/60-replug.conf": "[Resolve]\nDNS=9.9.9.9 2620:fe::9\n",
			"etc/resolv.conf":                            "nameserver 9.9.9.9\nnameserver 2620:fe::9\nsearch red.example\n",
		} {
			if b, _ := os.ReadFile(m.path(path)); string(b) != want {
				t.Errorf("%s is %q, want %q", path, b, want)
			}
		}
	}
	d.DNS = nil
	check(t, m.apply(&d, &s))
	if b, _ := os.ReadFile(m.path("etc/dhcp/dhclient.conf")); string(b) != "timeout 300;\n" {
		t.Errorf("dhclient.conf is %q", b)
	}
	if _, err := os.Stat(m.path("etc/systemd/resolved.conf.d/60-replug.conf")); err == nil {
		t.Error("resolved's file is still there")
	}
}

// disk puts a disk of so many MiB into the image, as a file.
func disk(t *testing.T, m machine, name, serial string, mib int64) string {
	check(t, os.MkdirAll(m.path("sys/block/"+name), 0o755))
	check(t, os.WriteFile(m.path("sys/block/"+name+"/serial"), []byte(serial), 0o644))
	check(t, os.MkdirAll(m.path("dev"), 0o755))
	f, err := os.OpenFile(m.path("dev/"+name), os.O_CREATE|os.O_WRONLY, 0o600)
	check(t, err)
	defer f.Close()
	check(t, f.Truncate(mib<<20))
	return f.Name()
}

// A blank disk is formatted, a grown one is grown, and what is on any other stays as
// it is, to the byte. Repeating it changes nothing.
func TestDisks(t *testing.T) {
	m := image(t)
	disk(t, m, "vda", "vm-93-0", 8)
	dev := disk(t, m, "vdb", "vm-93-1", 24)
	d := vnet.Document{Instance: "vm-93", Disks: []vnet.DataDisk{{ID: "1", Path: "/srv/db"}}}
	check(t, m.apply(&d, &state{}))
	fs, err := m.look(dev)
	check(t, err)
	if !fs.ext4 || fs.size != 24<<20 || fs.disk != 24<<20 {
		t.Fatalf("after the first time: %+v", fs)
	}
	line := "UUID=" + fs.uuid + "\t/srv/db\tauto\tdefaults,nofail\t0\t2\n"
	if b, _ := os.ReadFile(m.path("etc/fstab")); string(b) != line {
		t.Errorf("fstab is %q, want %q", b, line)
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "mkdir kept", dev).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	before, err := os.ReadFile(dev)
	check(t, err)
	check(t, m.again(&d))
	if after, _ := os.ReadFile(dev); !bytes.Equal(after, before) {
		t.Error("the second time has written to the disk")
	}
	disk(t, m, "vdb", "vm-93-1", 48)
	check(t, m.again(&d))
	if fs, err = m.look(dev); err != nil || fs.size != 48<<20 {
		t.Errorf("after growing: %+v, %v", fs, err)
	}
	if out, _ := exec.Command("debugfs", "-R", "ls", dev).Output(); !strings.Contains(string(out), "kept") {
		t.Errorf("what was on it is gone: %s", out)
	}
}

// Anything that is not zero where marks are kept is data. Invalid disks are named.
func TestForeignDiskIsLeftAlone(t *testing.T) {
	for name, at := range map[string]int64{"partition table": 510, "at the end": 24<<20 - 3, "software RAID": 4096} {
		m := image(t)
		dev := disk(t, m, "vdb", "data-of-somebody-els", 24)
		f, err := os.OpenFile(dev, os.O_WRONLY, 0)
		check(t, err)
		_, err = f.WriteAt([]byte{0xaa}, at)
		check(t, err)
		check(t, f.Close())
		before, _ := os.ReadFile(dev)
		d := vnet.Document{Instance: "vm-93", Disks: []vnet.DataDisk{{ID: "data-of-somebody-else"}}}
		check(t, m.apply(&d, &state{}))
		if after, _ := os.ReadFile(dev); !bytes.Equal(after, before) {
			t.Errorf("%s: the disk was written to", name)
		}
	}
	m := image(t)
	for _, x := range []vnet.DataDisk{{ID: "7"}, {ID: ""}, {ID: "1", Path: "srv"}, {ID: "1", Path: "/a b"}, {ID: "1", Path: "/"}} {
		d := vnet.Document{Instance: "vm-93", Disks: []vnet.DataDisk{x}}
		if err := m.apply(&d, &state{}); err == nil {
			t.Errorf("%+v: no error", x)
		}
	}
}
