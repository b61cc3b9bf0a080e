package host_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
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

// newStock skips what takes minutes where nobody asked for it: `make test` asks for
// the common way, `make test-stock` for all.
func newStock(t *testing.T, name, wanted string, in time.Duration) *stock {
	t.Helper()
	if asked := os.Getenv("REPLUG_STOCK"); asked != "all" && asked != wanted {
		t.Skipf("the stock Debian image is not asked for: REPLUG_STOCK is %q, and would have to be %q or all", asked, wanted)
	}
	w := newWorld(t, name, 1)
	ctx, cancel := context.WithTimeout(t.Context(), in)
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
	node := w.lab.Host(1)
	if err := lab.InstallImage(image, join(node.Dir(), "images"), "debian"); err != nil {
		t.Fatal(err)
	}
	w.agent(1, s.args()...)
	return s
}

// args are the agent's beyond what every host has.
func (s *stock) args() []string {
	return []string{"--memory", "4096", "--images", join(s.lab.Host(1).Dir(), "images"), "--accel", s.accel,
		"--qemu-arg=-serial", "--qemu-arg=unix:{dir}/exec.sock,server=on,wait=off"}
}

// pool boots a VM into the pool. Its epochs are 7 there, and 8 when it is claimed.
func (s *stock) pool(n int, p vnet.Personality) vnet.Intent {
	in := vnet.Intent{
		Port: fmt.Sprintf("vm-%d.0", n), ID: vnet.PortID(n), Host: "h1", MAC: vnet.PortMAC(0x2a3b4c00 + uint32(n)), VM: fmt.Sprintf("vm-%d", n),
		PA: vnet.PA{Addr: addr(fmt.Sprintf("100.64.1.%d", n))}, Current: place("placeholder", red, fmt.Sprintf("10.17.34.%d", n), 7),
		Machine: &vnet.Machine{ID: fmt.Sprintf("vm-%d", n), UUID: fmt.Sprintf("5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a%02d", n), CPUs: 1, Memory: 384,
			Image: "debian", Personality: p, Disks: []vnet.Disk{{ID: "os", OS: true}}, Power: vnet.PowerOn},
	}
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

// claim makes the VM somebody's, in blue, and calls mid once the port is flipped.
func (s *stock) claim(in vnet.Intent, mid func()) (vnet.Intent, vnet.Status) {
	s.t.Helper()
	p := place("blue", blue, fmt.Sprintf("10.17.34.%d", in.ID+100), 8)
	p.Document = &vnet.Document{Instance: in.VM, Hostname: "web-" + fmt.Sprint(in.ID), User: "ann", SSHKeys: []string{key}, TimeZone: "Europe/Berlin",
		Files: []vnet.File{{Path: "/etc/of-the-owner", Content: "yes"}}, UserData: []byte("#!/bin/sh\necho \"$(hostname) ran\" >/run/user-data\n")}
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

// in runs a script inside the VM.
func (s *stock) in(in vnet.Intent, script string) string {
	s.t.Helper()
	out, err := lab.GuestExec(s.ctx, join(s.lab.Host(1).Dir(), "state/vms/"+in.VM+"/exec.sock"), script)
	if err != nil {
		s.t.Fatalf("%s: %v", in.VM, err)
	}
	return strings.TrimSpace(out)
}

const (
	bootID    = "cat /proc/sys/kernel/random/boot_id"
	addresses = "ip -4 -o addr show scope global | awk '{print $4}'"
)

// waits is a script that waits inside the guest: asking it again and again from
// outside would take the CPU that it needs.
func waits(until string) string { return "until " + until + "; do sleep 1; done" }

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

// A stock Debian image goes through pool, claim and swap, without a reboot and with
// nothing of ours in it. Each NIC that it may have is tried.
func TestCloudInit(t *testing.T) {
	for personality, rung := range map[vnet.Personality]string{vnet.PersonalityCloudInit: "bounce 200ms", vnet.PersonalityCloudInitSavable: "replug 20ms"} {
		t.Run(string(personality), func(t *testing.T) {
			s := newStock(t, "hostdeb", string(personality), 12*time.Minute)
			in := s.pool(23, personality)
			s.pooled(in)
			boot := s.in(in, bootID)
			in, st := s.claim(in, nil)
			if st.Rung != rung {
				t.Errorf("rung %q, want %q", st.Rung, rung)
			}
			s.applied(in)
			next := place("red", red, "10.17.34.77", 9)
			next.Document = in.Current.Document
			prepare, change := to(in, next, vnet.TriggerBounce)
			s.dir.put(prepare)
			s.dir.await(s.ctx, t, in.Port, next.Epoch, vnet.StatusPrepared, vnet.StatusRefused)
			s.dir.put(change)
			moved := s.dir.await(s.ctx, t, in.Port, next.Epoch, vnet.StatusPublished)
			t.Logf("moved by its own client, rung %q: %s", moved.Rung, timeline(moved))
			if got := s.in(change, addresses); got != "10.17.34.77/24" {
				t.Errorf("after the swap it has %q", got)
			}
			if now := s.in(change, bootID); now != boot {
				t.Errorf("boot id was %s, is %s", boot, now)
			}
		})
	}
}

// A pooled VM is saved, uses nothing, and goes on at the claim, with the time of now.
func TestCloudInitSaved(t *testing.T) {
	s := newStock(t, "hostdebsa", "saved", 12*time.Minute)
	in := s.pool(23, vnet.PersonalityCloudInit)
	s.pooled(in)
	boot := s.in(in, bootID)
	in.Current.Hold = vnet.HoldSnapshot
	s.dir.put(in)
	s.saved(in)
	in, _ = s.claim(in, nil)
	s.applied(in)
	if now := s.in(in, bootID); now != boot {
		t.Errorf("boot id was %s, is %s", boot, now)
	}
	out := s.in(in, "date +%s")
	if guest, err := strconv.ParseInt(out, 10, 64); err != nil || time.Since(time.Unix(guest, 0)).Abs() > 15*time.Second {
		t.Errorf("its clock says %s, %v", out, time.Unix(guest, 0))
	}
}

// saved waits until the host says that the VM rests.
func (s *stock) saved(in vnet.Intent) {
	s.t.Helper()
	err := lab.Until(s.ctx, in.VM+" to be saved", func() error {
		s.dir.mu.Lock()
		defer s.dir.mu.Unlock()
		for _, st := range s.dir.statuses {
			if st.Port == in.Port && st.Power == vnet.PowerSaved {
				return nil
			}
		}
		return errors.New("it runs")
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// A VM that reboots while it waits, and one that does in mid-swap, become their
// owners' all the same.
func TestCloudInitReboots(t *testing.T) {
	s := newStock(t, "hostdebre", "reboots", 12*time.Minute)
	waiting, moving := s.pool(24, vnet.PersonalityCloudInit), s.pool(25, vnet.PersonalityCloudInit)
	s.pooled(waiting)
	s.pooled(moving)
	was := s.in(waiting, bootID)
	s.reboot(waiting)
	s.booted(waiting, was)
	s.in(waiting, waits("grep -q reprovisiondata /var/log/cloud-init.log"))
	boot := s.in(waiting, bootID)
	waiting, _ = s.claim(waiting, nil)
	s.applied(waiting)
	if now := s.in(waiting, bootID); now != boot {
		t.Errorf("boot id was %s, is %s", boot, now)
	}

	was = s.in(moving, bootID)
	moving, _ = s.claim(moving, func() { s.reboot(moving) })
	s.booted(moving, was)
	s.applied(moving)
}

// reboot pulls the plug and puts it in again, as far as the guest can tell.
func (s *stock) reboot(in vnet.Intent) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second) // no answer comes
	defer cancel()
	_, _ = lab.GuestExec(ctx, join(s.lab.Host(1).Dir(), "state/vms/"+in.VM+"/exec.sock"), "sync; echo b >/proc/sysrq-trigger; sleep 9")
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
