package guest

import (
	"os"
	"strings"
	"testing"

	"replug/directory/vnet"
)

// sold is a machine to whom its owner's settings were applied, and what is remembered of it.
func sold(t *testing.T) (machine, *vnet.Document, *state) {
	t.Helper()
	m, s := image(t), &state{}
	d := &vnet.Document{Epoch: vnet.NewEpoch(3, 7), Hostname: "web-3", TimeZone: "Europe/Vienna", User: "carla", SSHKeys: []string{"ssh-rsa AAAA1"},
		PasswordHash: "$6$saltsalt$aB3./xyz", Files: []vnet.File{{Path: "/etc/app.conf", Content: "port 8443\n"}}}
	check(t, m.apply(d, s))
	return m, d, s
}

// Where the owner's own changes are.
var owned = map[string]string{
	"home/carla/.ssh/authorized_keys": "ssh-rsa AAAA7 of the owner\n",
	"etc/shadow":                      "root:*:19000::::::\ncarla:$6$other$own5own5own5:19321:0:99999:7:::\n",
	"etc/app.conf":                    "port 9443\n",
	"etc/hostname":                    "shop\n",
	"etc/timezone":                    "Etc/UTC\n",
}

func (m machine) change(t *testing.T) {
	t.Helper()
	for path, content := range owned {
		check(t, os.WriteFile(m.path(path), []byte(content), 0o600))
	}
}

// differs returns the paths at which something else is than the owner has put there.
func (m machine) differs() (paths []string) {
	for path, content := range owned {
		if b, _ := os.ReadFile(m.path(path)); string(b) != content {
			paths = append(paths, path)
		}
	}
	return paths
}

// What an owner has changed since, a key that was taken away, a password, a file, is not
// set back by the swaps that follow: their documents say what was applied already.
func TestOwnersChangesStay(t *testing.T) {
	m, d, s := sold(t)
	m.change(t)
	for range 2 {
		d.Epoch = d.Epoch.Next()
		check(t, m.apply(d, s))
		check(t, m.again(d, s))
		if got := m.differs(); len(got) > 0 {
			t.Errorf("epoch %s has set back %s", d.Epoch, got)
		}
		check(t, s.save(m.files))
		loaded, err := loadState(m.files) // as after a reboot
		check(t, err)
		s = loaded
	}
	check(t, os.Remove(m.path("home/carla/.ssh/authorized_keys")))
	d.Epoch = d.Epoch.Next()
	check(t, m.apply(d, s))
	if _, err := os.Stat(m.path("home/carla/.ssh/authorized_keys")); err == nil {
		t.Error("all keys were taken away, and are back")
	}
}

// A document that says something else is applied, as far as it does, and so is the
// former one when the swap is undone.
func TestChangedSettingIsApplied(t *testing.T) {
	m, d, s := sold(t)
	m.change(t)
	next := *d
	next.Epoch, next.SSHKeys, next.Hostname = d.Epoch.Next(), []string{"ssh-rsa AAAA5"}, "web-5"
	check(t, m.apply(&next, s))
	for path, want := range map[string]string{"home/carla/.ssh/authorized_keys": "ssh-rsa AAAA5\n", "etc/hostname": "web-5\n",
		"etc/shadow": owned["etc/shadow"], "etc/app.conf": owned["etc/app.conf"], "etc/timezone": owned["etc/timezone"]} {
		if b, _ := os.ReadFile(m.path(path)); string(b) != want {
			t.Errorf("%s is %q, want %q", path, b, want)
		}
	}
	undone := *d
	undone.Epoch = next.Epoch.Next()
	check(t, m.apply(&undone, s))
	for path, want := range map[string]string{"home/carla/.ssh/authorized_keys": "ssh-rsa AAAA1\n", "etc/hostname": "web-3\n", "etc/app.conf": owned["etc/app.conf"]} {
		if b, _ := os.ReadFile(m.path(path)); string(b) != want {
			t.Errorf("undone: %s is %q, want %q", path, b, want)
		}
	}
}

// What could not be applied is applied by the next document that says so.
func TestFailedSettingIsAppliedLater(t *testing.T) {
	m, s := image(t), &state{}
	d := &vnet.Document{Files: []vnet.File{{Path: "/srv/app/a", Content: "a"}, {Path: "/etc/b", Content: "b"}}}
	check(t, os.WriteFile(m.path("srv"), nil, 0o600)) // no directory can be made there
	if err := m.apply(d, s); err == nil || !strings.Contains(err.Error(), "write /srv/app/a") {
		t.Fatalf("%v", err)
	}
	check(t, os.Remove(m.path("srv")))
	check(t, os.Remove(m.path("etc/b")))
	check(t, m.apply(d, s))
	if b, _ := os.ReadFile(m.path("srv/app/a")); string(b) != "a" {
		t.Errorf("what had failed is %q", b)
	}
	if _, err := os.Stat(m.path("etc/b")); err == nil {
		t.Error("what had not is applied again")
	}
	half := vnet.Document{Files: []vnet.File{{Path: "/srv/app/a", Content: "half"}}}
	check(t, os.Remove(m.path("srv/app/a")))
	check(t, os.Mkdir(m.path("srv/app/a"), 0o700))
	if err := m.apply(&half, s); err == nil {
		t.Fatal("a file took a directory's place")
	}
	check(t, os.Remove(m.path("srv/app/a")))
	check(t, m.apply(d, s))
	if b, _ := os.ReadFile(m.path("srv/app/a")); string(b) != "a" {
		t.Errorf("after a later document's failure: %q", b)
	}
}

// What was applied to the machine of which the image was made, or to a user who is gone,
// is not taken for this one's.
func TestOnceIsOfThisMachineAndUser(t *testing.T) {
	m, d, s := sold(t)
	m.change(t)
	s.settle("", "vm-17")
	check(t, m.apply(d, s))
	s.settle("", "vm-93")
	check(t, m.apply(d, s))
	if b, _ := os.ReadFile(m.path("home/carla/.ssh/authorized_keys")); string(b) != "ssh-rsa AAAA1\n" {
		t.Errorf("another machine's keys: %q", b)
	}
	pool := vnet.Document{Tag: vnet.TagPartial, User: "dora", PasswordHash: d.PasswordHash}
	m, s = image(t), &state{}
	later := pool
	later.Tag = ""
	for _, d := range []*vnet.Document{&pool, {}, &later} {
		check(t, m.apply(d, s))
	}
	if _, ok, err := m.user("dora"); !ok || err != nil {
		t.Errorf("the user is not made anew: %v", err)
	}
	if b, _ := os.ReadFile(m.path("etc/shadow")); !strings.Contains(string(b), "dora:"+pool.PasswordHash) {
		t.Errorf("shadow:\n%s", b)
	}
}

// An agent before this one remembered only which document it had applied: what that
// says counts as applied.
func TestEarlierAgentsStateIsTakenOver(t *testing.T) {
	w := newWorld(t)
	m := newMachine(w.root)
	check(t, os.MkdirAll(m.path("home/anna/.ssh"), 0o700))
	check(t, os.MkdirAll(m.path("etc"), 0o755))
	check(t, os.WriteFile(m.path("etc/passwd"), []byte("anna:x:1007:1007::/home/anna:/bin/sh\n"), 0o644))
	own := owned["home/carla/.ssh/authorized_keys"]
	check(t, os.WriteFile(m.path("home/anna/.ssh/authorized_keys"), []byte(own), 0o600))
	check(t, (&state{Epoch: bought.Epoch, Kind: vnet.ReportFinal}).save(m.files))
	w.publish(bought)
	w.start()
	next(t, w.reports, "report on what an earlier agent has applied")
	d := bought
	d.Epoch, d.Hostname = d.Epoch.Next(), "web-5"
	w.publish(d)
	if r := next(t, w.reports, "report on the next document"); !r.OK || r.Hostname != "web-5" {
		t.Errorf("report %+v", r)
	}
	if got := w.read("home/anna/.ssh/authorized_keys"); got != own {
		t.Errorf("keys are %q", got)
	}
}
