package guest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// A password is taken as a hash only, and changes nothing but its field.
func TestPassword(t *testing.T) {
	m := image(t)
	d := vnet.Document{User: "carla", PasswordHash: "$6$saltsalt$aB3./xyz"}
	check(t, errors.Join(os.Chown(m.path("etc/shadow"), 3, 42), os.Chmod(m.path("etc/shadow"), 0o640))) // Debian's group shadow
	check(t, m.apply(&d, &state{}))
	if b, _ := os.ReadFile(m.path("etc/shadow")); !strings.Contains(string(b), "\ncarla:$6$saltsalt$aB3./xyz:19000:0:99999:7:::\n") {
		t.Errorf("shadow:\n%s", b)
	}
	info, err := os.Stat(m.path("etc/shadow"))
	check(t, err)
	if of := info.Sys().(*syscall.Stat_t); of.Uid != 3 || of.Gid != 42 || info.Mode() != 0o640 {
		t.Errorf("shadow belongs to %d:%d, mode %v", of.Uid, of.Gid, info.Mode())
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

// What a command prints fills no disk: the file is begun anew, and what comes last is
// what a report says.
func TestOutputIsBounded(t *testing.T) {
	m, s := image(t), &state{}
	log := m.path("var/lib/replug-guest/commands.log")
	line := fmt.Sprintf(`head -c %d /dev/zero
for i in $(seq 3000); do [ $(stat -c %%s %s) -lt 1000 ] && break; sleep 0.02; done
echo the end; exit 3`, mostOutput+1, log)
	err := m.runOnce(t.Context(), []vnet.Command{{ID: "loud", Command: line}}, s, m.command)
	if want := "command loud: exit status 3: the end"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if b, _ := os.ReadFile(log); len(b) != 8 {
		t.Errorf("the file has %d bytes, %.20q", len(b), b)
	}
	check(t, os.WriteFile(log, make([]byte, mostOutput+1), 0o600))
	err = m.runOnce(t.Context(), []vnet.Command{{ID: "next", Command: "head -c 1000 /dev/zero | tr '\\0' x; echo y; exit 4"}}, s, m.command)
	if want := "command next: exit status 4: " + strings.Repeat("x", 498) + "y"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if b, _ := os.ReadFile(log); len(b) != len("== next\n")+1002 {
		t.Errorf("after a file that was too long: %d bytes, %.20q", len(b), b)
	}
}

// A command that replaces the agent, as an upgrade of its package does, goes on when the
// agent ends, whatever it prints then.
func TestCommandOutlivesTheAgent(t *testing.T) {
	w := newWorld(t)
	d := bought
	d.RunOnce = []vnet.Command{{ID: "upgrade", Command: fmt.Sprintf("cd %s; echo >begun; for i in $(seq 3000); do [ -e go ] && break; sleep 0.02; done; echo unpacking; echo a warning >&2; echo >done", w.root)}}
	w.publish(d)
	agent := exec.Command("/proc/self/exe")
	agent.Env = append(os.Environ(), agentRoot+"="+w.root)
	agent.Stderr = t.Output()
	check(t, agent.Start())
	w.becomes("the command", "\n", func() string { return w.read("begun") })
	check(t, agent.Process.Signal(unix.SIGTERM))
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(w.root, "go"), nil, 0o600))
	w.becomes("what the command does then", "\n", func() string { return w.read("done") })
	if got := w.read("var/lib/replug-guest/commands.log"); got != "== upgrade\nunpacking\na warning\n" {
		t.Errorf("it has printed %q", got)
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
	write("etc/dhcp/dhclient.conf", "timeout 300;\nsupersede domain-name-servers 192.0.2.7, fd00::7; # by replug-guest\n") // an earlier agent's
	write("etc/dhcpcd.conf", "hostname\nstatic domain_name_servers=192.0.2.1\n")
	write("etc/systemd/resolved.conf", "")
	write("etc/resolv.conf", "search red.example\nnameserver 10.0.0.53\n")
	d := vnet.Document{DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::9"), netip.MustParseAddr("10.0.0.53")}}
	var s state
	for range 2 {
		check(t, m.apply(&d, &s))
		for path, want := range map[string]string{
			"etc/dhcp/dhclient.conf":                     "timeout 300;\nsupersede domain-name-servers 9.9.9.9, 10.0.0.53; # by replug-guest\nsupersede dhcp6.name-servers 2620:fe::9; # by replug-guest\n",
			"etc/dhcpcd.conf":                            "hostname\nstatic domain_name_servers=192.0.2.1\nstatic domain_name_servers=9.9.9.9 2620:fe::9 10.0.0.53\n",
			"etc/systemd/resolved.conf.d/60-replug.conf": "[Resolve]\nDNS=9.9.9.9 2620:fe::9 10.0.0.53\n",
			"etc/resolv.conf":                            "# of replug-guest's document:\nnameserver 9.9.9.9\nnameserver 2620:fe::9\nnameserver 10.0.0.53\n# end of replug-guest's document\nsearch red.example\nnameserver 10.0.0.53\n",
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
	if b, _ := os.ReadFile(m.path("etc/resolv.conf")); string(b) != "search red.example\nnameserver 10.0.0.53\n" {
		t.Errorf("resolv.conf is %q", b)
	}
}

// Where the agent leases, the document's name servers stand before the leases', whatever
// comes when, also while the rest of the document is being applied; what a lease gives as
// well stays when the document's go.
func TestDNSBesideLeases(t *testing.T) {
	m := image(t)
	names := m.names
	addr := netip.MustParseAddr
	var s state
	document := func(servers ...netip.Addr) {
		t.Helper()
		check(t, m.apply(&vnet.Document{DNS: servers}, &s))
	}
	wants := func(what, want string) {
		t.Helper()
		if b, _ := os.ReadFile(m.path("etc/resolv.conf")); string(b) != "# by replug-guest\n"+want {
			t.Errorf("%s: resolv.conf is %q, want %q", what, b, want)
		}
	}
	names.set4(&lease{dns: []netip.Addr{addr("10.0.0.53")}, domain: "red.example"})
	document(addr("10.0.0.53"))
	wants("one of both", "search red.example\nnameserver 10.0.0.53\n")
	document(addr("9.9.9.9"), addr("10.0.0.53"))
	names.set6([]netip.Addr{addr("fd00:17::53")}) // the state is saved later
	wants("a router speaks meanwhile", "search red.example\nnameserver 9.9.9.9\nnameserver 10.0.0.53\nnameserver fd00:17::53\n")
	document()
	wants("taken back", "search red.example\nnameserver 10.0.0.53\nnameserver fd00:17::53\n")
	document(addr("9.9.9.8"))
	check(t, s.save(m.files))
	m = newMachine(m.root)
	m.names.remember()
	m.names.set6([]netip.Addr{addr("fd00:17::54")})
	wants("after the agent's restart", "nameserver 9.9.9.8\nnameserver fd00:17::54\n")
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

// A tool of the image that notes, each time it is called, what there is below some
// directories, and then does what it does.
func (m machine) spy(t *testing.T, tool string, below ...string) (seen string) {
	t.Helper()
	real, err := exec.LookPath(tool)
	check(t, err)
	dir := t.TempDir()
	seen = filepath.Join(dir, "seen")
	check(t, os.WriteFile(filepath.Join(dir, tool), fmt.Appendf(nil, "#!/bin/sh\ncd %s; find %s >>%s 2>&1\nexec %s \"$@\"\n", m.root, strings.Join(below, " "), seen, real), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return seen
}

// A disk is mounted before anything is put below its path, which it would hide: the
// user's home with the keys, and files. The outer one of two comes first.
func TestDisksComeFirst(t *testing.T) {
	m, s := image(t), &state{}
	seen := m.spy(t, "mkfs.ext4", "home", "srv")
	disk(t, m, "vdb", "vm-93-1", 24)
	disk(t, m, "vdc", "vm-93-2", 24)
	dev := disk(t, m, "vdd", "vm-93-3", 24)
	check(t, os.MkdirAll(m.path("srv/db"), 0o700))
	check(t, os.Chown(m.path("srv/db"), 107, 113))
	d := vnet.Document{Instance: "vm-93", User: "carla", SSHKeys: []string{"ssh-rsa AAAA1"}, Files: []vnet.File{{Path: "/srv/db/app.conf", Content: "port 8443\n"}},
		Disks: []vnet.DataDisk{{ID: "1", Path: "/home/carla"}, {ID: "2", Path: "/home"}, {ID: "3", Path: "/srv/db"}}}
	check(t, m.apply(&d, s))
	if b, _ := os.ReadFile(seen); strings.Count(string(b), "srv/db\n") != 3 || strings.Contains(string(b), ".ssh") || strings.Contains(string(b), "app.conf") {
		t.Errorf("when the disks were formatted there was\n%s", b)
	}
	for path, want := range map[string]string{"home/carla/.ssh/authorized_keys": "ssh-rsa AAAA1\n", "srv/db/app.conf": "port 8443\n"} {
		if b, _ := os.ReadFile(m.path(path)); string(b) != want {
			t.Errorf("%s is %q, want %q", path, b, want)
		}
	}
	b, _ := os.ReadFile(m.path("etc/fstab"))
	if f := strings.Fields(string(b)); len(f) != 18 || f[1] != "/home" || f[7] != "/home/carla" || f[13] != "/srv/db" {
		t.Errorf("fstab is\n%s", b)
	}
	if info, err := os.Stat(m.path("home/carla")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 1002 || info.Mode().Perm() != 0o750 {
		t.Errorf("a new user's home that root has made to mount a disk: %v, %v", info, err)
	}
	if out, _ := exec.Command("debugfs", "-R", "stat <2>", dev).Output(); !regexp.MustCompile(`User: +107 +Group: +113 `).Match(out) {
		t.Errorf("the disk's root is not its mount point's owner's:\n%s", out)
	}
}

// What is below a disk's path is applied to the disk: once, but again to another one that
// is blank, and not beside one that is away.
func TestSettingsBelowADisk(t *testing.T) {
	m, s := image(t), &state{}
	disk(t, m, "vdb", "vm-93-1", 24)
	d := vnet.Document{Instance: "vm-93", Files: []vnet.File{{Path: "/srv/db/app.conf", Content: "port 8443\n"}}, Disks: []vnet.DataDisk{{ID: "1", Path: "/srv"}}}
	is := func(when, want string) {
		t.Helper()
		if b, _ := os.ReadFile(m.path("srv/db/app.conf")); string(b) != want {
			t.Errorf("%s: %q, want %q", when, b, want)
		}
	}
	check(t, m.apply(&d, s))
	is("first", "port 8443\n")
	const own = "port 9443\n"
	check(t, os.WriteFile(m.path("srv/db/app.conf"), []byte(own), 0o600))
	check(t, m.again(&d, s))
	is("again", own)
	check(t, os.Rename(m.path("sys/block/vdb"), m.path("away")))
	if err := m.apply(&d, s); err == nil || !strings.Contains(err.Error(), "disk 1: is not in this machine") {
		t.Errorf("away: %v", err)
	}
	is("away", own)
	check(t, os.Rename(m.path("away"), m.path("sys/block/vdb")))
	check(t, m.apply(&d, s))
	is("back", own)
	check(t, os.Remove(m.path("dev/vdb")))
	disk(t, m, "vdb", "vm-93-1", 24)
	check(t, m.again(&d, s))
	is("another one", "port 8443\n")

	m, s = image(t), &state{}
	if err := m.apply(&d, s); err == nil {
		t.Error("no disk at all: no error")
	}
	is("no disk yet", "port 8443\n")
	check(t, os.Remove(m.path("srv/db/app.conf"))) // hidden by what is mounted now
	disk(t, m, "vdb", "vm-93-1", 24)
	check(t, m.apply(&d, s))
	is("came late", "port 8443\n")
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
