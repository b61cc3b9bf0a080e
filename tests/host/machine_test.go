package host_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"replug/dataplane/qmp"
	"replug/directory/vnet"
	"replug/tests/lab"
)

// smallImage puts the small guest into host 1's repository, and returns the arguments
// of an agent that runs VMs of it.
func (w *world) smallImage() []string {
	w.t.Helper()
	image, err := lab.BuildGuest(w.ctx, guestAgent)
	if err != nil {
		w.t.Fatal(err)
	}
	accel, err := lab.Accel(w.ctx, image)
	if err != nil {
		w.t.Fatal(err)
	}
	images := join(w.lab.Host(1).Dir(), "images")
	if err := lab.InstallImage(image, images, "tiny"); err != nil {
		w.t.Fatal(err)
	}
	return []string{"--memory", "512", "--images", images, "--accel", accel,
		"--qemu-arg=-serial", "--qemu-arg=unix:{dir}/exec.sock,server=on,wait=off"}
}

// resetUnheard kills the agent once it has flipped the VM, resets the VM, and starts the
// agent again: it has to find out that the guest boots, and to leave its link alone. The
// guest stands still until it has, so it is no race.
func (w *world) resetUnheard(in vnet.Intent, agent *lab.Proc, args []string) (vnet.Intent, *lab.Proc) {
	w.t.Helper()
	p := place("blue", blue, "10.17.34.62", 10)
	prepare, change := to(in, p, vnet.TriggerBounce)
	w.dir.put(prepare)
	w.dir.await(w.ctx, w.t, in.Port, p.Epoch, vnet.StatusPrepared)
	monitor, err := qmp.Dial(w.ctx, join(w.lab.Host(1).Dir(), "state/vms/"+in.VM+"/power.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer monitor.Close()
	do := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	do(monitor.Stop(w.ctx))
	w.dir.put(change)
	w.dir.await(w.ctx, w.t, in.Port, p.Epoch, vnet.StatusFlipped)
	do(agent.Signal(unix.SIGKILL))
	_ = agent.Wait(w.ctx)
	do(monitor.Execute(w.ctx, "system_reset", nil, nil))
	agent = w.agent(1, args...)
	do(lab.Until(w.ctx, "the agent to tell of the reset", func() error {
		if s := w.dir.last(in.Port); s.Epoch != p.Epoch || !slices.ContainsFunc(s.Hops, func(h vnet.Hop) bool { return h.Name == vnet.HopReset }) {
			return fmt.Errorf("last status %+v", s)
		}
		return nil
	}))
	do(monitor.Cont(w.ctx))
	s := w.dir.await(w.ctx, w.t, in.Port, p.Epoch, vnet.StatusConfirmed, vnet.StatusFailed)
	w.t.Logf("reset while the agent was away: %s", timeline(s))
	if s.Phase != vnet.StatusConfirmed || s.Rung != "boot" {
		w.t.Errorf("reset while the agent was away: %+v", s)
	}
	return change, agent
}

func smallMachine() vnet.Intent {
	return vnet.Intent{
		Port: "vm-17.0", ID: 23, Host: "h1", MAC: vnet.PortMAC(0x2a3b4c5d), VM: "vm-17", PA: vnet.PA{Addr: addr("100.64.1.23")},
		Current: place("red", red, "10.17.34.51", 7),
		Machine: &vnet.Machine{ID: "vm-17", UUID: "5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a7b", CPUs: 1, Memory: 128, Image: "tiny",
			Disks: []vnet.Disk{{ID: "os", OS: true}}, Power: vnet.PowerOn},
	}
}

// A real machine is booted, moved while it runs without a reboot, taken over by
// a restarted agent, and deleted without a trace.
func TestMachine(t *testing.T) {
	w := newWorld(t, "hostqemu", 1)
	node, args, in := w.lab.Host(1), w.smallImage(), smallMachine()
	agent := w.agent(1, args...)
	w.dir.put(in)
	s := w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	if s.Power != vnet.PowerOn || s.Guest == nil || s.Guest.Hostname != "in-red" {
		t.Fatalf("booted: %+v", s)
	}
	boot := s.Guest.BootID
	w.heard(1) // it may have reported to the metadata service

	for i := range uint64(2) {
		p := place("blue", blue, "10.17.34.62", 8+i)
		if i == 1 {
			p = place("red", red, "10.17.34.51", 8+i)
		}
		prepare, change := to(in, p, vnet.TriggerBounce)
		w.dir.put(prepare)
		w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusPrepared, vnet.StatusRefused)
		w.dir.put(change)
		s = w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusConfirmed, vnet.StatusFailed)
		if s.Phase != vnet.StatusConfirmed || s.Guest.BootID != boot {
			t.Fatalf("swap: %+v, boot id was %s", s, boot)
		}
		t.Log(timeline(s))
		// Told by its second channel, without a cut of its link before that was in vain. An
		// agent of the host that has just come may not have heard the guest yet.
		if i == 0 {
			w.told(s)
		}
		in = change
		_ = agent.Signal(unix.SIGKILL)
		_ = agent.Wait(w.ctx)
		agent = w.agent(1, args...)
	}
	out, err := lab.GuestExec(w.ctx, join(node.Dir(), "state/vms/vm-17/exec.sock"), "ip -4 addr show eth0; cat /proc/sys/kernel/random/boot_id")
	if err != nil || !strings.Contains(string(out), "10.17.34.51/24") || !strings.Contains(string(out), boot) {
		t.Errorf("in the guest: %s, %v", out, err)
	}

	in, agent = w.resetUnheard(in, agent, args)
	in.Gone = true
	w.dir.put(in)
	w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusGone)
	left, err := node.Run(w.ctx, "sh", "-c", fmt.Sprintf("ls %s/state/vms %s/state/ports; ip -br link show type tun; pgrep -f vm-17 || true", node.Dir(), node.Dir()))
	if err != nil || strings.Contains(string(left), "vm-17") || strings.Contains(string(left), "rp-tap") {
		t.Errorf("left: %s, %v", left, err)
	}
	if err := agent.Stop(w.ctx); err != nil {
		t.Error(err)
	}
}
