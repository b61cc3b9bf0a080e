package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/vnet"
)

// A fake answers for Windows' commands, and remembers them.
type fake struct {
	t     *testing.T
	users map[string]bool
	admin map[string]bool
	name  string
	zone  string
	image string
	setUp time.Time // when the setup ends, if it does
	fails string    // a command with this in it fails
	ran   []string
}

func (f *fake) run(_ context.Context, env []string, name string, args ...string) (string, error) {
	line := strings.TrimPrefix(strings.Join(args, " "), "-NoProfile -NonInteractive -Command $ErrorActionPreference='Stop'; ")
	value := func(key string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, "REPLUG_"+key+"="); ok {
				return v
			}
		}
		f.t.Errorf("%s %s: no REPLUG_%s", name, line, key)
		return ""
	}
	if f.fails != "" && strings.Contains(line, f.fails) {
		return "", errors.New("access is denied")
	}
	for _, e := range env {
		if _, v, _ := strings.Cut(e, "="); v != "" && name == "powershell.exe" && strings.Contains(line, v) {
			f.t.Errorf("the value %s stands in the line %s", v, line)
		}
	}
	if !strings.HasPrefix(line, "(Get-") && !strings.HasPrefix(line, "Get-LocalUser") && line != "/g" && name != "reg" {
		f.ran = append(f.ran, strings.TrimSpace(name+" "+line))
	}
	switch {
	case name == "reg":
		if !f.setUp.IsZero() && !time.Now().Before(f.setUp) {
			return "\r\n    ImageState    REG_SZ    IMAGE_STATE_COMPLETE\r\n", nil
		}
		return "\r\n    ImageState    REG_SZ    " + f.image + "\r\n", nil
	case name == "tzutil" && args[0] == "/g":
		return f.zone, nil
	case name == "tzutil":
		f.zone = args[1]
	case strings.Contains(line, "ComputerName')"):
		return f.name + "\r\n", nil
	case strings.HasPrefix(line, "Rename-Computer"):
		f.name = value("NAME")
	case strings.HasPrefix(line, "Get-LocalUser"):
		if !f.users[value("USER")] {
			return "", errors.New("user was not found")
		}
	case strings.HasPrefix(line, "New-LocalUser"):
		if p := value("PASSWORD"); len(p) < 20 {
			f.t.Errorf("password %q", p)
		}
		f.users[value("USER")] = true
	case strings.Contains(line, "Remove-LocalUser"):
		asks := strings.HasPrefix(line, "if (Get-LocalUser | Where-Object Name -eq $env:REPLUG_USER) {")
		if !f.users[value("USER")] && !asks {
			return "", errors.New("user was not found")
		}
		delete(f.users, value("USER"))
	case strings.Contains(line, "Add-LocalGroupMember"):
		f.admin[value("USER")] = true
	}
	return "", nil
}

func newWin(t *testing.T) (*win, *fake) {
	f := &fake{t: t, users: map[string]bool{}, admin: map[string]bool{}, name: "WIN-7H2K", zone: "UTC", image: "IMAGE_STATE_COMPLETE"}
	root := t.TempDir()
	return &win{disk: files{root}, own: files{filepath.Join(root, "ProgramData/Replug")}, log: newLogger(io.Discard), run: f.run}, f
}

// A claimed VM with Windows gets what its document says, by the documented commands,
// and a second time none of them runs again.
func TestWindowsApply(t *testing.T) {
	w, f := newWin(t)
	var s state
	pooled := vnet.Document{Epoch: vnet.NewEpoch(3, 6), Tag: vnet.TagPartial, Hostname: "pool-93", User: "placeholder"}
	if err := w.apply(&pooled, &s); err != nil || s.Placeholder != "placeholder" || f.name != "pool-93" {
		t.Fatalf("partial: %v, placeholder %q, name %s", err, s.Placeholder, f.name)
	}
	d := vnet.Document{Epoch: vnet.NewEpoch(3, 7), Hostname: "web-1.shop.example", User: "anna", SSHKeys: []string{"ssh-ed25519 AAAAanna"},
		TimeZone: "Europe/Zurich", DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Files: []vnet.File{{Path: "/ProgramData/app/port", Content: "8443"}}}
	f.ran = nil
	check(t, w.apply(&d, &s))
	want := []string{
		"powershell.exe Rename-Computer -NewName $env:REPLUG_NAME -Force",
		"powershell.exe if (Get-LocalUser | Where-Object Name -eq $env:REPLUG_USER) { Remove-LocalUser -Name $env:REPLUG_USER }",
		"powershell.exe New-LocalUser -Name $env:REPLUG_USER -PasswordNeverExpires -Password (ConvertTo-SecureString $env:REPLUG_PASSWORD -AsPlainText -Force)",
		"powershell.exe if (-not (Get-LocalGroupMember -SID S-1-5-32-544 | Where-Object Name -like ('*\\' + $env:REPLUG_USER))) { Add-LocalGroupMember -SID S-1-5-32-544 -Member $env:REPLUG_USER }",
		"icacls.exe " + w.disk.path("ProgramData/ssh/administrators_authorized_keys") + " /inheritance:r /grant *S-1-5-32-544:F /grant *S-1-5-18:F",
		"tzutil /s W. Europe Standard Time",
		"powershell.exe Get-NetAdapter -Physical | Where-Object Status -eq 'Up' | Set-DnsClientServerAddress -ServerAddresses ($env:REPLUG_DNS -split ',')",
	}
	if !slices.Equal(f.ran, want) {
		t.Errorf("ran\n%s\nwant\n%s", strings.Join(f.ran, "\n"), strings.Join(want, "\n"))
	}
	if !f.users["anna"] || f.users["placeholder"] || !f.admin["anna"] || f.name != "web-1" || s.Placeholder != "" {
		t.Errorf("users %v, administrators %v, name %s", f.users, f.admin, f.name)
	}
	for file, content := range map[string]string{"ProgramData/app/port": "8443", "ProgramData/ssh/administrators_authorized_keys": "ssh-ed25519 AAAAanna\n"} {
		if b, _ := os.ReadFile(w.disk.path(file)); string(b) != content {
			t.Errorf("%s is %q", file, b)
		}
	}
	f.ran = nil
	own := w.disk.path("ProgramData/ssh/administrators_authorized_keys")
	check(t, os.WriteFile(own, []byte("ssh-rsa AAAA of the owner\n"), 0o600))
	check(t, w.apply(&d, &s))
	if !slices.Equal(f.ran, want[6:]) { // name servers are for the network's sake
		t.Errorf("again:\n%s", strings.Join(f.ran, "\n"))
	}
	if b, _ := os.ReadFile(own); string(b) != "ssh-rsa AAAA of the owner\n" {
		t.Errorf("again: keys are %q", b)
	}
}

// What Windows can't do, or must not, is an error that says so; the rest is done.
func TestWindowsRefuses(t *testing.T) {
	for _, c := range []struct {
		doc  vnet.Document
		says string
	}{
		{vnet.Document{Hostname: "a-name-of-16-chrs"}, "Windows takes 15"},
		{vnet.Document{Hostname: "$(calc)"}, "not valid"},
		{vnet.Document{User: "a;b"}, "not valid"},
		{vnet.Document{User: "anna", PasswordHash: "$6$saltsalt$aB3./xyz"}, "no hash of crypt(5)"},
		{vnet.Document{User: "anna", SSHKeys: []string{"a\nb"}}, "ssh key"},
		{vnet.Document{TimeZone: "Mars/Olympus"}, "no name of Windows'"},
		{vnet.Document{Disks: []vnet.DataDisk{{ID: "1"}}}, "formats no disks"},
		{vnet.Document{Files: []vnet.File{{Path: `/..\..\boot.ini`}}}, "not a file's path"},
		{vnet.Document{Files: []vnet.File{{Path: "/C:/x"}}}, "not a file's path"},
	} {
		w, _ := newWin(t)
		c.doc.Files = append(c.doc.Files, vnet.File{Path: "/done", Content: "yes"})
		err := w.apply(&c.doc, &state{})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.doc, err, c.says)
		}
		if b, _ := os.ReadFile(w.disk.path("done")); string(b) != "yes" {
			t.Errorf("%+v: the file after it is %q", c.doc, b)
		}
	}
	w, f := newWin(t)
	f.fails = "New-LocalUser"
	if err := w.apply(&vnet.Document{User: "anna"}, &state{}); err == nil || !strings.Contains(err.Error(), "add user anna: access is denied") {
		t.Errorf("a command that fails: %v", err)
	}
}

// A placeholder that is gone already stops nothing, now or at the next document.
func TestWindowsPlaceholderIsGone(t *testing.T) {
	w, f := newWin(t)
	s := state{Placeholder: "placeholder"}
	if err := w.apply(&vnet.Document{User: "anna"}, &s); err != nil || !f.admin["anna"] || s.Placeholder != "" {
		t.Errorf("%v, administrators %v, placeholder %q", err, f.admin, s.Placeholder)
	}
	f.users["placeholder"], f.fails, s.Placeholder = true, "Remove-LocalUser", "placeholder"
	if err := w.apply(&vnet.Document{User: "anna"}, &s); err == nil || !f.users["placeholder"] || s.Placeholder == "" {
		t.Errorf("one that can't be removed: %v, placeholder %q", err, s.Placeholder)
	}
}

// The session that waits for the setup begins when that is done, and says so once.
func TestWindowsSetupEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := newWin(t)
		var said strings.Builder
		start := time.Now()
		w.log, f.image, f.setUp = newLogger(&said), "IMAGE_STATE_UNDEPLOYABLE", start.Add(3*setupPoll+time.Millisecond)
		_, end, err := w.session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end()
		if took := time.Since(start); took != 4*setupPoll || strings.Count(said.String(), "waiting for the setup") != 1 {
			t.Errorf("begun %s after the start, said %q", took, said.String())
		}
	})
}

// S44: nothing is applied while Windows' setup runs: the session begins when it is done.
func TestWindowsWaitsForSetup(t *testing.T) {
	w, f := newWin(t)
	f.image = "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE"
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan error, 1)
	go func() {
		_, _, err := w.session(ctx)
		begun <- err
	}()
	select {
	case err := <-begun:
		t.Errorf("the session began during setup: %v", err)
	default:
	}
	cancel()
	if err := <-begun; !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	f.image = "IMAGE_STATE_COMPLETE"
	if _, end, err := w.session(t.Context()); err != nil {
		t.Error(err)
	} else {
		end()
	}
}

// Each zone has one name of Windows', and each line of the table is whole.
func TestWindowsZones(t *testing.T) {
	seen := map[string]string{}
	for line := range strings.Lines(zones) {
		id, names, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || names == "" {
			t.Errorf("line %q", line)
		}
		for name := range strings.FieldsSeq(names) {
			if seen[name] != "" {
				t.Errorf("%s is %s and %s", name, seen[name], id)
			}
			seen[name] = id
		}
	}
	for tz, want := range map[string]string{"Asia/Tokyo": "Tokyo Standard Time", "America/New_York": "Eastern Standard Time", "UTC": "UTC"} {
		if got, ok := windowsZone(tz); !ok || got != want {
			t.Errorf("%s: %q", tz, got)
		}
	}
	if len(seen) < 250 {
		t.Errorf("only %s zones", fmt.Sprint(len(seen)))
	}
}
