package guest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"replug/directory/vnet"
)

// An account is a line of /etc/passwd.
type account struct {
	name     string
	uid, gid int
	home     string
}

// setUser makes the document's user, with its keys and its password, if any, and takes away
// the placeholder user that a former partial document had made.
func (m machine) setUser(d *vnet.Document, s *state, on mounts) error {
	if !d.Partial() && s.Placeholder != "" && s.Placeholder != d.User {
		if err := m.removeUser(s.Placeholder); err != nil {
			return fmt.Errorf("remove placeholder user %s: %w", s.Placeholder, err)
		}
		s.Placeholder = ""
		delete(s.Done, "user")
		delete(s.Done, "password")
	}
	if d.User == "" {
		return nil
	}
	if !d.Partial() && s.Placeholder == d.User {
		s.Placeholder = "" // it is the customer's now
	}
	u, _, err := m.user(d.User)
	if err != nil {
		return fmt.Errorf("look for user %s: %w", d.User, err)
	}
	home := cmp.Or(u.home, homeOf(d.User))
	if err := s.once("user", on.of(home), append([]string{d.User}, d.SSHKeys...), func() error { return m.makeUser(d, s) }); err != nil {
		return err
	}
	if d.PasswordHash == "" {
		return nil // the password stays as it is
	}
	return s.once("password", rootDisk, []string{d.User, d.PasswordHash}, func() error { return m.setPassword(d.User, d.PasswordHash) })
}

// makeUser makes the document's user, unless it is there, and its keys the only ones.
func (m machine) makeUser(d *vnet.Document, s *state) error {
	if !login.MatchString(d.User) {
		return fmt.Errorf("user %q: %w (want lower-case letters, digits, - and _)", d.User, errInvalid)
	}
	for _, k := range d.SSHKeys {
		if k == "" || strings.ContainsAny(k, "\r\n\x00") {
			return fmt.Errorf("ssh key %.20q of user %s: %w", k, d.User, errInvalid)
		}
	}
	u, ok, err := m.user(d.User)
	if err == nil && !ok {
		u, err = m.addUser(d.User)
		if d.Partial() {
			s.Placeholder = d.User
		}
	}
	if err != nil {
		return fmt.Errorf("add user %s: %w", d.User, err)
	}
	if err := m.setKeys(u, d.SSHKeys); err != nil {
		return fmt.Errorf("set ssh keys of user %s: %w", d.User, err)
	}
	return nil
}

// crypted is a password hash as crypt(5) has it: nothing that could end its field.
var crypted = regexp.MustCompile(`^\$[0-9a-z]{1,8}\$[A-Za-z0-9./$=,_-]{8,250}$`)

// setPassword makes hash the user's.
func (m machine) setPassword(name, hash string) error {
	if !crypted.MatchString(hash) {
		return fmt.Errorf("password hash of user %s: %w (want one of crypt(5), as `openssl passwd -6` prints it)", name, errInvalid)
	}
	err := m.edit("etc/shadow", 0o640, func(lines []string) []string {
		for i, l := range lines {
			if f := strings.Split(l, ":"); len(f) == 9 && f[0] == name {
				f[1] = hash
				lines[i] = strings.Join(f, ":")
				return lines
			}
		}
		return append(lines, name+":"+hash+":19000:0:99999:7:::")
	})
	if err != nil {
		return fmt.Errorf("set password of user %s: %w", name, err)
	}
	return nil
}

// user finds name in /etc/passwd.
func (m machine) user(name string) (account, bool, error) {
	b, err := os.ReadFile(m.path("etc/passwd"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return account{}, false, err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(l, "\n"), ":")
		if len(f) != 7 || f[0] != name {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err := errors.Join(err1, err2); err != nil {
			return account{}, false, fmt.Errorf("/etc/passwd: %w", err)
		}
		return account{name, uid, gid, f[5]}, true, nil
	}
	return account{}, false, nil
}

// addUser adds a user with a group of the same number. "*" in /etc/shadow is a
// password that nothing matches; "!" would make sshd refuse keys too where PAM is off.
func (m machine) addUser(name string) (account, error) {
	id, err := m.freeID()
	if err != nil {
		return account{}, err
	}
	shell := "/bin/sh"
	if _, err := os.Stat(m.path("bin/bash")); err == nil {
		shell = "/bin/bash"
	}
	u := account{name, id, id, homeOf(name)}
	if err := m.makeHome(u); err != nil {
		return account{}, err
	}
	add := func(line string) func([]string) []string {
		return func(lines []string) []string { return append(without(lines, name), line) }
	}
	return u, errors.Join(
		m.edit("etc/group", 0o644, add(fmt.Sprintf("%s:x:%d:", name, id))),
		m.edit("etc/shadow", 0o640, add(name+":*:19000:0:99999:7:::")),
		m.edit("etc/passwd", 0o644, add(fmt.Sprintf("%s:x:%d:%d::%s:%s", name, id, id, u.home, shell))))
}

func homeOf(name string) string { return "/home/" + name }

// makeHome makes a user's home directory. One that root has made, to mount a disk there,
// is given to the user.
func (m machine) makeHome(u account) error {
	dir := m.path(u.home)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 || !info.IsDir() {
		return err
	}
	return errors.Join(os.Lchown(dir, u.uid, u.gid), os.Chmod(dir, 0o750))
}

// freeID returns a number from 1000 up that is neither a user's nor a group's.
func (m machine) freeID() (int, error) {
	taken := make(map[string]bool)
	for _, file := range []string{"etc/passwd", "etc/group"} {
		b, err := os.ReadFile(m.path(file))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Split(l, ":"); len(f) > 2 {
				taken[f[2]] = true
			}
		}
	}
	for id := 1000; id < 60000; id++ {
		if !taken[strconv.Itoa(id)] {
			return id, nil
		}
	}
	return 0, errors.New("no free number from 1000 to 59999")
}

// removeUser takes out a user, its group and its home directory.
func (m machine) removeUser(name string) error {
	u, ok, err := m.user(name)
	if err != nil {
		return err
	}
	drop := func(lines []string) []string { return without(lines, name) }
	err = errors.Join(m.edit("etc/passwd", 0o644, drop), m.edit("etc/shadow", 0o640, drop), m.edit("etc/group", 0o644, drop))
	if ok && strings.HasPrefix(u.home, "/home/") && filepath.Clean(u.home) == u.home {
		err = errors.Join(err, os.RemoveAll(m.path(u.home)))
	}
	return err
}

// without returns lines but those of name, in a file of colon-separated fields.
func without(lines []string, name string) []string {
	return slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
}

// setKeys makes keys the user's authorized_keys. The home directory belongs to the
// user, who may have put a link there: os.Root does not follow it out.
func (m machine) setKeys(u account, keys []string) (err error) {
	if _, err := os.Stat(m.path(u.home)); errors.Is(err, os.ErrNotExist) {
		if err := m.makeHome(u); err != nil {
			return err
		}
	}
	home, err := os.OpenRoot(m.path(u.home))
	if err != nil {
		return err
	}
	defer home.Close()
	if err := home.Mkdir(".ssh", 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	const next, file = ".ssh/.authorized_keys.replug", ".ssh/authorized_keys"
	if err := home.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := home.OpenFile(next, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for _, k := range keys {
		_, werr := f.WriteString(k + "\n")
		err = errors.Join(err, werr)
	}
	if err = errors.Join(err, f.Chown(u.uid, u.gid), f.Sync(), f.Close()); err != nil {
		return err
	}
	return errors.Join(home.Lchown(".ssh", u.uid, u.gid), home.Rename(next, file), m.keep(filepath.Join(u.home, ".ssh")))
}
