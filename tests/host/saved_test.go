package host_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"replug/dataplane/qmp"
	"replug/directory/vnet"
	"replug/tests/lab"
)

// slept is how long a guest is left asleep, for its clock to be late.
const slept = 5 * time.Second

// A pooled VM with our agent is saved, uses nothing, and goes on at the claim without
// a reboot, with the time of now and other random numbers than it was about to draw. Its
// firmware tells it that it is another one now, for kernels that renew theirs by that.
func TestSaved(t *testing.T) {
	w := newWorld(t, "hostsaved", 1)
	w.agent(1, w.smallImage()...)
	in := smallMachine()
	in.Current.Document.Tag = vnet.TagPartial
	w.dir.put(in)
	pooled := w.dir.await(w.ctx, t, in.Port, in.Current.Epoch, vnet.StatusConfirmed)
	was, told := w.generation(in)
	in.Current.Hold = vnet.HoldSnapshot
	w.dir.put(in)
	w.saved(in)
	time.Sleep(slept) // what is looked at is the time that goes by
	p := place("blue", blue, "10.17.34.62", 8)
	prepare, change := to(in, p, vnet.TriggerBounce)
	asleep, begun := w.listening(), time.Now()
	w.dir.put(prepare)
	w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusPrepared, vnet.StatusRefused)
	// The host itself waits for a second, which is not enough on a machine with much to do.
	w.heard(asleep + 1)
	w.dir.put(change)
	s := w.dir.await(w.ctx, t, in.Port, p.Epoch, vnet.StatusConfirmed, vnet.StatusFailed)
	t.Logf("its owner's %d ms after the claim: %s", time.Since(begun).Milliseconds(), timeline(s))
	if s.Phase != vnet.StatusConfirmed || s.Guest.BootID != pooled.Guest.BootID || s.Guest.Hostname != "in-blue" {
		t.Errorf("claimed: %+v %+v, boot id was %s", s, s.Guest, pooled.Guest.BootID)
	}
	w.told(s) // it was there, and no link is to be cut
	w.awake(in)
	if is, again := w.generation(in); is == was || again != told+1 {
		t.Errorf("its generation was %s and is %s, and it was told %d times, then %d", was, is, told, again)
	}
	if said, err := os.ReadFile(join(w.lab.Host(1).Dir(), "state/vms/"+in.VM+"/console.log")); err != nil || !bytes.Contains(said, []byte("random numbers are renewed")) {
		t.Errorf("its agent does not say that it was woken: %v, %s", err, said)
	}
}

// listening is how often the host has begun to hear an agent of a guest.
func (w *world) listening() int {
	b, err := os.ReadFile(join(w.lab.Host(1).Dir(), "replug-host.log"))
	if err != nil {
		w.t.Fatal(err)
	}
	return bytes.Count(b, []byte("guest's agent listens"))
}

// heard waits until the host has begun to hear agents of guests so often.
func (w *world) heard(times int) {
	w.t.Helper()
	if err := lab.Until(w.ctx, "the host to hear the guest's agent", func() error {
		if n := w.listening(); n < times {
			return fmt.Errorf("it has begun to %d times, not %d", n, times)
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
}

// generation returns the VM's generation id, and how often its kernel was told that it is
// another one: events of the ACPI device, which QEMU has at GPE 5, whether or not the
// kernel has a driver for it.
func (w *world) generation(in vnet.Intent) (id string, told int) {
	w.t.Helper()
	dir := join(w.lab.Dir(), in.Host+"/state/vms/"+in.VM)
	m, err := qmp.Dial(w.ctx, join(dir, "power.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	var g struct {
		GUID string `json:"guid"`
	}
	if err := m.Execute(w.ctx, "query-vm-generation-id", nil, &g); err != nil {
		w.t.Fatal(err)
	}
	out, err := lab.GuestExec(w.ctx, join(dir, "exec.sock"), "cat /sys/firmware/acpi/interrupts/gpe05")
	if fields := strings.Fields(out); err == nil && len(fields) > 0 {
		told, err = strconv.Atoi(fields[0])
	}
	if err != nil {
		w.t.Fatalf("%q: %v", out, err)
	}
	return g.GUID, told
}

// saved waits until the host says that the VM rests.
func (w *world) saved(in vnet.Intent) {
	w.t.Helper()
	err := lab.Until(w.ctx, in.VM+" to be saved", func() error {
		w.dir.mu.Lock()
		defer w.dir.mu.Unlock()
		for _, st := range w.dir.statuses {
			if st.Port == in.Port && st.Power == vnet.PowerSaved {
				return nil
			}
		}
		return errors.New("it runs")
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// awake looks whether a guest that slept knows how late it is. Emulated on a machine
// with much to do, its clock may be fast: only that it isn't behind is looked at.
func (w *world) awake(in vnet.Intent) {
	w.t.Helper()
	before := time.Now()
	out, err := lab.GuestExec(w.ctx, join(w.lab.Host(1).Dir(), "state/vms/"+in.VM+"/exec.sock"), "date +%s")
	if s, perr := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || perr != nil || time.Unix(s+2, 0).Before(before) {
		w.t.Errorf("its clock says %q (%v) at %s", out, err, before)
	}
}
