package compute

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
