package dataplane

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"replug/dataplane/netdev"
)

// basics are asked whenever the agent starts: they are quick.
func basics(bpffs string) []probe {
	return []probe{
		{"root", true, "devices and BPF need it", "run this with sudo",
			func() (State, string) { return is(os.Geteuid() == 0), "" }},
		{"capabilities", true, "the kernel refuses devices, filters, BPF or frames of the agent's own, also to root", "grant the container or unit the ones that are missing",
			func() (State, string) { return capabilities(os.ReadFile("/proc/thread-self/status")) }},
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

// needs are the capabilities that nothing works without, by number (capability.h);
// CAP_SYS_ADMIN has those of BPF in it.
var needs = []struct {
	name   string
	number uint
	admin  bool
}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false}, {"CAP_NET_RAW", unix.CAP_NET_RAW, false}, {"CAP_BPF", unix.CAP_BPF, true}, {"CAP_PERFMON", unix.CAP_PERFMON, true}}

// capabilities reads those in force from a thread's status.
func capabilities(status []byte, err error) (State, string) {
	if err != nil {
		return Unknown, err.Error()
	}
	_, rest, _ := strings.Cut(string(status), "\nCapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return Unknown, err.Error()
	}
	var missing []string
	for _, c := range needs {
		if have>>c.number&1 == 0 && (!c.admin || have>>unix.CAP_SYS_ADMIN&1 == 0) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return Lack, "without " + strings.Join(missing, ", ")
	}
	return Have, ""
}

// lockdown says whether the kernel's lockdown may be what keeps programs out.
func lockdown(mode []byte, err error) string {
	if err != nil || !strings.Contains(string(mode), "[confidentiality]") {
		return ""
	}
	return "; the kernel is locked down for confidentiality, which may be why: boot with lockdown=integrity"
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
