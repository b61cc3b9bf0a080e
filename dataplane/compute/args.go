package compute

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"replug/directory/vnet"
)

// A launch is all that a command line depends on.
type launch struct {
	machine vnet.Machine
	nic     NIC
	image   image
	dir     string
	accel   string
	runWith bool // QEMU has -run-with user= (9.1) instead of -runas
}

// File descriptors that QEMU inherits beside its standard ones: the monitors'
// listening sockets, open before it starts, so that a client need not wait for them.
const (
	monitorFD = 3
	powerFD   = 4
)

// args is QEMU's command line. Every device is named here: no defaults, no
// configuration file, no display, no boot ROM on the NIC.
func (c *Config) args(l *launch) []string {
	m := &l.machine
	a := []string{"-name", m.ID, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", c.Machine, "-accel", map[string]string{accelKVM: "kvm", accelTCG: "tcg,thread=multi"}[l.accel],
		"-cpu", c.cpu(l.accel), "-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.Memory),
		"-uuid", m.UUID, "-smbios", "type=1,manufacturer=Replug,product=Replug VM,serial=" + m.ID + ",uuid=" + m.UUID,
		"-pidfile", filepath.Join(l.dir, pidFile)}
	a = append(a, c.leastPrivilege(l)...)
	if l.image.kernel != "" {
		a = append(a, "-kernel", l.image.kernel)
		if l.image.cmdline != "" {
			a = append(a, "-append", l.image.cmdline)
		}
		if l.image.initrd != "" {
			a = append(a, "-initrd", l.image.initrd)
		}
	}
	for i, d := range disks(m, l.image) {
		a = append(a, "-drive", fmt.Sprintf("id=drive%d,if=none,format=qcow2,discard=unmap,file=%s", i, escape(diskFile(l.dir, d))),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=drive%d,serial=%.20s", i, d.ID))
	}
	nic := fmt.Sprintf("virtio-net-pci,id=%s,netdev=%s,mac=%s,romfile=", NICName, NetName, l.nic.MAC)
	if l.nic.MTU > 0 {
		nic += fmt.Sprintf(",host_mtu=%d", l.nic.MTU)
	}
	a = append(a, "-netdev", fmt.Sprintf("tap,id=%s,ifname=%s,script=no,downscript=no,vhost=off", NetName, l.nic.Tap), "-device", nic,
		"-chardev", "file,id=console,append=on,path="+escape(filepath.Join(l.dir, consoleFile)), "-serial", "chardev:console")
	for id, fd := range []int{monitorFD, powerFD} {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=mon%d,fd=%d,server=on,wait=off", id, fd), "-mon", fmt.Sprintf("chardev=mon%d,mode=control", id))
	}
	fill := strings.NewReplacer("{dir}", l.dir, "{id}", m.ID)
	for _, x := range c.ExtraArgs {
		a = append(a, fill.Replace(x))
	}
	return a
}

// leastPrivilege takes from QEMU what a guest that broke out would want: new
// processes, other system calls, and root if there is a user to run as. To become
// that user QEMU needs set*uid after its filter is up ("children" kills it, 7.2);
// without root and without new programs they lead nowhere.
func (c *Config) leastPrivilege(l *launch) []string {
	const sandbox = "on,obsolete=deny,spawn=deny,resourcecontrol=deny,elevateprivileges="
	switch {
	case c.RunAs == "":
		return []string{"-sandbox", sandbox + "deny"}
	case l.runWith:
		return []string{"-sandbox", sandbox + "allow", "-run-with", "user=" + c.RunAs}
	}
	return []string{"-sandbox", sandbox + "allow", "-runas", c.RunAs}
}

func (c *Config) cpu(accel string) string {
	switch {
	case c.CPU != "":
		return c.CPU
	case accel == accelKVM:
		return "host"
	}
	return "max"
}

// escape writes a value for a list of QEMU options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
