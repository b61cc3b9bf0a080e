package compute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// A machine boots from an overlay of its image, is left alone while it runs, keeps
// its disks while it is off, and leaves nothing. S8, S15, S26, S31.
func TestLifeOfAMachine(t *testing.T) {
	h := newHost(t)
	m, nic := spec("vm-93", "talks"), h.tap("tap93")
	m.Disks = []vnet.Disk{{ID: "root-93", OS: true, Size: 3 << 20}, {ID: "data-7", Size: 5 << 20}}
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	h.said(s, "hello from the disk")
	if s.Power != vnet.PowerOn || s.Accel != accelTCG || s.Problem != "" {
		t.Errorf("state %+v", s)
	}
	again, err := h.q.Ensure(t.Context(), m, nic)
	if err != nil || again.PID != s.PID {
		t.Errorf("second Ensure: %+v, %v", again, err)
	}
	for file, want := range map[string]string{"os.qcow2": "virtual size: 3 MiB", "data-data-7.qcow2": "virtual size: 5 MiB"} {
		out, err := exec.Command("qemu-img", "info", "-U", filepath.Join(s.Dir, file)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", file, err, out)
		}
		if backed := strings.Contains(string(out), "backing file format: qcow2"); backed != (file == "os.qcow2") {
			t.Errorf("%s: backed %v\n%s", file, backed, out)
		}
	}
	mon, err := openMonitor(t.Context(), s.Monitor)
	check(t, err)
	defer mon.Close()
	check(t, h.q.Stop(t.Context(), m.ID, false)) // though somebody holds the other monitor
	if e := h.exit(); !e.Asked || e.ID != m.ID {
		t.Errorf("exit %+v", e)
	}
	h.is(m.ID, vnet.PowerOff)
	inode := h.inode(s.Dir, "os.qcow2")
	s, err = h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	if h.inode(s.Dir, "os.qcow2") != inode {
		t.Error("the disk was made anew")
	}
	check(t, h.q.Delete(t.Context(), m.ID))
	check(t, h.q.Delete(t.Context(), m.ID))
	h.is(m.ID, vnet.PowerAbsent)
	if _, err := os.Stat(s.Dir); err == nil {
		t.Errorf("%s is still there", s.Dir)
	}
	if e := h.exit(); !e.Asked {
		t.Errorf("exit %+v", e)
	}
}

// The guest ends its machine itself: that is told, and not as asked for.
func TestExitByItself(t *testing.T) {
	h := newHost(t)
	s, err := h.q.Ensure(t.Context(), spec("vm-17", "dies"), h.tap("tap17"))
	check(t, err)
	if e := h.exit(); e.Asked || e.ID != s.ID {
		t.Errorf("exit %+v", e)
	}
	h.is(s.ID, vnet.PowerOff)
}

// A guest that ignores the power button is ended after its grace.
func TestGracefulStopEnds(t *testing.T) {
	h := newHost(t)
	s, err := h.q.Ensure(t.Context(), spec("vm-18", "talks"), h.tap("tap18"))
	check(t, err)
	h.said(s, "hello")
	check(t, h.q.Stop(t.Context(), s.ID, true))
	h.is(s.ID, vnet.PowerOff)
	if e := h.exit(); !e.Asked {
		t.Errorf("exit %+v", e)
	}
}

// Invariant 7 for machines: the agent's end is not theirs. Its successor adopts
// them, and hears of their end.
func TestAdoption(t *testing.T) {
	h := newHost(t)
	m, nic := spec("vm-21", "talks"), h.tap("tap21")
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	if sid, err := unix.Getsid(s.PID); err != nil || sid != s.PID {
		t.Errorf("session %d, %v: it would get the agent's signals", sid, err)
	}
	for _, agent := range []string{"restarted", "killed before it could write the record"} {
		check(t, h.q.Close())
		if agent != "restarted" {
			check(t, os.Remove(filepath.Join(s.Dir, recordFile)))
		}
		h.open()
		if again, err := h.q.Ensure(t.Context(), m, nic); err != nil || again.PID != s.PID {
			t.Fatalf("agent %s: %+v, %v, want pid %d", agent, again, err, s.PID)
		}
	}
	check(t, unix.Kill(s.PID, unix.SIGTERM))
	if e := h.exit(); e.Asked || !strings.Contains(e.Said, "terminating on signal 15") {
		t.Errorf("exit %+v", e)
	}
}

// A process number in a file proves nothing: another process may have it now.
func TestForeignProcessIsLeftAlone(t *testing.T) {
	h := newHost(t)
	for name, args := range map[string][]string{
		"vm-31": {"sleep", "600"},
		"vm-32": {"sh", "-c", "exec sleep 600", "-pidfile", "/elsewhere/qemu.pid"},
	} {
		other := exec.Command(args[0], args[1:]...)
		check(t, other.Start())
		defer other.Wait()
		defer other.Process.Kill()
		dir := h.q.dir(name)
		check(t, os.MkdirAll(dir, 0o755))
		check(t, os.WriteFile(filepath.Join(dir, pidFile), []byte(strconv.Itoa(other.Process.Pid)), 0o644))
		h.is(name, vnet.PowerOff)
		check(t, h.q.Stop(t.Context(), name, false))
		check(t, h.q.Delete(t.Context(), name))
		if err := other.Process.Signal(unix.Signal(0)); err != nil {
			t.Errorf("%s: the other process is gone: %v", name, err)
		}
	}
}

// A record that names another start time speaks of a process that had the number
// before, even if this one's command line fits.
func TestStartTimeDecides(t *testing.T) {
	h := newHost(t)
	s, err := h.q.Ensure(t.Context(), spec("vm-33", "talks"), h.tap("tap33"))
	check(t, err)
	r, err := readRecord(s.Dir)
	check(t, err)
	r.Start += 3
	check(t, r.write(s.Dir))
	if p := find(s.Dir); p != nil {
		p.fd.Close()
		t.Error("found with a wrong start time")
	}
	r.Start -= 3
	check(t, r.write(s.Dir))
	p := find(s.Dir)
	if p == nil {
		t.Fatal("not found with the right one")
	}
	p.fd.Close()
}

// A QEMU that is stopped does not answer: Ensure says so, and Stop ends it.
func TestHungQEMU(t *testing.T) {
	h := newHost(t)
	m, nic := spec("vm-41", "talks"), h.tap("tap41")
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	check(t, unix.Kill(s.PID, unix.SIGSTOP))
	short, cancel := context.WithTimeout(t.Context(), patience/10)
	defer cancel()
	if _, err := h.q.Ensure(short, m, nic); !errors.Is(err, ErrHung) {
		t.Errorf("Ensure: %v", err)
	}
	ended := make(chan error)
	go func() { ended <- h.q.Stop(t.Context(), m.ID, false) }()
	h.is(m.ID, vnet.PowerOn) // does not wait for the end of Stop
	select {
	case <-ended:
		t.Error("Stop ended before State")
	default:
	}
	check(t, <-ended)
	h.is(m.ID, vnet.PowerOff)
}

// Issue 2, point 6: what can't be started says why, and leaves nothing.
func TestRefusals(t *testing.T) {
	h := newHost(t)
	nic := h.tap("tap51")
	small := t.TempDir()
	check(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=300k"))
	defer unix.Unmount(small, 0)
	empty := filepath.Join(h.c.Images, "empty")
	check(t, os.MkdirAll(empty, 0o755))
	for _, c := range []struct {
		name   string
		want   error
		config func(*Config)
		spec   func(*vnet.Machine)
	}{
		{"unknown image", ErrNoImage, nil, func(m *vnet.Machine) { m.Image = "win-11" }},
		{"empty image", ErrNoImage, nil, func(m *vnet.Machine) { m.Image = "empty" }},
		{"image out of the repository", ErrSpec, nil, func(m *vnet.Machine) { m.Image = "../talks" }},
		{"id out of the directory", ErrSpec, nil, func(m *vnet.Machine) { m.ID = "../vm-51" }},
		{"no QEMU", ErrNoQEMU, func(c *Config) { c.QEMU = "qemu-system-none" }, nil},
		{"no qemu-img", ErrNoQEMU, func(c *Config) { c.QemuImg = "/nowhere/qemu-img" }, nil},
		{"OS disk smaller than its image", ErrSpec, nil, func(m *vnet.Machine) { m.Disks = []vnet.Disk{{ID: "d-1", OS: true, Size: 300}} }},
		{"no CPU", ErrSpec, nil, func(m *vnet.Machine) { m.CPUs = 0 }},
		{"disk full by reserve", ErrDiskFull, func(c *Config) { c.Dir = small }, nil},
		{"disk full", ErrDiskFull, func(c *Config) { c.Dir, c.MinFree = small, 1000 }, func(m *vnet.Machine) { m.Disks = []vnet.Disk{{ID: "d-1", Size: 3 << 40}} }},
		{"QEMU that refuses its arguments", ErrBoot, func(c *Config) { c.ExtraArgs = []string{"-frobnicate"} }, nil},
		{"image that is no qcow2", nil, nil, func(m *vnet.Machine) { m.Image = "torn" }},
	} {
		conf := h.c
		if c.config != nil {
			c.config(&conf)
		}
		torn := filepath.Join(h.c.Images, "torn")
		check(t, os.MkdirAll(torn, 0o755))
		check(t, os.WriteFile(filepath.Join(torn, "disk.qcow2"), []byte("QFI"), 0o644))
		q, err := New(t.Context(), conf)
		check(t, err)
		m := spec("vm-51", "talks")
		if c.spec != nil {
			c.spec(&m)
		}
		_, err = q.Ensure(t.Context(), m, nic)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		t.Logf("%s: %v", c.name, err)
		if left, err := q.List(t.Context()); err != nil || len(left) != 0 {
			t.Errorf("%s: left %+v, %v", c.name, left, err)
		}
		check(t, q.Close())
	}
}

// A failed start of a machine that has disks keeps them.
func TestFailedStartKeepsDisks(t *testing.T) {
	h := newHost(t)
	m, nic := spec("vm-61", "talks"), h.tap("tap61")
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	check(t, h.q.Stop(t.Context(), m.ID, false))
	inode := h.inode(s.Dir, "os.qcow2")
	if _, err := h.q.Ensure(t.Context(), m, NIC{Tap: "notap61", MAC: nic.MAC}); err == nil {
		// QEMU makes a tap that is missing, if it may.
		t.Log("QEMU made its tap")
	}
	check(t, h.q.Stop(t.Context(), m.ID, false))
	check(t, os.Remove(filepath.Join(h.c.Images, "talks", "disk.qcow2")))
	if _, err := h.q.Ensure(t.Context(), m, nic); !errors.Is(err, ErrBoot) {
		t.Errorf("Ensure: %v", err)
	}
	if h.inode(s.Dir, "os.qcow2") != inode {
		t.Error("the disk is another one")
	}
}

// QEMU gives up root where a user is named, and goes on working.
func TestRunAs(t *testing.T) {
	h := newHost(t, func(c *Config) { c.RunAs = "nobody" })
	s, err := h.q.Ensure(t.Context(), spec("vm-71", "talks"), h.tap("tap71"))
	check(t, err)
	h.said(s, "hello")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	check(t, err)
	for _, want := range []string{"\nUid:\t65534\t65534\t65534\t65534\n", "\nSeccomp:\t2\n", "\nCapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("status of QEMU is without %q:\n%s", want, b)
		}
	}
	check(t, h.q.Stop(t.Context(), s.ID, false))
}

// One tenant can't fill the host's disk with its console (invariant 7).
func TestConsoleIsCut(t *testing.T) {
	h := newHost(t)
	s, err := h.q.Ensure(t.Context(), spec("vm-81", "babbles"), h.tap("tap81"))
	check(t, err)
	h.said(s, strings.Repeat("x", 100000)) // more than it says while we look
	before, err := os.Stat(s.Console)
	check(t, err)
	h.q.trimConsoles(before.Size() * 999)
	if now, err := os.Stat(s.Console); err != nil || now.Size() < before.Size() {
		t.Errorf("a short one was cut: %v, %v", now, err)
	}
	h.q.trimConsoles(4000)
	after, err := os.Stat(s.Console)
	check(t, err)
	h.said(s, "x") // it goes on
	b, err := os.ReadFile(s.Console)
	check(t, err)
	if after.Size() >= before.Size() || b[0] != 'x' {
		t.Errorf("%d bytes after the cut, %d before, the first is %q", after.Size(), before.Size(), b[0])
	}
}

func (h *host) is(id string, want vnet.Power) {
	h.t.Helper()
	s, err := h.q.State(h.t.Context(), id)
	check(h.t, err)
	if s.Power != want {
		h.t.Errorf("machine %s is %s, want %s (%+v)", id, s.Power, want, s)
	}
}

func (h *host) inode(dir, file string) uint64 {
	h.t.Helper()
	var s unix.Stat_t
	check(h.t, unix.Stat(filepath.Join(dir, file), &s))
	return s.Ino
}
