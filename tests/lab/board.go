package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A board is the machine that QEMU makes for an architecture.
type board struct {
	qemu    string
	machine string
	cpu     string // when emulated: what the architecture's slow parts leave out
	line    string // the device of the second serial line
}

var boards = map[string]board{
	"amd64": {"qemu-system-x86_64", "pc", "max", "ttyS1"},
	"arm64": {"qemu-system-aarch64", "virt", "cortex-a72", "ttyS0"}, // its first is ttyAMA0
}

// machine is the part of QEMU's command line that depends on the image only.
func machine(image, arch, accel string, memory int) ([]string, error) {
	line, err := os.ReadFile(filepath.Join(image, "cmdline"))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", image, err)
	}
	b, ok := boards[arch]
	if !ok {
		return nil, fmt.Errorf("no machine is known for %q: it can be amd64 or arm64", arch)
	}
	cpu := map[string]string{KVM: "host", TCG: b.cpu}[accel]
	return []string{
		b.qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", b.machine, "-accel", accel, "-cpu", cpu, "-m", strconv.Itoa(memory),
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd.img"),
		"-append", strings.TrimSpace(string(line)),
	}, nil
}

// secondLine adds a serial line that writes into a file.
func secondLine(arch, file string) []string {
	if arch == "amd64" {
		return []string{"-serial", "file:" + file}
	}
	return []string{"-chardev", "file,id=second,path=" + file, "-device", "pci-serial,chardev=second"}
}

// trialLine is the kernel's command line for a [Trial]. What the kernel doesn't
// know goes to /init as a variable.
func trialLine(arch string) string {
	line := kernelLine
	if arch != "amd64" {
		line = "console=ttyAMA0 quiet loglevel=3 panic=-1 rcupdate.rcu_expedited=1 audit=0 cryptomgr.notests"
	}
	return line + " SAID=/dev/" + boards[arch].line
}
