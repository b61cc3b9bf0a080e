package lab_test

import (
	"errors"
	"strings"
	"testing"

	"replug/tests/lab"
)

// good is a machine on which everything is there.
func good() lab.Probe {
	return lab.Probe{
		Release:  "6.12.43+deb13-amd64",
		ReadFile: func(string) ([]byte, error) { return []byte("nodev\tsysfs\nnodev\tbpf\n\text4\n"), nil },
		Exists:   func(string) bool { return true },
		LookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
	}
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	lacks := func(path string) func(string) bool { return func(p string) bool { return p != path } }
	for _, c := range []struct {
		name  string
		spoil func(*lab.Probe)
		want  string // the start of the only line
	}{
		{"nothing", func(*lab.Probe) {}, ""},
		{"root", func(p *lab.Probe) { p.UID = 1000 }, "not root (uid 1000)"},
		{"old kernel", func(p *lab.Probe) { p.Release = "6.1.0-37-amd64" }, "kernel 6.1.0-37-amd64 is older than 6.6"},
		{"old major", func(p *lab.Probe) { p.Release = "5.19.0" }, "kernel 5.19.0 is older than 6.6"},
		{"unreadable release", func(p *lab.Probe) { p.Release = "strange" }, "kernel strange is older than 6.6"},
		{"oldest good kernel", func(p *lab.Probe) { p.Release = "6.6.0" }, ""},
		{"next major", func(p *lab.Probe) { p.Release = "7.0.2" }, ""},
		{"BTF", func(p *lab.Probe) { p.Exists = lacks("/sys/kernel/btf/vmlinux") }, "no BTF"},
		{"bpffs", func(p *lab.Probe) {
			p.ReadFile = func(string) ([]byte, error) { return []byte("nodev\tsysfs\nnodev\tbpfish\n"), nil }
		}, "no bpf file system"},
		{"proc", func(p *lab.Probe) {
			p.ReadFile = func(string) ([]byte, error) { return nil, errors.New("no") }
		}, "no bpf file system"},
		{"tun", func(p *lab.Probe) { p.Exists = lacks("/dev/net/tun") }, "no /dev/net/tun"},
		{"QEMU", func(p *lab.Probe) {
			p.LookPath = func(name string) (string, error) {
				if name == "qemu-system-x86_64" {
					return "", errors.New("not found")
				}
				return name, nil
			}
		}, "qemu-system-x86_64 is not installed: install it with `make setup`, or apt-get install qemu-system-x86"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := good()
			c.spoil(&p)
			err := lab.CheckWith(p)
			if c.want == "" {
				if err != nil {
					t.Fatalf("a good machine is refused: %v", err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v, want one line that starts with %q", err, c.want)
			}
			if !strings.Contains(err.Error(), ";") && !strings.Contains(err.Error(), ": ") {
				t.Errorf("%q doesn't say what to do next", err)
			}
		})
	}
}

func TestCheckNamesEverythingAtOnce(t *testing.T) {
	p := good()
	p.UID, p.Release = 1000, "4.19.0"
	if n := strings.Count(lab.CheckWith(p).Error(), "\n"); n != 1 {
		t.Errorf("two things are missing, %d lines are said", n+1)
	}
}
