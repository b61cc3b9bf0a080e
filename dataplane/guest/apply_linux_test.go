package guest

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"replug/directory/vnet"
)

// S77: every setting in its place, one wrong setting does not take the others away,
// and the error says which one.
func TestApply(t *testing.T) {
	key := "ssh-ed25519 AAAAkey k"
	for _, c := range []struct {
		name  string
		doc   vnet.Document
		err   string
		files map[string]string // path: content, "" is absent
	}{
		{"host name with domain", vnet.Document{Hostname: "web-3.shop.example"}, "", map[string]string{"etc/hostname": "web-3.shop.example\n",
			"etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tweb-3.shop.example web-3\n"}},
		{"host name that is none", vnet.Document{Hostname: "web 3", Files: []vnet.File{{Path: "/b/c", Content: "q"}}}, `host name "web 3": not valid`,
			map[string]string{"etc/hostname": "", "b/c": "q"}},
		{"host name longer than Linux takes", vnet.Document{Hostname: strings.Repeat("a", 63) + ".bc"}, "not valid", nil},
		{"time zone", vnet.Document{TimeZone: "Europe/Vienna"}, "", map[string]string{"etc/timezone": "Europe/Vienna\n"}},
		{"time zone not in the image", vnet.Document{TimeZone: "Mars/Olympus"}, "time zone Mars/Olympus is not in this image", map[string]string{"etc/timezone": ""}},
		{"time zone out of its directory", vnet.Document{TimeZone: "../../../etc/passwd"}, "not valid", map[string]string{"etc/timezone": ""}},
		{"time zone that is a directory", vnet.Document{TimeZone: "Europe"}, "is not in this image", nil},
		{"relative file", vnet.Document{Files: []vnet.File{{Path: "etc/x", Content: "q"}}}, `file "etc/x": not a file's path`, map[string]string{"etc/x": ""}},
		{"file with ..", vnet.Document{Files: []vnet.File{{Path: "/etc/../x", Content: "q"}}}, "not a file's path", map[string]string{"x": ""}},
		{"file of root", vnet.Document{Files: []vnet.File{{Path: "/", Content: "q"}}}, "not a file's path", nil},
		{"file that is a directory", vnet.Document{Files: []vnet.File{{Path: "/etc", Content: "q"}}}, "write /etc", nil},
		{"set-uid file", vnet.Document{Files: []vnet.File{{Path: "/bin/su", Mode: 0o4755, Content: "q"}}}, "give permission bits", map[string]string{"bin/su": ""}},
		{"user of the image", vnet.Document{User: "root", SSHKeys: []string{key}}, "", map[string]string{"root/.ssh/authorized_keys": key + "\n"}},
		{"user name that is none", vnet.Document{User: "x:0:0"}, `user "x:0:0": not valid`, map[string]string{"home/x:0:0/.ssh/authorized_keys": ""}},
		{"key of two lines", vnet.Document{User: "ben", SSHKeys: []string{key + "\n" + key}}, "ssh key", map[string]string{"home/ben/.ssh/authorized_keys": ""}},
	} {
		m := image(t)
		err := m.apply(&c.doc, &state{})
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got error %v, want %q", c.name, err, c.err)
		}
		if link, _ := os.Readlink(m.path("etc/localtime")); (link == "/usr/share/zoneinfo/Europe/Vienna") != (c.name == "time zone") {
			t.Errorf("%s: /etc/localtime leads to %q", c.name, link)
		}
		for path, want := range c.files {
			if b, _ := os.ReadFile(m.path(path)); string(b) != want {
				t.Errorf("%s: %s is %q, want %q", c.name, path, b, want)
			}
		}
	}
}

// image is a root with what any image has.
func image(t *testing.T) machine {
	m := newMachine(t.TempDir())
	for path, content := range map[string]string{
		"etc/hosts":                        "127.0.0.1\tlocalhost\n",
		"etc/passwd":                       "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1000:77::/:/bin/false\n",
		"etc/group":                        "root:x:0:\nkvm:x:1001:\n",
		"etc/shadow":                       "root:*:19000::::::\n",
		"usr/share/zoneinfo/Europe/Vienna": "TZif-vienna",
		"root/.profile":                    "",
	} {
		check(t, os.MkdirAll(filepath.Dir(m.path(path)), 0o755))
		check(t, os.WriteFile(m.path(path), []byte(content), 0o644))
	}
	return m
}

// A new user gets a number that is neither a user's nor a group's, no password, and
// keys that only it can read.
func TestNewUser(t *testing.T) {
	m := image(t)
	d := vnet.Document{User: "carla", SSHKeys: []string{"ssh-rsa AAAA1", "ssh-rsa AAAA2"}}
	check(t, m.apply(&d, &state{}))
	u, ok, err := m.user("carla")
	if err != nil || !ok || u.uid != 1002 || u.gid != 1002 || u.home != "/home/carla" {
		t.Errorf("user %+v, %v, %v", u, ok, err)
	}
	if b, _ := os.ReadFile(m.path("etc/shadow")); !strings.Contains(string(b), "\ncarla:*:") {
		t.Errorf("shadow:\n%s", b)
	}
	for path, mode := range map[string]fs.FileMode{"home/carla": 0o750, "home/carla/.ssh": 0o700, "home/carla/.ssh/authorized_keys": 0o600} {
		info, err := os.Stat(m.path(path))
		check(t, err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s: mode %o, want %o", path, info.Mode().Perm(), mode)
		}
	}
	d.SSHKeys = []string{"ssh-rsa AAAA3"}
	check(t, m.apply(&d, &state{}))
	if b, _ := os.ReadFile(m.path("home/carla/.ssh/authorized_keys")); string(b) != "ssh-rsa AAAA3\n" {
		t.Errorf("keys after the second document: %q", b)
	}
}

// The agent writes as root into a directory of the user's: a link there must not
// lead it to a file of somebody else's.
func TestKeysFollowNoLink(t *testing.T) {
	m := image(t)
	d := vnet.Document{User: "carla", SSHKeys: []string{"ssh-rsa AAAA1"}}
	check(t, m.apply(&d, &state{}))
	check(t, os.RemoveAll(m.path("home/carla/.ssh")))
	check(t, os.MkdirAll(m.path("victim"), 0o755))
	check(t, os.WriteFile(m.path("victim/authorized_keys"), []byte("victim's"), 0o600))
	check(t, os.Symlink("../../victim", m.path("home/carla/.ssh")))
	if err := m.apply(&d, &state{}); err == nil {
		t.Error("no error")
	}
	if b, _ := os.ReadFile(m.path("victim/authorized_keys")); string(b) != "victim's" {
		t.Errorf("victim's file is %q", b)
	}
}

// Issue 2, point 6 seen from the guest: whatever comes instead of a document is an
// error that is named, and soon.
func TestIMDSAnswers(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   error
	}{
		{"document", 200, `{"epoch":"3.7","hostname":"web-1","from_the_future":[1]}`, nil},
		{"nothing newer", 204, "", errNothing},
		{"nothing published", 404, "", errEmpty},
		{"host in trouble", 500, "", errEmpty},
		{"elsewhere", 302, "", errEmpty},
		{"cut off", 200, `{"epoch":"3.7","hostn`, errMalformed},
		{"no epoch", 200, `{"hostname":"web-1"}`, errMalformed},
		{"epoch that is none", 200, `{"epoch":"7"}`, errMalformed},
		{"list", 200, `[]`, errMalformed},
		{"endless", 200, `{"epoch":"3.7","hostname":"` + strings.Repeat("a", maxDocument) + `"}`, errMalformed},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://192.0.2.7/")
			w.WriteHeader(c.status)
			w.Write([]byte(c.body))
		}))
		d, err := newIMDS(s.URL, time.Second).next(t.Context(), vnet.NewEpoch(3, 6))
		if !errors.Is(err, c.want) || (c.want == nil) != (d != nil) {
			t.Errorf("%s: got %v, %v, want %v", c.name, d, err, c.want)
		}
		s.Close()
	}
}

func TestClientName(t *testing.T) {
	for cmdline, want := range map[string]string{
		"dhcpcd: eth0 [ip4]\x00":              "dhcpcd",
		"/sbin/udhcpc\x00-i\x00eth0\x00":      "udhcpc",
		"/bin/busybox\x00udhcpc\x00-f\x00":    "udhcpc",
		"/lib/systemd/systemd-networkd\x00":   "systemd-networkd",
		"vi\x00/etc/dhcp/dhclient.conf\x00":   "",
		"":                                    "",
		"/usr/bin/busybox\x00":                "",
		"/usr/sbin/NetworkManager\x00-n\x00n": "NetworkManager",
	} {
		if got := parseClient([]byte(cmdline)).name; got != want {
			t.Errorf("%q: got %q, want %q", cmdline, got, want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		says   string
	}{
		{"default", func(*Config) {}, ""},
		{"https", func(c *Config) { c.IMDS = "https://169.254.169.254" }, "want http://"},
		{"path", func(c *Config) { c.IMDS += "/x" }, "want http://"},
		{"dhcp", func(c *Config) { c.DHCP = "maybe" }, "want auto, own or none"},
		{"wait", func(c *Config) { c.Wait = 99 * time.Second }, "want 1s to 60s"},
		{"root", func(c *Config) { c.Root = "here" }, "want an absolute"},
	} {
		conf := Default()
		c.change(&conf)
		if err := conf.Check(); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A client that is becoming a daemon, or has helpers, is one client: told twice it
// would start over, begun twice it would fight itself.
func TestProcessesOfOneClient(t *testing.T) {
	var found []otherClient
	for pid, cmdline := range []string{"dhclient\x00-4\x00eth0\x00", "dhclient\x00-4\x00eth0\x00", "dhclient\x00-6\x00eth0\x00",
		"dhcpcd: eth0 [ip4]\x00", "dhcpcd: [privileged proxy] eth0\x00"} {
		found = merge(found, parseClient([]byte(cmdline)), pid+70)
	}
	if len(found) != 3 || !slices.Equal(found[0].pids, []int{70, 71}) || !slices.Equal(found[1].pids, []int{72}) || !slices.Equal(found[2].pids, []int{73, 74}) {
		t.Errorf("%+v", found)
	}
}
