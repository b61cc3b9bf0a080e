package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"replug/directory/vnet"
)

// A win is a machine with Windows. All it does, it does by the documented commands of
// Windows: this file has no build constraint, so that its decisions are tested with
// the commands faked wherever the tests run.
//
// Windows' own DHCP client follows the link: nothing here touches addresses.
type win struct {
	disk files // what documents call "/": the system drive
	own  files // the agent's own
	log  logger
	// run runs a program with additions to its environment and returns what it prints.
	run  func(ctx context.Context, env []string, name string, args ...string) (string, error)
	said bool
}

// setupPoll is how often an unfinished setup is looked at: Windows tells nobody.
const setupPoll = 5 * time.Second

// session waits until Windows has been set up: what is applied before is lost, or
// stops the setup. From then on it is one session: each request to IMDS has a
// connection of its own, so a change of the link needs no notice.
func (w *win) session(ctx context.Context) (context.Context, func(), error) {
	for !w.ready(ctx) {
		if !w.said {
			w.said = true
			w.log.say("waiting for the setup of Windows")
		}
		if pause(ctx, setupPoll); ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	up, cancel := context.WithCancel(ctx)
	return up, cancel, nil
}

// ready asks for the state that setup leaves when it is done ("Windows Setup States").
func (w *win) ready(ctx context.Context) bool {
	out, err := w.run(ctx, nil, "reg", "query", `HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State`, "/v", "ImageState")
	return err == nil && slices.Contains(strings.Fields(out), "IMAGE_STATE_COMPLETE")
}

func (w *win) configure(context.Context, reason) (time.Time, error) { return time.Time{}, nil }

func (w *win) files() files { return w.own }

func (w *win) close() {}

func (w *win) apply(d *vnet.Document, s *state) error {
	return errors.Join(w.again(d, s), w.setDNS(d.DNS, s))
}

func (w *win) again(d *vnet.Document, s *state) error {
	return errors.Join(
		s.once("host name", rootDisk, d.Hostname, func() error { return w.setName(d.Hostname) }),
		w.setUser(d, s),
		s.once("time zone", rootDisk, d.TimeZone, func() error { return w.setTimeZone(d.TimeZone) }),
		w.disk.putFiles(d.Files, s, nil),
		w.refuseDisks(d.Disks))
}

// powershell runs a line. Values go by the environment, never into the line.
func (w *win) powershell(line string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return w.run(ctx, env, "powershell.exe", "-NoProfile", "-NonInteractive", "-Command", "$ErrorActionPreference='Stop'; "+line)
}

func (w *win) uuid() string {
	out, err := w.powershell("(Get-CimInstance Win32_ComputerSystemProduct).UUID")
	if err != nil {
		return ""
	}
	return strings.ToLower(strings.TrimSpace(out))
}

// setName renames the computer. Windows uses the name from its next start on, which
// is left to the owner.
func (w *win) setName(h string) error {
	short, _, _ := strings.Cut(h, ".")
	switch {
	case h == "":
		return nil
	case !isName(h) || len(short) > 15:
		return fmt.Errorf("computer name %q: %w (Windows takes 15 letters, digits and dashes)", h, errInvalid)
	}
	out, err := w.powershell(`(Get-ItemProperty 'HKLM:\SYSTEM\CurrentControlSet\Control\ComputerName\ComputerName').ComputerName`)
	if err == nil && strings.EqualFold(strings.TrimSpace(out), short) {
		return nil
	}
	if _, err := w.powershell("Rename-Computer -NewName $env:REPLUG_NAME -Force", "REPLUG_NAME="+short); err != nil {
		return fmt.Errorf("set computer name %s: %w", short, err)
	}
	w.log.say("computer name %s from the next start on", short)
	return nil
}

// setUser makes the document's user, and takes away the placeholder user that a former
// partial document had made.
func (w *win) setUser(d *vnet.Document, s *state) error {
	if !d.Partial() && s.Placeholder != "" && s.Placeholder != d.User {
		// One that is gone already, by its owner or a session that was cut off, is no error.
		const remove = "if (Get-LocalUser | Where-Object Name -eq $env:REPLUG_USER) { Remove-LocalUser -Name $env:REPLUG_USER }"
		if _, err := w.powershell(remove, "REPLUG_USER="+s.Placeholder); err != nil {
			return fmt.Errorf("remove placeholder user %s: %w", s.Placeholder, err)
		}
		s.Placeholder = ""
		delete(s.Done, "user")
	}
	if d.User == "" {
		return nil
	}
	if !d.Partial() && s.Placeholder == d.User {
		s.Placeholder = "" // it is the customer's now
	}
	return s.once("user", rootDisk, append([]string{d.User, d.PasswordHash}, d.SSHKeys...), func() error { return w.makeUser(d, s) })
}

// makeUser makes the document's user an administrator with the document's keys. Its
// password is drawn and told to nobody: Windows takes no hash of another system.
func (w *win) makeUser(d *vnet.Document, s *state) error {
	switch {
	case !login.MatchString(d.User) || len(d.User) > 20:
		return fmt.Errorf("user %q: %w (want lower-case letters, digits, - and _, at most 20)", d.User, errInvalid)
	case d.PasswordHash != "":
		return fmt.Errorf("password of user %s: Windows takes no hash of crypt(5): use a key, or set it by a command", d.User)
	}
	user := "REPLUG_USER=" + d.User
	if _, err := w.powershell("Get-LocalUser -Name $env:REPLUG_USER", user); err != nil {
		if d.Partial() {
			s.Placeholder = d.User
		}
		if _, err := w.powershell("New-LocalUser -Name $env:REPLUG_USER -PasswordNeverExpires -Password (ConvertTo-SecureString $env:REPLUG_PASSWORD -AsPlainText -Force)",
			user, "REPLUG_PASSWORD=aA1!"+rand.Text()); err != nil {
			return fmt.Errorf("add user %s: %w", d.User, err)
		}
	}
	const administrators = "S-1-5-32-544" // its name is another one in each language
	if _, err := w.powershell("if (-not (Get-LocalGroupMember -SID "+administrators+" | Where-Object Name -like ('*\\' + $env:REPLUG_USER))) "+
		"{ Add-LocalGroupMember -SID "+administrators+" -Member $env:REPLUG_USER }", user); err != nil {
		return fmt.Errorf("make user %s an administrator: %w", d.User, err)
	}
	return w.setKeys(d.SSHKeys)
}

// setKeys lets the keys in as OpenSSH for Windows has it for administrators: one
// file for all, that nobody else may write.
func (w *win) setKeys(keys []string) error {
	for _, k := range keys {
		if k == "" || strings.ContainsAny(k, "\r\n\x00") {
			return fmt.Errorf("ssh key %.20q: %w", k, errInvalid)
		}
	}
	const file = "ProgramData/ssh/administrators_authorized_keys"
	if len(keys) == 0 {
		return nil
	}
	if err := w.disk.write(file, 0o600, []byte(strings.Join(keys, "\n")+"\n")); err != nil {
		return fmt.Errorf("set ssh keys: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := w.run(ctx, nil, "icacls.exe", w.disk.path(file), "/inheritance:r", "/grant", "*S-1-5-32-544:F", "/grant", "*S-1-5-18:F"); err != nil {
		return fmt.Errorf("protect ssh keys: %w", err)
	}
	return nil
}

func (w *win) setTimeZone(tz string) error {
	if tz == "" {
		return nil
	}
	id, ok := windowsZone(tz)
	if !ok {
		return fmt.Errorf("time zone %s has no name of Windows' that this agent knows", tz)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := w.run(ctx, nil, "tzutil", "/g"); err == nil && strings.TrimSpace(out) == id {
		return nil
	}
	if _, err := w.run(ctx, nil, "tzutil", "/s", id); err != nil {
		return fmt.Errorf("set time zone %s (%s): %w", tz, id, err)
	}
	return nil
}

// setDNS puts servers in place of those of the lease; none gives the lease's back.
func (w *win) setDNS(servers []netip.Addr, s *state) error {
	if len(servers) == 0 && len(s.DNS) == 0 {
		return nil
	}
	line := "Set-DnsClientServerAddress -ServerAddresses ($env:REPLUG_DNS -split ',')"
	if len(servers) == 0 {
		line = "Set-DnsClientServerAddress -ResetServerAddresses"
	}
	if _, err := w.powershell("Get-NetAdapter -Physical | Where-Object Status -eq 'Up' | "+line, "REPLUG_DNS="+join(servers, ",")); err != nil {
		return fmt.Errorf("set name servers: %w", err)
	}
	s.DNS = servers
	return nil
}

func (w *win) refuseDisks(disks []vnet.DataDisk) error {
	if len(disks) == 0 {
		return nil
	}
	return fmt.Errorf("disk %s: the agent formats no disks of Windows: use a command", disks[0].ID)
}

// describe fills in the guest's own view, without a boot id: Windows has none.
func (w *win) describe(r *vnet.GuestReport) {
	r.Hostname, _ = os.Hostname()
	r.MAC, r.Addrs = firstNIC()
}

// firstNIC returns the MAC and the addresses of the first NIC that is up.
func firstNIC() (mac string, addrs []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) != 6 {
			continue
		}
		list, _ := i.Addrs()
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				addrs = append(addrs, p.String())
			}
		}
		return i.HardwareAddr.String(), addrs
	}
	return "", nil
}

func (w *win) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "cmd.exe", "/C", line)
	cmd.Dir = filepath.VolumeName(os.Getenv("SystemRoot")) + `\`
	return cmd
}
