package qmp_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"replug/dataplane/qmp"
)

// startQEMU starts a machine whose virtual CPUs never run, and returns its
// monitor and what the process ends with.
func startQEMU(t *testing.T) (string, <-chan error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qmp.sock")
	cmd := exec.Command("qemu-system-x86_64", "-machine", "q35", "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64",
		"-netdev", "hubport,hubid=0,id=net7", "-device", "virtio-net-pci,netdev=net7,id=nic7,mac=02:52:1a:2b:3c:4d,romfile=",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	listens, err := l.File() // before QEMU is there: a file that it makes is there before it listens
	if err != nil {
		t.Fatal(err)
	}
	defer listens.Close()
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{listens}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v (needs qemu-system-x86)", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return socket, exited
}

// TestQEMU moves the link of a NIC of a real machine.
func TestQEMU(t *testing.T) {
	socket, exited := startQEMU(t)
	ctx := within(t, time.Minute)
	c := dial(t, socket)
	if s, err := c.Status(ctx); err != nil || s != "prelaunch" {
		t.Errorf("status %q, %v", s, err)
	}
	// QEMU 7.2 has no command that tells a link's state: what the guest sees of
	// it is for the lab's tests to prove.
	for _, up := range []bool{false, true} {
		for _, id := range []string{"nic7", "net7"} {
			if err := c.SetLink(ctx, id, up); err != nil {
				t.Errorf("%s up %v: %v", id, up, err)
			}
		}
	}
	var refused *qmp.Error
	if err := c.SetLink(ctx, "nic8", false); !errors.As(err, &refused) || refused.Class != "DeviceNotFound" {
		t.Errorf("a NIC that isn't there: %v", err)
	}
	if err := c.Execute(ctx, "system_reset", nil, nil); err != nil {
		t.Errorf("reset: %v", err)
	}
	select {
	case _, open := <-c.Resets():
		if !open {
			t.Error("the client is dead")
		}
	case <-time.After(deadline):
		t.Error("a reset was not told")
	}
	if err := c.Quit(ctx); err != nil {
		t.Errorf("quit: %v", err)
	}
	if err := <-exited; err != nil {
		t.Errorf("QEMU ended: %v", err)
	}
}
