package host_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"replug/directory/vnet"
	"replug/tests/lab"
)

// stock has the stock Debian image in it, and an agent that runs VMs of it.
type stock struct {
	*world
	accel string
}

// stockBudget is for any of these tests. A boot takes a minute of a CPU under
// emulation; on two cores that twenty others want it gets a tenth of one.
const stockBudget = 30 * time.Minute

// newStock skips what takes minutes where nobody asked for it: `make test` asks for
// the common way, `make test-stock` for all.
func newStock(t *testing.T, name, wanted string) *stock {
	t.Helper()
	s := newStocks(t, name, wanted, 1)
	s.agent(1, s.args(1)...)
	return s
}

// newStocks is newStock for several hosts, whose agents don't run yet.
func newStocks(t *testing.T, name, wanted string, hosts int) *stock {
	t.Helper()
	if asked := os.Getenv("REPLUG_STOCK"); asked != "all" && asked != wanted {
		t.Skipf("the stock Debian image is not asked for: REPLUG_STOCK is %q, and would have to be %q or all", asked, wanted)
	}
	w := newWorld(t, name, hosts)
	ctx, cancel := context.WithTimeout(t.Context(), stockBudget)
	t.Cleanup(cancel)
	w.ctx = ctx
	small, err := lab.BuildGuest(ctx, guestAgent)
	if err != nil {
		t.Fatal(err)
	}
	s := &stock{world: w}
	if s.accel, err = lab.Accel(ctx, small); err != nil {
		t.Fatal(err)
	}
	image, err := lab.BuildDebian(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range w.lab.Hosts() {
		if err := lab.InstallImage(image, join(node.Dir(), "images"), "debian"); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// args are those of host n's agent beyond what every host has.
func (s *stock) args(n int) []string {
	return []string{"--memory", "4096", "--images", join(s.lab.Host(n).Dir(), "images"), "--accel", s.accel,
		"--qemu-arg=-serial", "--qemu-arg=unix:{dir}/exec.sock,server=on,wait=off"}
}

// machine is a VM of the stock image in a place.
func (s *stock) machine(n int, personality vnet.Personality, p vnet.Place) vnet.Intent {
	return vnet.Intent{
		Port: fmt.Sprintf("vm-%d.0", n), ID: vnet.PortID(n), Host: "h1", MAC: vnet.PortMAC(0x2a3b4c00 + uint32(n)), VM: fmt.Sprintf("vm-%d", n),
		PA: vnet.PA{Addr: addr(fmt.Sprintf("100.64.1.%d", n))}, Current: p,
		Machine: &vnet.Machine{ID: fmt.Sprintf("vm-%d", n), UUID: fmt.Sprintf("5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a%02d", n), CPUs: 1, Memory: 384,
			Image: "debian", Personality: personality, Disks: []vnet.Disk{{ID: "os", OS: true}}, Power: vnet.PowerOn},
	}
}

// pool boots a VM into the pool. Its epochs are 7 there, and 8 when it is claimed.
func (s *stock) pool(n int, p vnet.Personality) vnet.Intent {
	in := s.machine(n, p, place("placeholder", red, fmt.Sprintf("10.17.34.%d", n), 7))
	in.Current.Isolated = true
	in.Current.Document = &vnet.Document{Tag: vnet.TagPartial, Instance: in.VM, Hostname: in.VM}
	s.dir.put(in)
	return in
}

// pooled waits for the first ready.
func (s *stock) pooled(in vnet.Intent) {
	s.t.Helper()
	st := s.dir.await(s.ctx, s.t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	if st.Guest == nil || st.Guest.Kind != vnet.ReportPartial || !st.Guest.OK {
		s.t.Fatalf("in the pool: %+v", st)
	}
}

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMOnH3gkPF6Z0JqpXoyMwfzgTzxiiJqYHBvyOEhCbfLK ann"

// owned is VM n's place at its owner's, in blue.
func owned(n int) vnet.Place {
	p := place("blue", blue, fmt.Sprintf("10.17.34.%d", n+100), 8)
	p.Document = &vnet.Document{Instance: fmt.Sprint("vm-", n), Hostname: fmt.Sprint("web-", n), User: "ann", SSHKeys: []string{key}, TimeZone: "Europe/Berlin",
		Files: []vnet.File{{Path: "/etc/of-the-owner", Content: "yes"}}, UserData: []byte("#!/bin/sh\necho \"$(hostname) ran\" >/run/user-data\n")}
	return p
}

// claim makes the VM somebody's, in blue, and calls mid once the port is flipped.
func (s *stock) claim(in vnet.Intent, mid func()) (vnet.Intent, vnet.Status) {
	s.t.Helper()
	return s.claimTo(in, owned(int(in.ID)), mid)
}

func (s *stock) claimTo(in vnet.Intent, p vnet.Place, mid func()) (vnet.Intent, vnet.Status) {
	s.t.Helper()
	prepare, change := to(in, p, vnet.TriggerBounce)
	s.dir.put(prepare)
	s.dir.await(s.ctx, s.t, in.Port, p.Epoch, vnet.StatusPrepared, vnet.StatusRefused)
	begun := time.Now()
	s.dir.put(change)
	if mid != nil {
		s.dir.await(s.ctx, s.t, in.Port, p.Epoch, vnet.StatusFlipped)
		mid()
	}
	st := s.dir.await(s.ctx, s.t, in.Port, p.Epoch, vnet.StatusConfirmed)
	s.t.Logf("%s: ready again %d ms after the claim, rung %q: %s", in.Port, time.Since(begun).Milliseconds(), st.Rung, timeline(st))
	if st.Guest == nil || st.Guest.Kind != vnet.ReportFinal || !st.Guest.OK {
		s.t.Errorf("claimed: %+v", st)
	}
	return change, st
}

// files is the VM's directory on its host.
func (s *stock) files(in vnet.Intent) string { return join(s.lab.Dir(), in.Host+"/state/vms/"+in.VM) }

// in runs a script inside the VM.
func (s *stock) in(in vnet.Intent, script string) string {
	s.t.Helper()
	out, err := lab.GuestExec(s.ctx, join(s.files(in), "exec.sock"), script)
	if err != nil {
		s.t.Fatalf("%s: %v", in.VM, err)
	}
	return strings.TrimSpace(out)
}

const (
	bootID     = "cat /proc/sys/kernel/random/boot_id"
	addresses  = "ip -4 -o addr show scope global | awk '{print $4}'"
	addresses6 = "ip -6 -o addr show scope global | grep -v tentative | awk '{print $4}'" // busybox has no -tentative
)

// waits is a script that waits inside the guest, five minutes at most: asking it
// again and again from outside would take the CPU that it needs.
func waits(until string) string {
	return "n=0; until " + until + " || [ $n = 300 ]; do sleep 1; n=$((n+1)); done"
}

// applied waits until the guest is wholly its owner's, and looks at what it took.
func (s *stock) applied(in vnet.Intent) {
	s.t.Helper()
	name, ca := fmt.Sprint("web-", in.ID), in.Current.Addrs[0].CA
	if out := s.in(in, waits("test -s /run/user-data")+"; cat /run/user-data"); out != name+" ran" {
		s.t.Errorf("%s: user data says %q", in.VM, out)
	}
	for script, want := range map[string]string{
		"hostname":                                   name,
		"cat /etc/of-the-owner":                      "yes",
		"readlink /etc/localtime":                    "/usr/share/zoneinfo/Europe/Berlin",
		"grep -c ann /home/ann/.ssh/authorized_keys": "1",
		addresses:                                    fmt.Sprintf("%s/24", ca),
		"grep -c . /var/lib/cloud/data/reported_ready 2>/dev/null || true": "",
	} {
		if got := s.in(in, script); got != want {
			s.t.Errorf("%s: %s says %q, want %q", in.VM, script, got, want)
		}
	}
}

// reboot pulls the plug and puts it in again, as far as the guest can tell.
func (s *stock) reboot(in vnet.Intent) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second) // no answer comes
	defer cancel()
	_, _ = lab.GuestExec(ctx, join(s.files(in), "exec.sock"), "sync; echo b >/proc/sysrq-trigger; sleep 9")
}

func (s *stock) booted(in vnet.Intent, was string) {
	s.t.Helper()
	err := lab.Until(s.ctx, in.VM+" to boot again", func() error {
		if s.in(in, bootID) == was {
			return fmt.Errorf("it has not gone down")
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// move swaps a VM that is its owner's: its own client has to follow.
func (s *stock) move(in vnet.Intent, next vnet.Place) vnet.Intent {
	s.t.Helper()
	next.Document = in.Current.Document
	prepare, change := to(in, next, vnet.TriggerBounce)
	s.dir.put(prepare)
	s.dir.await(s.ctx, s.t, in.Port, next.Epoch, vnet.StatusPrepared, vnet.StatusRefused)
	s.dir.put(change)
	moved := s.dir.await(s.ctx, s.t, in.Port, next.Epoch, vnet.StatusPublished)
	s.t.Logf("moved by its own client, rung %q: %s", moved.Rung, timeline(moved))
	return change
}
