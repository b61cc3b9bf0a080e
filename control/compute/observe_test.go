package compute

import (
	"net/netip"
	"testing"
	"time"

	"replug/directory/vnet"
)

// Invariant 11, S37, S39, S41, S46: partial and final success are never mixed.
func TestObserve(t *testing.T) {
	epoch := vnet.NewEpoch(3, 90)
	intent := func(tag string) *vnet.Intent {
		return &vnet.Intent{Host: "h7", Current: vnet.Place{Epoch: epoch, Document: &vnet.Document{Tag: tag}}}
	}
	report := func(kind string, ok bool, e vnet.Epoch) *vnet.GuestReport {
		return &vnet.GuestReport{Epoch: e, Kind: kind, OK: ok, Error: "no space", BootID: "b7"}
	}
	status := func(g *vnet.GuestReport) vnet.Status {
		return vnet.Status{Epoch: epoch, Phase: vnet.StatusConfirmed, Power: vnet.PowerOn, Guest: g}
	}
	for _, c := range []struct {
		name    string
		phase   Phase
		tag     string
		status  vnet.Status
		want    Phase
		changed bool
	}{
		{"partial success of a pooled VM", Creating, vnet.TagPartial, status(report(vnet.ReportPartial, true, epoch)), Pooled, true},
		{"final success of an owner's VM", Creating, "", status(report(vnet.ReportFinal, true, epoch)), Ready, true},
		{"final report of a VM that is to wait", Creating, vnet.TagPartial, status(report(vnet.ReportFinal, true, epoch)), Creating, true},
		{"partial report of an owner's VM", Creating, "", status(report(vnet.ReportPartial, true, epoch)), Creating, true},
		{"report of an older epoch", Creating, "", status(report(vnet.ReportFinal, true, epoch-1)), Creating, false},
		{"status of an older epoch", Creating, "", vnet.Status{Epoch: epoch - 1, Guest: report(vnet.ReportFinal, true, epoch-1)}, Creating, false},
		{"leased but silent", Creating, "", vnet.Status{Epoch: epoch, Phase: vnet.StatusLeased}, Creating, false},
		{"guest failed", Creating, "", status(report(vnet.ReportFinal, false, epoch)), Failed, true},
		{"host can't run it", Creating, "", vnet.Status{Epoch: epoch, Phase: vnet.StatusFailed, Power: vnet.PowerAbsent, Error: "no image"}, Failed, true},
		{"no lease yet, host goes on", Creating, "", vnet.Status{Epoch: epoch, Phase: vnet.StatusFailed, Power: vnet.PowerOn, Error: "no lease"}, Creating, true},
		{"slow guest makes it after all", Failed, "", status(report(vnet.ReportFinal, true, epoch)), Ready, true},
		{"pooled VM stops", Pooled, vnet.TagPartial, vnet.Status{Epoch: epoch, Power: vnet.PowerOff}, Failed, true},
		{"ready VM stops", Ready, "", vnet.Status{Epoch: epoch, Power: vnet.PowerOff}, Stopped, true},
		{"an older epoch's status says off", Ready, "", vnet.Status{Epoch: epoch - 1, Power: vnet.PowerOff}, Ready, false},
		{"stopped VM starts", Stopped, "", vnet.Status{Epoch: epoch, Power: vnet.PowerOn}, Ready, true},
		{"ready VM goes on", Ready, "", vnet.Status{Epoch: epoch, Power: vnet.PowerOn, Phase: vnet.StatusConfirmed}, Ready, false},
		{"claimed VM is the swap's", Claimed, "", status(report(vnet.ReportFinal, true, epoch)), Claimed, false},
		{"deleted VM stays deleted", Deleting, "", status(report(vnet.ReportFinal, true, epoch)), Deleting, false},
	} {
		got, changed := Observe(VM{Phase: c.phase}, intent(c.tag), c.status, time.Unix(1700000000, 0))
		if got.Phase != c.want || changed != c.changed {
			t.Errorf("%s: got %s, changed %t; want %s, %t", c.name, got.Phase, changed, c.want, c.changed)
		}
		again, twice := Observe(got, intent(c.tag), c.status, time.Unix(1700000001, 0))
		if twice && c.changed {
			t.Errorf("%s: the same status again changes %+v to %+v", c.name, got, again)
		}
	}
}

// S81: a guest that fails later is told of, and forgiven when it succeeds.
func TestObserveLaterReports(t *testing.T) {
	e := vnet.NewEpoch(2, 7)
	in := &vnet.Intent{Current: vnet.Place{Epoch: e, Document: &vnet.Document{}}}
	said := func(ok bool, why string) vnet.Status {
		return vnet.Status{Epoch: e, Power: vnet.PowerOn, Guest: &vnet.GuestReport{Epoch: e, Kind: vnet.ReportFinal, OK: ok, Error: why}}
	}
	vm, changed := Observe(VM{Phase: Ready}, in, said(false, "hostname: read-only file system"), time.Now())
	if !changed || vm.Phase != Ready || vm.Error == "" {
		t.Errorf("failed report: %+v, changed %t", vm, changed)
	}
	vm, changed = Observe(vm, in, said(true, ""), time.Now())
	if !changed || vm.Error != "" {
		t.Errorf("success after it: %+v, changed %t", vm, changed)
	}
	vm, changed = Observe(vm, in, said(true, "command app: exit status 3"), time.Now())
	if !changed || vm.Phase != Ready || vm.Error != "the guest has its settings, but says: command app: exit status 3" {
		t.Errorf("a command that failed after its success: %+v, changed %t", vm, changed)
	}
	vm, _ = Observe(VM{Phase: Creating}, in, said(true, "command app: exit status 3"), time.Now())
	if vm.Phase != Ready || vm.Error == "" {
		t.Errorf("both in one: %+v", vm)
	}
}

func TestCheckSettings(t *testing.T) {
	long := make([]byte, maxSettings)
	for _, c := range []struct {
		name string
		s    vnet.Document
		ok   bool
	}{
		{"nothing said", vnet.Document{}, true},
		{"all said", vnet.Document{Hostname: "web-1", User: "alice_7", TimeZone: "America/Argentina/Ushuaia", SSHKeys: []string{"ssh-ed25519 AAAA a"},
			Files: []vnet.File{{Path: "/etc/motd", Mode: 0o640, Content: "hi"}}, PasswordHash: "$6$saltsalt$aB3./xyz",
			DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::9")}, RunOnce: []vnet.Command{{ID: "a", Command: "echo 1\necho 2"}},
			Disks: []vnet.DataDisk{{ID: "1", Path: "/srv/db"}, {ID: "2"}}}, true},
		{"password instead of its hash", vnet.Document{User: "ann", PasswordHash: "secret"}, false},
		{"hash that ends its line", vnet.Document{User: "ann", PasswordHash: "$6$saltsalt$aB3\nroot::0:"}, false},
		{"hash of nobody", vnet.Document{PasswordHash: "$6$saltsalt$aB3./xyz"}, false},
		{"name server that is none", vnet.Document{DNS: []netip.Addr{netip.IPv4Unspecified()}}, false},
		{"command without an id", vnet.Document{RunOnce: []vnet.Command{{Command: "true"}}}, false},
		{"two commands of one id", vnet.Document{RunOnce: []vnet.Command{{ID: "a", Command: "true"}, {ID: "a", Command: "false"}}}, false},
		{"the OS disk as a data disk", vnet.Document{Disks: []vnet.DataDisk{{ID: "0", Path: "/srv"}}}, false},
		{"disk over the root", vnet.Document{Disks: []vnet.DataDisk{{ID: "1", Path: "/"}}}, false},
		{"disk path of two fields", vnet.Document{Disks: []vnet.DataDisk{{ID: "1", Path: "/a defaults 0 0"}}}, false},
		{"host name with a dot", vnet.Document{Hostname: "web.1"}, false},
		{"user that is a path", vnet.Document{User: "../root"}, false},
		{"time zone that is a path", vnet.Document{TimeZone: "../../etc/passwd"}, false},
		{"key of two lines", vnet.Document{SSHKeys: []string{"ssh-rsa A\nssh-rsa B"}}, false},
		{"relative path", vnet.Document{Files: []vnet.File{{Path: "etc/motd"}}}, false},
		{"path with ..", vnet.Document{Files: []vnet.File{{Path: "/etc/../motd"}}}, false},
		{"set-uid file", vnet.Document{Files: []vnet.File{{Path: "/bin/su", Mode: 0o4755}}}, false},
		{"sticky file", vnet.Document{Files: []vnet.File{{Path: "/srv/x", Mode: 0o1777}}}, false},
		{"path of a drive", vnet.Document{Files: []vnet.File{{Path: "/C:/boot.ini"}}}, false},
		{"path with a backslash", vnet.Document{Files: []vnet.File{{Path: `/..\boot.ini`}}}, false},
		{"mode with a file type", vnet.Document{Files: []vnet.File{{Path: "/etc/motd", Mode: 0o100644}}}, false},
		{"too much", vnet.Document{Files: []vnet.File{{Path: "/big", Content: string(long)}}}, false},
	} {
		if err := CheckSettings(&c.s); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A guest that never reports has succeeded when it was seen: in the pool as well as
// with its owner. What it might say by itself is nobody's word.
func TestObserveSilent(t *testing.T) {
	epoch := vnet.NewEpoch(3, 90)
	for _, c := range []struct {
		personality vnet.Personality
		tag         string
		phase       vnet.StatusPhase
		power       vnet.Power
		want        Phase
	}{
		{vnet.PersonalityPlain, vnet.TagPartial, vnet.StatusLeased, vnet.PowerOn, Pooled},
		{vnet.PersonalityPlain, "", vnet.StatusPublished, vnet.PowerOn, Ready},
		{vnet.PersonalityOpenStack, "", vnet.StatusLeased, vnet.PowerOn, Ready},
		{vnet.PersonalityPlain, vnet.TagPartial, vnet.StatusFlipped, vnet.PowerOn, Creating},
		{vnet.PersonalityPlain, vnet.TagPartial, vnet.StatusFailed, vnet.PowerOn, Creating},
		{vnet.PersonalityPlain, vnet.TagPartial, vnet.StatusLeased, vnet.PowerOff, Creating},
		{vnet.PersonalityCloudInit, vnet.TagPartial, vnet.StatusPublished, vnet.PowerOn, Creating},
		{vnet.PersonalityAgent, vnet.TagPartial, vnet.StatusPublished, vnet.PowerOn, Creating},
	} {
		in := &vnet.Intent{Host: "h7", Current: vnet.Place{Epoch: epoch, Document: &vnet.Document{Tag: c.tag}}}
		got, _ := Observe(VM{Phase: Creating, Personality: c.personality}, in, vnet.Status{Epoch: epoch, Phase: c.phase, Power: c.power}, time.Unix(1700000000, 0))
		if got.Phase != c.want {
			t.Errorf("%s, %q, %s: %s, want %s", c.personality, c.tag, c.phase, got.Phase, c.want)
		}
	}
}
