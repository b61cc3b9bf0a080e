package compute

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replug/directory/vnet"
)

// KVM is used only if a probe has proved it; it is asked once a boot of the host.
func TestAccel(t *testing.T) {
	for _, c := range []struct {
		name   string
		accel  string
		probe  error
		kernel string
		want   string
		probes int
	}{
		{"proved", "auto", nil, "/k", accelKVM, 1},
		{"disproved", "auto", errors.New("hangs"), "/k", accelTCG, 1},
		{"no kernel to prove it with", "auto", nil, "", accelTCG, 0},
		{"said so", accelKVM, errors.New("hangs"), "/k", accelKVM, 0},
	} {
		dir, probes := t.TempDir(), 0
		conf := Config{Dir: dir, Images: dir, Accel: c.accel, Open: openMonitor,
			Probe: func(context.Context, string) error { probes++; return c.probe }}
		for range 2 { // agents
			q, err := New(t.Context(), conf)
			check(t, err)
			for range 2 { // machines
				if got, err := q.accel(t.Context(), c.kernel); err != nil || got != c.want {
					t.Errorf("%s: got %s, %v, want %s", c.name, got, err, c.want)
				}
			}
			check(t, q.Close())
		}
		if probes != c.probes {
			t.Errorf("%s: %d probes, want %d", c.name, probes, c.probes)
		}
		if c.probes == 0 {
			continue
		}
		file := filepath.Join(dir, "accel.json")
		b, err := os.ReadFile(file)
		check(t, err)
		check(t, os.WriteFile(file, []byte(strings.Replace(string(b), bootID(), "the-boot-before", 1)), 0o600))
		q, err := New(t.Context(), conf)
		check(t, err)
		_, err = q.accel(t.Context(), c.kernel)
		check(t, err)
		check(t, q.Close())
		if probes != c.probes+1 {
			t.Errorf("%s: %d probes after the host's next boot, want %d", c.name, probes, c.probes+1)
		}
	}
}

// What is not a kernel gets no further than firmware: that proves nothing, though
// it runs. Where /dev/kvm is missing, the error says that instead.
func TestProbeWantsAKernel(t *testing.T) {
	dir := t.TempDir()
	q, err := New(t.Context(), Config{Dir: dir, Images: dir, Open: openMonitor})
	check(t, err)
	file := filepath.Join(dir, "vmlinuz")
	check(t, os.WriteFile(file, bootSector(hello("Linux is not what this is\r\n")), 0o644))
	if err := q.ProbeKVM(t.Context(), file); err == nil {
		t.Error("a boot sector passed for a kernel")
	} else {
		t.Log(err)
	}
	check(t, q.Close())
}

func TestPanicWatch(t *testing.T) {
	heard, panicked := 0, 0
	w := panicWatch{heard: func() { heard++ }, panicked: func() { panicked++ }}
	for _, s := range []string{"SeaBIOS\r\n[0.0] Linux ver", "sion 6.1.0\r\n[0.9] Kernel pa", "nic - not syncing", "more"} {
		w.Write([]byte(s))
	}
	if heard == 0 || panicked != 1 || !w.done {
		t.Errorf("heard %d, panicked %d, done %v", heard, panicked, w.done)
	}
}

// The command line, as a whole: a change of it is a change of every VM's hardware.
func TestArgs(t *testing.T) {
	c := Config{Dir: "/d", Images: "/i", Open: openMonitor, ExtraArgs: []string{"-serial", "unix:{dir}/{id}.sock,server=on,wait=off"}}
	check(t, c.check())
	m := spec("vm-93", "deb")
	m.CPUs, m.Memory, m.Disks = 3, 517, []vnet.Disk{{ID: "root-93", OS: true}, {ID: "data-7-with-a-long-name", Size: 5 << 20}}
	l := launch{machine: m, nic: NIC{"tap93", vnet.PortMAC(0x1a2b3c4d), 1432}, dir: "/d/vms/vm-93", accel: accelTCG,
		image: image{Kernel: "/i/deb/vmlinuz", Initrd: "/i/deb/initrd.img", Disk: "/i/deb/disk.qcow2", Cmdline: "console=ttyS0 quiet"}}
	want := `-name vm-93 -nodefaults -no-user-config -display none -machine q35 -accel tcg,thread=multi -cpu max -smp 3 -m 517` +
		` -pidfile /d/vms/vm-93/qemu.pid -uuid ` + m.UUID + ` -smbios type=1,manufacturer=Replug,product=Replug VM,serial=vm-93,uuid=` + m.UUID +
		` -sandbox on,obsolete=deny,spawn=deny,resourcecontrol=deny,elevateprivileges=deny` +
		` -kernel /i/deb/vmlinuz -append console=ttyS0 quiet -initrd /i/deb/initrd.img` +
		` -drive id=drive0,if=none,format=qcow2,discard=unmap,file=/d/vms/vm-93/os.qcow2 -device virtio-blk-pci,drive=drive0,serial=root-93` +
		` -drive id=drive1,if=none,format=qcow2,discard=unmap,file=/d/vms/vm-93/data-data-7-with-a-long-name.qcow2 -device virtio-blk-pci,drive=drive1,serial=data-7-with-a-long-n` +
		` -netdev tap,id=net0,ifname=tap93,script=no,downscript=no,vhost=off` +
		` -device virtio-net-pci,id=nic0,netdev=net0,mac=02:52:1a:2b:3c:4d,romfile=,host_mtu=1432` +
		` -device vmgenid,guid=auto` +
		` -chardev file,id=console,append=on,path=/d/vms/vm-93/console.log -serial chardev:console` +
		` -chardev socket,id=mon0,fd=3,server=on,wait=off -mon chardev=mon0,mode=control` +
		` -chardev socket,id=mon1,fd=4,server=on,wait=off -mon chardev=mon1,mode=control` +
		` -device virtio-serial-pci,max_ports=2 -chardev socket,id=guest,fd=5,server=on,wait=off -device virtserialport,chardev=guest,name=org.replug.guest.0` +
		` -serial unix:/d/vms/vm-93/vm-93.sock,server=on,wait=off`
	if got := strings.Join(c.args(&l), " "); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for p, want := range map[vnet.Personality]string{
		vnet.PersonalityCloudInit:        " -smbios type=3,manufacturer=Replug,asset=7783-7084-3265-9085-8269-3286-77 ",
		vnet.PersonalityCloudInitSavable: " -device pcie-root-port,id=slot0,chassis=1,slot=1 -device virtio-net-pci,id=nic0,netdev=net0,mac=02:52:1a:2b:3c:4d,romfile=,host_mtu=1432,bus=slot0 ",
		vnet.PersonalityEC2:              " -uuid ec2a2b1c-5d4e-4f60-9a7b-8c9d0e1f2a3b -smbios type=1,manufacturer=Replug,product=Replug VM,serial=ec2a2b1c-5d4e-4f60-9a7b-8c9d0e1f2a3b,uuid=ec2a2b1c-5d4e-4f60-9a7b-8c9d0e1f2a3b ",
		vnet.PersonalityOpenStack:        ",product=OpenStack Compute,",
		vnet.PersonalityNoCloud:          ",serial=ds=nocloud-net;s=http://169.254.169.254/nocloud/,",
	} {
		l.machine.Personality = p
		if got := strings.Join(c.args(&l), " "); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%s\nwant %s", p, got, want)
		}
	}
	l.machine.Personality = ""
	c.RunAs, l.accel = "vm-user", accelKVM
	for _, runWith := range []bool{false, true} {
		l.runWith = runWith
		got := strings.Join(c.args(&l), " ")
		how := map[bool]string{false: "-runas vm-user", true: "-run-with user=vm-user"}[runWith]
		if !strings.Contains(got, how) || !strings.Contains(got, "elevateprivileges=allow") || !strings.Contains(got, "-accel kvm -cpu host") {
			t.Errorf("run as: %s", got)
		}
	}
}
