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
	resume  bool // goes on from its saved state
	runWith bool // QEMU has -run-with user= (9.1) instead of -runas
}

// File descriptors that QEMU inherits beside its standard ones: the monitors'
// listening sockets, open before it starts, so that a client need not wait for them.
const (
	monitorFD = 3
	powerFD   = 4
	channelFD = 5
)

// args is QEMU's command line. Every device is named here: no defaults, no
// configuration file, no display, no boot ROM on the NIC.
func (c *Config) args(l *launch) []string {
	m := &l.machine
	a := []string{"-name", m.ID, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", c.Machine, "-accel", map[string]string{accelKVM: "kvm", accelTCG: "tcg,thread=multi"}[l.accel],
		"-cpu", c.cpu(l.accel), "-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.Memory),
		"-pidfile", filepath.Join(l.dir, pidFile)}
	a = append(a, smbios(m)...)
	a = append(a, c.leastPrivilege(l)...)
	if l.image.Kernel != "" {
		a = append(a, "-kernel", l.image.Kernel)
		if l.image.Cmdline != "" {
			a = append(a, "-append", l.image.Cmdline)
		}
		if l.image.Initrd != "" {
			a = append(a, "-initrd", l.image.Initrd)
		}
	}
	for i, d := range disks(m, l.image) {
		a = append(a, "-drive", fmt.Sprintf("id=drive%d,if=none,format=qcow2,discard=unmap,file=%s", i, escape(diskFile(l.dir, d))),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=drive%d,serial=%.20s", i, d.ID))
	}
	a = append(a, "-netdev", fmt.Sprintf("tap,id=%s,ifname=%s,script=no,downscript=no,vhost=off", NetName, l.nic.Tap))
	a = append(a, l.nicArgs()...)
	a = append(a, "-device", "vmgenid,guid=auto", // a guest that wakes up twice must not draw the same random numbers
		"-chardev", "file,id=console,append=on,path="+escape(filepath.Join(l.dir, consoleFile)), "-serial", "chardev:console")
	for id, fd := range []int{monitorFD, powerFD} {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=mon%d,fd=%d,server=on,wait=off", id, fd), "-mon", fmt.Sprintf("chardev=mon%d,mode=control", id))
	}
	a = append(a, channelArgs()...)
	if l.resume {
		a = append(a, "-loadvm", savedName)
	}
	fill := strings.NewReplacer("{dir}", l.dir, "{id}", m.ID)
	for _, x := range c.ExtraArgs {
		a = append(a, fill.Replace(x))
	}
	return a
}

// channelArgs is the virtio-serial port by which the host and the guest's agent speak
// without the NIC.
func channelArgs() []string {
	return []string{"-device", "virtio-serial-pci,max_ports=2", "-chardev", fmt.Sprintf("socket,id=guest,fd=%d,server=on,wait=off", channelFD),
		"-device", "virtserialport,chardev=guest,name=" + vnet.ChannelName}
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

// nicArgs puts the NIC on the machine's bus; where it is to be pulled out and put
// in again while the guest runs, into a slot of its own.
func (l *launch) nicArgs() []string {
	nic := fmt.Sprintf("virtio-net-pci,id=%s,netdev=%s,mac=%s,romfile=", NICName, NetName, l.nic.MAC)
	if l.nic.MTU > 0 {
		nic += fmt.Sprintf(",host_mtu=%d", l.nic.MTU)
	}
	if l.machine.Personality != vnet.PersonalityCloudInitSavable {
		return []string{"-device", nic}
	}
	return []string{"-device", "pcie-root-port,id=" + SlotName + ",chassis=1,slot=1", "-device", nic + ",bus=" + SlotName}
}

// Card is a NIC as a monitor's device_add wants it: what [launch.nicArgs] writes.
func Card(nic NIC) map[string]any {
	card := map[string]any{"driver": "virtio-net-pci", "id": NICName, "netdev": NetName, "mac": nic.MAC.String(), "romfile": "", "bus": SlotName}
	if nic.MTU > 0 {
		card["host_mtu"] = nic.MTU
	}
	return card
}

// azureTag is the chassis asset tag by which cloud-init knows the Azure protocol.
const azureTag = "7783-7084-3265-9085-8269-3286-77"

// smbios is what the guest's firmware says of the machine: the UUID, which is the
// instance for cloud-init and stays from pool to owner, and the signs by which
// cloud-init chooses where it gets its metadata.
func smbios(m *vnet.Machine) []string {
	uuid, product, serial := m.UUID, "Replug VM", m.ID
	var more []string
	switch m.Personality {
	case vnet.PersonalityCloudInit, vnet.PersonalityCloudInitSavable:
		more = []string{"-smbios", "type=3,manufacturer=Replug,asset=" + azureTag}
	case vnet.PersonalityEC2: // known by the UUID's first letters, and by the serial number that is the same
		uuid = "ec2" + uuid[3:]
		serial = uuid
	case vnet.PersonalityOpenStack:
		product = "OpenStack Compute"
	case vnet.PersonalityNoCloud: // nocloud-net is the word of old releases, and new ones still take it
		serial = "ds=nocloud-net;s=http://169.254.169.254/nocloud/"
	}
	return append([]string{"-uuid", uuid, "-smbios", "type=1,manufacturer=Replug,product=" + product + ",serial=" + serial + ",uuid=" + uuid}, more...)
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
