package compute

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"replug/directory/vnet"
)

// Bounds of what a guest is told: the document must fit a metadata answer and a
// store's row.
const (
	maxKeys     = 32
	maxKeyBytes = 16 << 10
	maxFiles    = 64
	maxServers  = 3 // resolv.conf(5) reads no more
	maxCommands = 32
	maxDisks    = 16
	maxUserData = 64 << 10  // bytes, as they are
	maxSettings = 192 << 10 // bytes as stored; a transaction holds them three times at most, and etcd takes 1.5 MiB
)

var (
	hostForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)
	userForm = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	hashForm = regexp.MustCompile(`^\$[0-9a-z]{1,8}\$[A-Za-z0-9./$=,_-]{8,250}$`)
	wordForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	zoneForm = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$`)
)

// CheckSettings returns [ErrInvalid] for an owner's settings that a guest can't or
// must not apply.
func CheckSettings(s *vnet.Document) error {
	if s.Hostname != "" && !hostForm.MatchString(s.Hostname) {
		return fmt.Errorf("%w host name %q: letters, digits and dashes, 1 to 63 (RFC 1123)", ErrInvalid, s.Hostname)
	}
	if s.User != "" && !userForm.MatchString(s.User) {
		return fmt.Errorf("%w user %q: lower-case letters, digits, _ and -, 1 to 32, a letter first", ErrInvalid, s.User)
	}
	if s.TimeZone != "" && (len(s.TimeZone) > 64 || !zoneForm.MatchString(s.TimeZone)) {
		return fmt.Errorf("%w time zone %q: write it as in Europe/Berlin", ErrInvalid, s.TimeZone)
	}
	if len(s.SSHKeys) > maxKeys {
		return fmt.Errorf("%w: %d ssh keys; at most %d are allowed", ErrInvalid, len(s.SSHKeys), maxKeys)
	}
	for i, k := range s.SSHKeys {
		if k == "" || len(k) > maxKeyBytes || strings.ContainsAny(k, "\r\n\x00") {
			return fmt.Errorf("%w ssh key %d: must be one line, as in an authorized_keys file", ErrInvalid, i+1)
		}
	}
	if len(s.UserData) > maxUserData {
		return fmt.Errorf("%w: %d bytes of user data; at most %d are allowed: let it fetch the rest", ErrInvalid, len(s.UserData), maxUserData)
	}
	if b, err := json.Marshal(s); err != nil || len(b) > maxSettings {
		return fmt.Errorf("%w: the settings have %d bytes as stored; at most %d are allowed", ErrInvalid, len(b), maxSettings)
	}
	return errors.Join(checkFiles(s.Files), checkPassword(s), checkCommands(s.RunOnce), checkDisks(s.Disks))
}

// checkPassword wants a hash, so that no password is stored that could be read, and
// name servers that a guest can ask.
func checkPassword(s *vnet.Document) error {
	if s.PasswordHash != "" && (s.User == "" || !hashForm.MatchString(s.PasswordHash)) {
		return fmt.Errorf("%w password hash: give a user and a hash as crypt(5) has it, for instance of `openssl passwd -6`", ErrInvalid)
	}
	if len(s.DNS) > maxServers {
		return fmt.Errorf("%w: %d name servers; at most %d are asked", ErrInvalid, len(s.DNS), maxServers)
	}
	for _, a := range s.DNS {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("%w name server %s: give the address of one", ErrInvalid, a)
		}
	}
	return nil
}

func checkCommands(commands []vnet.Command) error {
	if len(commands) > maxCommands {
		return fmt.Errorf("%w: %d commands to run once; at most %d are allowed", ErrInvalid, len(commands), maxCommands)
	}
	seen := map[string]bool{}
	for _, c := range commands {
		if !wordForm.MatchString(c.ID) || seen[c.ID] || c.Command == "" || strings.ContainsRune(c.Command, 0) {
			return fmt.Errorf("%w command %q to run once: give it an id of its own, a word, and a line for the shell", ErrInvalid, c.ID)
		}
		seen[c.ID] = true
	}
	return nil
}

func checkDisks(disks []vnet.DataDisk) error {
	if len(disks) > maxDisks {
		return fmt.Errorf("%w: %d extra disks to mount; at most %d are allowed", ErrInvalid, len(disks), maxDisks)
	}
	seen := map[string]bool{}
	for _, d := range disks {
		clean := d.Path == "" || path.IsAbs(d.Path) && path.Clean(d.Path) == d.Path && d.Path != "/" && !strings.ContainsAny(d.Path, " \t\r\n\\\x00")
		if !wordForm.MatchString(d.ID) || d.ID == "0" || seen[d.ID] || !clean {
			return fmt.Errorf("%w extra disk %q at %q: give its number, from 1 up, and an absolute path without spaces", ErrInvalid, d.ID, d.Path)
		}
		seen[d.ID] = true
	}
	return nil
}

func checkFiles(files []vnet.File) error {
	if len(files) > maxFiles {
		return fmt.Errorf("%w: %d files; at most %d are allowed", ErrInvalid, len(files), maxFiles)
	}
	for _, f := range files {
		if err := f.Check(); err != nil {
			return fmt.Errorf("%w file %w", ErrInvalid, err)
		}
	}
	return nil
}
