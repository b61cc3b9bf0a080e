package guests

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// throughPackage takes the Debian package through machines, from the image that its
// maker installs it into to the purge: systemd starts it at each boot, beside networkd,
// which has the NIC; it reports, follows a swap, does what is promised of data disks over
// a reboot and a growth, is upgraded, and goes without a trace.
func throughPackage(t *testing.T) {
	f := Families[0]
	var p *packagedVM
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"installed", func() {
			l := labOf(t, "p")
			p = worldIn(t, l, f, cluster.Config{Image: packaged(t, l), Memory: map[int]int{1: 2048}}).packagedVM(t)
		}},
		{"started", func() { p.started() }},
		{"follows", func() { p.follows() }},
		{"formatted", func() { p.formatted() }},
		{"rebooted", func() { p.rebooted() }},
		{"grown", func() { p.grown() }},
		{"upgraded", func() { p.upgraded() }},
		{"removed", func() { p.removed() }},
	} {
		begun := time.Now()
		step.do()
		t.Logf("%s after %s", step.name, time.Since(begun).Round(time.Second))
	}
}

// networkdUnit gives the NIC to networkd, as most of Debian's cloud images do.
const networkdUnit = `cat >/etc/systemd/network/10-eth0.network <<'END'
[Match]
Name=eth0
[Network]
DHCP=ipv4
END
systemctl -q enable systemd-networkd
`

// packaged makes an image as its maker does: the package is installed with dpkg in a
// machine that runs, which is then switched off.
func packaged(t *testing.T, l *lab.Lab) string {
	t.Helper()
	kit, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	script, extra := networkdUnit, []string{}
	for i, version := range []string{"1.0", "1.1"} {
		deb := makeDeb(t, version)
		disk := filepath.Join(t.TempDir(), "disk")
		size, err := os.Stat(deb)
		if err != nil {
			t.Fatal(err)
		}
		if err := padded(disk, deb); err != nil {
			t.Fatal(err)
		}
		extra = append(extra, "-drive", sprint("id=deb%d,if=none,format=raw,readonly=on,file=%s", i, disk), "-device", sprint("virtio-blk-pci,drive=deb%d", i))
		script += sprint("head -c %d /dev/vd%c >/root/%s.deb\n", size.Size(), 'b'+i, version)
	}
	v, err := l.BootVM(ctx, l.Host(1), lab.VMConfig{Name: "maker", Image: kit.image, MAC: net.HardwareAddr{2, 0x6c, 7, 9, 0xfe, 0xed}, MTU: l.MTU() - 50,
		Memory: 512, Accel: lab.TCG, Extra: extra})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Stop(context.Background())
	m := &vm{VM: v}
	out, err := m.sh(ctx, "set -e\n"+script+"dpkg -i /root/1.0.deb\nsystemctl is-enabled replug-guest\nsystemctl is-active replug-guest\nsync")
	if err != nil || !strings.HasSuffix(out, "enabled\nactive\n") {
		t.Fatalf("install the package: %v: %s", err, out)
	}
	_, _ = m.sh(ctx, "systemctl --no-block poweroff")
	if err := v.Process().Wait(ctx); err != nil {
		t.Fatalf("switch the maker's machine off: %v", err)
	}
	image := t.TempDir()
	for _, name := range []string{"vmlinuz", "initrd.img", "cmdline"} {
		if err := os.Symlink(filepath.Join(kit.image, name), filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", "--sparse=always", filepath.Join(filepath.Dir(v.Monitor()), "disk.qcow2"), image)
	return image
}

// makeDeb makes the package for the machines of this test.
func makeDeb(t *testing.T, version string) string {
	t.Helper()
	return run(t, "env", "VERSION="+version, "../../cmd/replug-guest/deb/make.sh", "amd64", t.TempDir())
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// A packagedVM is a machine of that image, made by the API.
type packagedVM struct {
	*World
	t    *testing.T
	name string
	id   string
	dir  string // its files on the host
	boot string // id of its boot
}

const mebibyte = 1 << 20

// packagedVM makes one with five data disks: the first one's place is told and the last
// one's, below which its user is at home, the others are the owner's to use.
func (w *World) packagedVM(t *testing.T) *packagedVM {
	t.Helper()
	ctx := t.Context()
	if _, err := pb.NewVMTypesClient(w.conn).CreateVMType(ctx, &pb.CreateVMTypeRequest{RequestId: w.id(),
		Type: &pb.VMType{Name: "debian", Image: cluster.Image, Cpus: 1, MemoryMib: 384}}); err != nil {
		t.Fatal(err)
	}
	p := &packagedVM{World: w, t: t, name: "db"}
	size := int64(64 * mebibyte)
	made, err := pb.NewVMsClient(w.conn).CreateVM(ctx, &pb.CreateVMRequest{RequestId: w.id(), Tenant: tenant, Name: p.name, Type: "debian", Network: w.network("red"),
		DataDisks: []int64{size, size, size, size, size}, Settings: &pb.Settings{Hostname: "db-1", User: "ann", SshKeys: []string{"ssh-ed25519 AAAA ann"},
			Disks: []*pb.DataDisk{{Id: "1", Path: "/srv/db"}, {Id: "2"}, {Id: "3"}, {Id: "4"}, {Id: "5", Path: "/home"}}}})
	if err != nil {
		t.Fatal(err)
	}
	p.id, p.dir = made.Id, filepath.Join(w.Cluster.Lab.Host(1).Dir(), "state/vms", made.Id)
	p.reported()
	return p
}

// get reads what the API says of it.
func (p *packagedVM) get(ctx context.Context) *pb.VM {
	p.t.Helper()
	vm, err := pb.NewVMsClient(p.conn).GetVM(ctx, &pb.GetVMRequest{Tenant: tenant, Name: p.name})
	if err != nil {
		p.t.Fatal(err)
	}
	return vm
}

// reported waits until the agent has reported from another boot than before.
func (p *packagedVM) reported() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), bootTime)
	defer cancel()
	stream, err := pb.NewVMsClient(p.conn).WatchVM(ctx, &pb.GetVMRequest{Tenant: tenant, Name: p.name})
	if err != nil {
		p.t.Fatal(err)
	}
	for {
		vm, err := stream.Recv()
		switch {
		case err != nil:
			p.t.Fatalf("wait for the agent's report: %v; last was %v", err, p.get(p.t.Context()))
		case vm.Phase == "failed":
			p.t.Fatalf("the VM failed: %s", vm.Error)
		case vm.Phase == "ready" && vm.Guest != nil && vm.Guest.BootId != p.boot:
			if !vm.Guest.Ok || vm.Guest.Error != "" || vm.Guest.Hostname != "db-1" {
				p.t.Fatalf("the agent reports %+v", vm.Guest)
			}
			p.boot = vm.Guest.BootId
			return
		}
	}
}

// sh runs a script inside, by Debian's shell.
func (p *packagedVM) sh(script string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), bootTime)
	defer cancel()
	out, err := lab.GuestExec(ctx, filepath.Join(p.dir, "exec.sock"), "/bin/dash -e <<'END-OF-SCRIPT'\n"+script+"\nEND-OF-SCRIPT\n")
	if err != nil {
		p.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(out)
}

// says fails the test if a script prints something else.
func (p *packagedVM) says(script, want string) {
	p.t.Helper()
	if got := p.sh(script); got != want {
		p.t.Errorf("%s: says %q, want %q", script, got, want)
	}
}

// started looks at the unit: systemd has started it at boot, once, and networkd has
// kept the NIC.
func (p *packagedVM) started() {
	p.says("systemctl show -P ActiveState -P UnitFileState -P NRestarts replug-guest | sort | xargs", "0 active enabled")
	p.says("networkctl status eth0 | grep -c 'DHCP4 via'", "1")
	p.says("pgrep -x -c replug-guest", "1")
}

// keys is what lets the user in, and where it is.
const keys = "cat /home/ann/.ssh/authorized_keys; findmnt -n -o SOURCE --target /home/ann; stat -c '%U %a' /home/ann"

// follows swaps it, and the agent says that it has followed. What the user has made of the
// keys that the machine was made with stays.
func (p *packagedVM) follows() {
	p.says(keys, "ssh-ed25519 AAAA ann\n/dev/vdf\nann 750")
	p.sh("echo ssh-ed25519 BBBB another >/home/ann/.ssh/authorized_keys")
	defer func() { p.says(keys, "ssh-ed25519 BBBB another\n/dev/vdf\nann 750") }()
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	defer cancel()
	client := pb.NewSwapsClient(p.conn)
	swap, err := client.StartSwap(ctx, &pb.StartSwapRequest{RequestId: p.World.id(), Tenant: tenant, Vm: p.name, Network: p.network("blue"), Confirm: "guest"})
	if err != nil {
		p.t.Fatal(err)
	}
	stream, err := client.WatchSwap(ctx, &pb.GetSwapRequest{Id: swap.Id})
	for err == nil && !swap.Done {
		swap, err = stream.Recv()
	}
	if err != nil || !swap.Ok {
		p.t.Fatalf("swap: %v, %s: %s", err, swap.Error, hops(swap))
	}
	p.t.Logf("swapped, rung %q: %s", swap.Rung, hops(swap))
	now, err := parse(swap.After.Addrs)
	if err != nil {
		p.t.Fatal(err)
	}
	p.says("ip -4 -o addr show dev eth0 | awk '{print $4}'", now[0].String()+"/16")
	p.says("cat /proc/sys/kernel/random/boot_id", p.boot)
}

// formatted looks at the disks that were blank, and has the owner use them: the second
// one in a place of its own, the third one for what is no file system, the fourth one
// for something that has its mark at the end only.
func (p *packagedVM) formatted() {
	p.says("for d in b c d e; do blkid -o value -s TYPE /dev/vd$d; done | xargs", "ext4 ext4 ext4 ext4")
	p.says("findmnt -n -o SOURCE,FSTYPE /srv/db | xargs; grep -c /srv/db /etc/fstab", "/dev/vdb ext4\n1")
	p.sh(`head -c 20000000 /dev/urandom >/srv/db/table
mkdir /data
echo "/dev/vdc /data ext4 defaults,x-systemd.device-timeout=10min 0 2" >>/etc/fstab
mount /data
cp /srv/db/table /data
for d in d e; do dd if=/dev/zero of=/dev/vd$d bs=1M count=64 2>/dev/null; done
mkswap -q /dev/vdd
echo of the owner | dd of=/dev/vde bs=512 seek=131064 2>/dev/null
sync`)
}

// contents is what is on the disks.
const contents = "sha256sum </srv/db/table; sha256sum </data/table; head -c 67108864 /dev/vdd | sha256sum; head -c 67108864 /dev/vde | sha256sum; ls -i /srv/db/table"

// rebooted looks at them after a reboot: it is all there, once.
func (p *packagedVM) rebooted() {
	before := p.sh(contents)
	p.sh("systemctl --no-block reboot")
	p.reported()
	p.says(contents, before)
	p.says("findmnt -n -o SOURCE,FSTYPE /srv/db | xargs; grep -c /srv/db /etc/fstab", "/dev/vdb ext4\n1")
	p.says(keys, "ssh-ed25519 BBBB another\n/dev/vdf\nann 750")
	p.started()
}

// grown makes the disks larger while the machine is off. What has a file system of the
// agent's is as large as its disk then, mounted by whomever; nothing else has changed.
func (p *packagedVM) grown() {
	before := p.sh(contents)
	p.power("off")
	disks, err := filepath.Glob(filepath.Join(p.dir, "data-*.qcow2"))
	if err != nil || len(disks) != 5 {
		p.t.Fatalf("disks %v, %v", disks, err)
	}
	slices.Sort(disks)
	for _, disk := range disks[:3] { // the end of the fourth one is what its mark is at
		run(p.t, "qemu-img", "resize", "-q", disk, fmt.Sprint(128*mebibyte))
	}
	p.power("on")
	p.reported()
	p.says(contents, before)
	p.says("for d in /srv/db /data; do s=$(df --output=size -k $d | tail -1); [ $s -gt 110000 ] && echo grown || echo $d: $s; done | xargs", "grown grown")
}

// power switches it, and waits until it is so.
func (p *packagedVM) power(to string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), bootTime)
	defer cancel()
	client := pb.NewVMsClient(p.conn)
	if _, err := client.SetPower(ctx, &pb.SetPowerRequest{RequestId: p.World.id(), Tenant: tenant, Name: p.name, Power: to}); err != nil {
		p.t.Fatal(err)
	}
	stream, err := client.WatchVM(ctx, &pb.GetVMRequest{Tenant: tenant, Name: p.name})
	for vm := (&pb.VM{}); err == nil && vm.Phase != map[string]string{"off": "stopped", "on": "ready"}[to]; {
		vm, err = stream.Recv()
	}
	if err != nil {
		p.t.Fatalf("power %s: %v", to, err)
	}
}

// upgraded installs the next version over the one that runs.
func (p *packagedVM) upgraded() {
	was := p.sh("systemctl show -P MainPID replug-guest")
	p.sh("dpkg -i /root/1.1.deb")
	if now := p.sh("systemctl show -P MainPID replug-guest"); now == was || now == "0" {
		p.t.Errorf("the upgrade leaves process %s running, was %s", now, was)
	}
	p.says("systemctl is-active replug-guest; dpkg-query -W -f '${Version}' replug-guest", "active\n1.1")
}

// removed takes the package away: nothing of it runs, and a purge forgets.
func (p *packagedVM) removed() {
	p.sh("rm /root/*.deb; apt-get remove -y replug-guest")
	p.says(`pgrep -x replug-guest || echo none
systemctl list-units --all --no-legend 'replug*'
ls -d /sys/fs/cgroup/system.slice/replug-guest.service 2>/dev/null || echo none
ls /var/lib/replug-guest`, "none\nnone\nstate.json")
	p.sh("apt-get purge -y replug-guest")
	p.says("find / -xdev -iname '*replug*' ! -path '/proc/*'; find /run /etc -iname '*replug*' ! -path '/run/udev/*'", "")
	p.says("networkctl status eth0 | grep -c 'DHCP4 via'", "1")
	p.says("findmnt -n /srv/db | wc -l", "1")
}
