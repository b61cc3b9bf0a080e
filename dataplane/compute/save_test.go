package compute

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"replug/directory/vnet"
)

// A machine is saved, goes on where it was, once, and boots the next time. S34.
func TestSave(t *testing.T) {
	h := newHost(t)
	m, nic := spec("vm-93", "talks"), h.tap("tap93")
	m.Disks = []vnet.Disk{{ID: "root-93", OS: true, Size: 3 << 20}}
	if err := h.q.Save(t.Context(), m.ID); !errors.Is(err, ErrOff) {
		t.Errorf("one that never ran: %v", err)
	}
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	h.said(s, "hello from the disk")
	if s.Resumed {
		t.Error("the first start went on from somewhere")
	}
	for range 2 {
		check(t, h.q.Save(t.Context(), m.ID))
	}
	if e := h.exit(); !e.Asked {
		t.Errorf("exit %+v", e)
	}
	saved, err := h.q.State(t.Context(), m.ID)
	if err != nil || saved.Power != vnet.PowerOff || !saved.Saved {
		t.Errorf("saved: %+v, %v", saved, err)
	}
	s, err = h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	mon, err := openMonitor(t.Context(), s.Monitor)
	check(t, err)
	if status, err := mon.Status(t.Context()); !s.Resumed || s.Saved || status != "running" || err != nil {
		t.Errorf("resumed: %+v, %s, %v", s, status, err)
	}
	if said, err := mon.(*monitor).send(`{"execute":"human-monitor-command","arguments":{"command-line":"info snapshots"}}`); err != nil || strings.Contains(said, savedName) {
		t.Errorf("the state still takes room: %q, %v", said, err)
	}
	mon.Close()
	if b, _ := os.ReadFile(s.Console); strings.Contains(string(b), "hello") {
		t.Errorf("it booted: %q", b)
	}
	check(t, h.q.Stop(t.Context(), m.ID, false))
	h.exit()
	s, err = h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	if s.Resumed {
		t.Error("it went back to the same state twice")
	}
	h.said(s, "hello from the disk")
}

// An agent that died between the state and the end of QEMU left a guest that stands
// still: it goes on, and its state is forgotten.
func TestSaveCutOff(t *testing.T) {
	h := newHost(t)
	m, nic := spec("vm-93", "babbles"), h.tap("tap93")
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	mon, err := openMonitor(t.Context(), s.Monitor)
	check(t, err)
	check(t, mon.Stop(t.Context()))
	check(t, mon.Save(t.Context(), savedName))
	check(t, os.WriteFile(filepath.Join(s.Dir, savedFile), nil, 0o600))
	_, err = h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	if status, err := mon.Status(t.Context()); status != "running" || err != nil || h.q.saved(m.ID) {
		t.Errorf("%s, marked %t, %v", status, h.q.saved(m.ID), err)
	}
	mon.Close()
}

// A monitor that fails to save, with the mark in place.
type failing struct {
	*monitor
	mark string
	cont func(ctx context.Context, marked bool)
}

func (f failing) Save(context.Context, string) error {
	return errors.Join(errors.New("no state"), os.WriteFile(f.mark, nil, 0o600))
}

func (f failing) Cont(ctx context.Context) error {
	_, err := os.Stat(f.mark)
	f.cont(ctx, err == nil)
	return f.monitor.Cont(ctx)
}

// A guest that could not be saved goes on without a mark, which would take it back to
// what it was at its next start; a monitor that no longer answers is not waited for.
func TestSaveFails(t *testing.T) {
	var mark string
	conts := 0
	h := newHost(t, func(c *Config) {
		c.Open = func(ctx context.Context, socket string) (Monitor, error) {
			mon, err := openMonitor(ctx, socket)
			if err != nil {
				return nil, err
			}
			return failing{mon.(*monitor), mark, func(ctx context.Context, marked bool) {
				conts++
				if end, bound := ctx.Deadline(); marked || !bound || time.Until(end) > patience || ctx.Err() != nil {
					t.Errorf("goes on: marked %t, until %s, bounded %t, %v", marked, end, bound, ctx.Err())
				}
			}}, nil
		}
	})
	m, nic := spec("vm-93", "babbles"), h.tap("tap93")
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	mark = filepath.Join(s.Dir, savedFile)
	ctx, cancel := context.WithCancel(t.Context())
	if err := h.q.Save(ctx, m.ID); err == nil || !strings.Contains(err.Error(), "no state") || conts != 1 || h.q.saved(m.ID) {
		t.Errorf("%v, let go on %d times, marked %t", err, conts, h.q.saved(m.ID))
	}
	cancel()
	check(t, os.Mkdir(mark, 0o700)) // can't be written, nor taken away
	check(t, os.WriteFile(filepath.Join(mark, "x"), nil, 0o600))
	if err := h.q.Save(t.Context(), m.ID); err == nil || !strings.Contains(err.Error(), "stands still") || conts != 1 {
		t.Errorf("with a mark that stays: %v, let go on %d times", err, conts)
	}
}

// A state that another QEMU has saved is none: its machine is off, and boots if it is
// started all the same. So is one of another type of machine. S34.
func TestSavedByAnotherQEMU(t *testing.T) {
	var said bytes.Buffer
	h := newHost(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	m, nic := spec("vm-93", "talks"), h.tap("tap93")
	m.Disks = []vnet.Disk{{ID: "root-93", OS: true, Size: 3 << 20}}
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	h.said(s, "hello from the disk")
	check(t, h.q.Save(t.Context(), m.ID))
	h.exit()
	mark := filepath.Join(s.Dir, savedFile)
	ours, err := os.ReadFile(mark)
	check(t, err)
	if !regexp.MustCompile(`^QEMU \d+\.\d+, machine q35\n$`).Match(ours) {
		t.Errorf("marked with %q", ours)
	}
	for _, other := range []string{"QEMU 6.1, machine q35\n", "QEMU 7.2, machine pc-q35-7.1\n", ""} {
		check(t, os.WriteFile(mark, []byte(other), 0o600))
		for range 2 {
			if s, err := h.q.State(t.Context(), m.ID); err != nil || s.Saved || s.Power != vnet.PowerOff {
				t.Errorf("marked with %q: %+v, %v", other, s, err)
			}
		}
		if n := strings.Count(said.String(), "is of another QEMU"); n != 1 {
			t.Errorf("marked with %q: said %d times:\n%s", other, n, said.String())
		}
		said.Reset()
	}
	check(t, os.WriteFile(mark, ours, 0o600))
	if s, err := h.q.State(t.Context(), m.ID); err != nil || !s.Saved {
		t.Errorf("marked as it was: %+v, %v", s, err)
	}
	check(t, os.WriteFile(mark, []byte("QEMU 6.1, machine q35\n"), 0o600))
	s, err = h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	h.said(s, "hello from the disk")
	if s.Resumed {
		t.Error("went on from another QEMU's state")
	}
}

// What is installed may be newer than the QEMU that runs: the state is the latter's.
func TestSavedAfterAnUpgrade(t *testing.T) {
	bin := t.TempDir()
	program := filepath.Join(bin, "qemu")
	real, err := exec.LookPath("qemu-system-x86_64")
	check(t, err)
	install := func(version string) {
		script := "#!/bin/sh\n[ \"$1\" = --version ] && { echo QEMU emulator version " + version + "; exit; }\nexec " + real + " \"$@\"\n"
		check(t, os.WriteFile(program+".new", []byte(script), 0o755))
		check(t, os.Rename(program+".new", program))
	}
	install("7.2.22")
	h := newHost(t, func(c *Config) { c.QEMU = program })
	m, nic := spec("vm-93", "babbles"), h.tap("tap93")
	m.Disks = []vnet.Disk{{ID: "root-93", OS: true, Size: 3 << 20}}
	s, err := h.q.Ensure(t.Context(), m, nic)
	check(t, err)
	install("8.2.0")
	check(t, h.q.Save(t.Context(), m.ID))
	for version, saved := range map[string]bool{"8.2.0": false, "7.2.23": true} {
		install(version)
		if s, err = h.q.State(t.Context(), m.ID); err != nil || s.Saved != saved {
			t.Errorf("with %s installed: %+v, %v", version, s, err)
		}
	}
	check(t, os.Remove(program))
	if s, err = h.q.State(t.Context(), m.ID); err != nil || !s.Saved {
		t.Errorf("while it is being replaced: %+v, %v", s, err)
	}
	install("7.2.23")
}
