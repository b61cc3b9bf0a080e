package dataplane

import (
	"errors"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"replug/dataplane/netdev"
)

// basics are asked whenever the agent starts: they are quick.
func basics(bpffs string) []probe {
	return []probe{
		{"root", true, "devices and BPF need it", "run this with sudo",
			func() (State, string) { return is(os.Geteuid() == 0), "" }},
		{"bpf filesystem on " + bpffs, true, "the datapath would end with the agent", "mount -t bpf bpf " + bpffs,
			func() (State, string) { return is(isBPFFS(bpffs)), "" }},
		{"tun devices", true, "guests have no taps", "modprobe tun",
			func() (State, string) { return is(exists("/dev/net/tun")), "" }},
		{"QEMU", false, "no VMs of its own, only attached ports", "apt-get install qemu-system-x86",
			func() (State, string) { return is(inPath("qemu-system-x86_64")), "" }},
		{"qemu-img", false, "no disks for VMs", "apt-get install qemu-utils",
			func() (State, string) { return is(inPath("qemu-img")), "" }},
		{"KVM", false, "VMs run ten times slower, by TCG", "enable virtualization in the firmware, or nested virtualization",
			func() (State, string) { return is(exists("/dev/kvm")), "" }},
	}
}

// abilities are what the kernel can do, each tried.
func abilities() []probe {
	release := "Linux " + kernel()
	return append(datapathProbes(release), []probe{
		{"VXLAN devices", true, "frames that were merged on their way have no way up", "modprobe vxlan",
			func() (State, string) { return tried(netdev.TryVXLAN()) }},
		{"veth devices", true, "the metadata service has no device", "modprobe veth",
			func() (State, string) { return tried(netdev.TryVeth()) }},
		{"BPF compiler", false, "each frame costs several times more", "sysctl net.core.bpf_jit_enable=1", jit},
		{"kernel type information (BTF)", false, "abilities that are younger than this release can't be found", "a kernel built with CONFIG_DEBUG_INFO_BTF",
			func() (State, string) { return is(exists("/sys/kernel/btf/vmlinux")), "" }},
		{"UDP superpackets from guests", false, "guests cut UDP into packets themselves (QUIC, HTTP/3): each crosses the datapath alone", "Linux 6.2 or newer",
			func() (State, string) {
				takes, err := netdev.TapTakesUSO()
				if err != nil {
					return Unknown, err.Error()
				}
				return is(takes), ""
			}},
	}...)
}

func tried(err error) (State, string) {
	if err != nil {
		return Lack, err.Error()
	}
	return Have, ""
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "of unknown release"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func isBPFFS(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.BPF_FS_MAGIC
}

// jit reads a setting that a kernel which always compiles may not have.
func jit() (State, string) {
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Have, "always on"
	case err != nil:
		return Unknown, err.Error()
	}
	return is(strings.TrimSpace(string(b)) != "0"), ""
}

func inPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}
