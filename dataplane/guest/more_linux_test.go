package guest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	s := &state{}
	run := func() error { return m.runOnce(t.Context(), d.RunOnce, s, m.command) }
	for range 2 {
		if err := run(); err == nil || err.Error() != "command bad: exit status 3: no such thing" {
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
	if err := run(); err != nil {
		t.Errorf("not remembered while it ran: %v", err)
	}
	s.Ran["reboot"] = cutOff
	check(t, s.save(m.files))
	if err := run(); err == nil || !strings.Contains(err.Error(), "command reboot: was cut off") {
		t.Errorf("a command that was cut off: %v", err)
	}
}

// What an owner has the machine do keeps nobody waiting: the settings are reported
// before, the next document is applied meanwhile, and what went wrong is said after.
func TestCommandsRunAfterTheReport(t *testing.T) {
	w := newWorld(t)
	d := bought
	d.RunOnce = []vnet.Command{{ID: "app", Command: fmt.Sprintf("cd %s; echo >begun; until [ -e go ]; do sleep 0.02; done; echo no app >&2; exit 3", w.root)}}
	w.publish(d)
	w.start()
	if r := next(t, w.reports, "report while the command runs"); !r.OK || r.Error != "" || r.Epoch != d.Epoch {
		t.Fatalf("first report %+v", r)
	}
	w.becomes("the command", "\n", func() string { return w.read("begun") })
	d.Epoch, d.Hostname = d.Epoch.Next(), "web-2"
	w.publish(d)
	r := next(t, w.reports, "report on the next document")
	if !r.OK || r.Epoch != d.Epoch || r.Hostname != "web-2" || r.Error != "" {
		t.Errorf("report on the next document %+v", r)
	}
	check(t, os.WriteFile(filepath.Join(w.root, "go"), nil, 0o600))
	if r := next(t, w.reports, "report on the command"); !r.OK || r.Epoch != d.Epoch || r.Error != "command app: exit status 3: no app" {
		t.Errorf("last report %+v", r)
	}
}

// What a document wants to be run is run after a reboot as well, if it was not begun
// before; one that is refused has nothing run.
func TestCommandsAfterARestart(t *testing.T) {
	w := newWorld(t)
	d := bought
	out := filepath.Join(w.root, "out")
	d.RunOnce = []vnet.Command{{ID: "one", Command: "echo one >>" + out}, {ID: "two", Command: "echo two >>" + out}}
	check(t, (&state{Epoch: d.Epoch, Kind: vnet.ReportFinal, Ran: map[string]string{"one": cutOff}}).save(files{w.root}))
	for range 2 {
		w.publish(d)
		stop := w.start(func(c *Config) { c.Once = true })
		if r := next(t, w.reports, "report"); !r.OK || !strings.HasPrefix(r.Error, "command one: was cut off") {
			t.Errorf("report %+v", r)
		}
		w.said("reported final")
		w.becomes("what was run", "two\n", func() string { return w.read("out") })
		stop()
	}
	d.Epoch, d.RunOnce = vnet.NewEpoch(3, 5), []vnet.Command{{ID: "old", Command: "echo old >>" + out}}
	w.publish(d)
	w.start(func(c *Config) { c.Once = true })
	w.said("reported final failure")
	if got := w.read("out"); got != "two\n" {
		t.Errorf("after a refused document: %q", got)
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
	check(t, m.again(&d, &state{}))
	if after, _ := os.ReadFile(dev); !bytes.Equal(after, before) {
		t.Error("the second time has written to the disk")
	}
	disk(t, m, "vdb", "vm-93-1", 48)
	check(t, m.again(&d, &state{}))
	if fs, err = m.look(dev); err != nil || fs.size != 48<<20 {
		t.Errorf("after growing: %+v, %v", fs, err)
	}
	if out, _ := exec.Command("debugfs", "-R", "ls", dev).Output(); !strings.Contains(string(out), "kept") {
		t.Errorf("what was on it is gone: %s", out)
	}
}

// A disk that is being checked at boot is mounted after that, by whoever comes first;
// what is wrong otherwise is said at once.
func TestMountWaitsForACheck(t *testing.T) {
	for name, c := range map[string]struct {
		answers []error // of mount, in order
		there   int     // mounted by somebody else after so many; 0: never
		want    error
	}{
		"free":                    {[]error{nil}, 0, nil},
		"checked, then free":      {[]error{unix.EBUSY, unix.EBUSY, nil}, 0, nil},
		"checked, then systemd's": {[]error{unix.EBUSY, unix.EBUSY}, 2, nil},
		"no file system":          {[]error{unix.EINVAL}, 0, unix.EINVAL},
	} {
		tries := 0
		err := whenFree(time.Minute, func() error { tries++; return c.answers[tries-1] }, func() bool { return c.there > 0 && tries >= c.there })
		if !errors.Is(err, c.want) || tries != len(c.answers) {
			t.Errorf("%s: %v after %d tries", name, err, tries)
		}
	}
	if err := whenFree(0, func() error { return unix.EBUSY }, func() bool { return false }); !errors.Is(err, unix.EBUSY) {
		t.Errorf("never free: %v", err)
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
