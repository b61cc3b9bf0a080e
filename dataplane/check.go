package dataplane

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMissing says that this machine can't be a host; the text says what it lacks.
var ErrMissing = errors.New("this machine lacks something")

// A Finding is one thing that the agent needs or can use.
type Finding struct {
	What   string
	OK     bool
	Needed bool   // nothing works without
	Costs  string // what it means that it is missing, and what to do
}

// Look looks at everything that the agent needs or can use.
func Look(bpffs string) []Finding {
	release := kernel()
	return []Finding{
		{"root", os.Geteuid() == 0, true, "devices and BPF need root: run this with sudo"},
		{"Linux 6.6 or newer (here " + release + ")", newEnough(release), true, "the datapath attaches by tcx: install a newer kernel"},
		{"kernel type information (BTF)", exists("/sys/kernel/btf/vmlinux"), true, "BPF programs can't be loaded: use a kernel built with CONFIG_DEBUG_INFO_BTF"},
		{"bpf filesystem on " + bpffs, isBPFFS(bpffs), true, "the datapath would end with the agent: mount -t bpf bpf " + bpffs},
		{"tun devices", exists("/dev/net/tun"), true, "guests have no taps: modprobe tun"},
		{"BPF compiler in the kernel", jit(), false, "each frame costs several times more: sysctl net.core.bpf_jit_enable=1"},
		{"QEMU", inPath("qemu-system-x86_64"), false, "no VMs of its own, only attached ports: apt-get install qemu-system-x86"},
		{"qemu-img", inPath("qemu-img"), false, "no disks for VMs: apt-get install qemu-utils"},
		{"KVM", exists("/dev/kvm"), false, "VMs run ten times slower, by TCG: enable virtualization"},
	}
}

// Missing returns [ErrMissing] with all that is needed and not there.
func Missing(bpffs string) error {
	var errs []error
	for _, f := range Look(bpffs) {
		if f.Needed && !f.OK {
			errs = append(errs, fmt.Errorf("%w: %s: %s", ErrMissing, f.What, f.Costs))
		}
	}
	return errors.Join(errs...)
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func newEnough(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 6
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func isBPFFS(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.BPF_FS_MAGIC
}

func jit() bool {
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

func inPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}
