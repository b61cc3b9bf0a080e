package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// A Probe is what [CheckWith] asks the machine.
type Probe struct {
	UID      int
	Release  string                       // of the kernel, as uname -r prints
	ReadFile func(string) ([]byte, error) // of /proc/filesystems
	Exists   func(string) bool
	LookPath func(string) (string, error)
}

// programs that the lab runs, and the Debian packages that have them.
var programs = []struct{ name, pkg string }{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"qemu-img", "qemu-utils"},
	{"busybox", "busybox-static"},
	{"dpkg-deb", "dpkg"},
	{"xz", "xz-utils"},
}

// Oldest kernel that has all: tcx is of 6.6.
const needMajor, needMinor = 6, 6

// Check says what this machine lacks: one error for each thing, all joined; nil
// if the lab can run here.
func Check() error {
	var u unix.Utsname
	unix.Uname(&u)
	return CheckWith(Probe{
		UID:      os.Getuid(),
		Release:  string(bytes.TrimRight(u.Release[:], "\x00")),
		ReadFile: os.ReadFile,
		Exists:   func(path string) bool { _, err := os.Stat(path); return err == nil },
		LookPath: exec.LookPath,
	})
}

// CheckWith is [Check] with the machine's answers given.
func CheckWith(p Probe) error {
	var lacks []error
	lack := func(format string, args ...any) { lacks = append(lacks, fmt.Errorf(format, args...)) }
	if p.UID != 0 {
		lack("not root (uid %d): network namespaces, taps and BPF need it; run it again with sudo", p.UID)
	}
	var major, minor int
	if n, _ := fmt.Sscanf(p.Release, "%d.%d", &major, &minor); n != 2 || major < needMajor || major == needMajor && minor < needMinor {
		lack("kernel %s is older than %d.%d: tcx programs can't be attached; boot Debian 13's kernel, or Debian 12's from backports",
			p.Release, needMajor, needMinor)
	}
	if !p.Exists("/sys/kernel/btf/vmlinux") {
		lack("no BTF at /sys/kernel/btf/vmlinux: BPF programs can't be checked against this kernel; boot one built with CONFIG_DEBUG_INFO_BTF")
	}
	if fs, err := p.ReadFile("/proc/filesystems"); err != nil || !hasLine(fs, "nodev\tbpf") {
		lack("no bpf file system in /proc/filesystems: maps can't be pinned; boot a kernel built with CONFIG_BPF_SYSCALL")
	}
	if !p.Exists("/dev/net/tun") {
		lack("no /dev/net/tun: guests can't have a NIC; load it with modprobe tun")
	}
	for _, prog := range programs {
		if _, err := p.LookPath(prog.name); err != nil {
			lack("%s is not installed: install it with `make setup`, or apt-get install %s", prog.name, prog.pkg)
		}
	}
	return errors.Join(lacks...)
}

func hasLine(text []byte, line string) bool {
	for l := range strings.Lines(string(text)) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}
