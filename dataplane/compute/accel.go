package compute

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Accelerators.
const (
	accelKVM = "kvm"
	accelTCG = "tcg"
)

// How long a kernel may take under KVM: it says its first word in 0.2 s and has
// panicked for want of a root file system in 1 s, where KVM works.
const (
	firstWord = 4 * time.Second
	lastWord  = 15 * time.Second
)

// verdict is what a probe has found, good until the host's next boot.
type verdict struct {
	BootID string `json:"boot_id"`
	QEMU   string `json:"qemu"`
	Accel  string `json:"accel"`
	Why    string `json:"why,omitempty"` // not KVM
}

// accel decides once a boot of the host. /dev/kvm that opens proves nothing: it
// may be nested in something that runs boot code and then no kernel. So the image's
// own kernel has to get through its start.
func (q *QEMU) accel(ctx context.Context, kernel string) (string, error) {
	if q.c.Accel != "auto" {
		return q.c.Accel, nil
	}
	q.probing.Lock()
	defer q.probing.Unlock()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("decide about KVM: %w", err)
	}
	want := verdict{BootID: strings.TrimSpace(string(boot)), QEMU: q.c.QEMU}
	file := filepath.Join(q.c.Dir, "accel.json")
	if b, err := os.ReadFile(file); err == nil && q.known.Accel == "" {
		_ = json.Unmarshal(b, &q.known) // if it can't be read, it is found out again
	}
	if k := q.known; k.BootID == want.BootID && k.QEMU == want.QEMU && (k.Accel == accelKVM || k.Accel == accelTCG) {
		return k.Accel, nil
	}
	if kernel == "" {
		return accelTCG, nil // nothing to prove it with: the next image may have something
	}
	want.Accel = accelKVM
	if err := q.c.Probe(ctx, kernel); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("decide about KVM: %w", ctx.Err())
		}
		want.Accel, want.Why = accelTCG, err.Error()
	}
	q.c.Log.Info("acceleration is decided", "accel", want.Accel, "why", want.Why)
	q.known = want
	b, err := json.Marshal(want)
	if err == nil {
		err = replace(file, b)
	}
	if err != nil { // costs a probe after the agent's restart
		q.c.Log.Warn("what was found out about KVM is not kept", "err", err)
	}
	return want.Accel, nil
}

// ProbeKVM boots a kernel without a root file system under KVM and returns nil if
// it came as far as to miss it.
func (q *QEMU) ProbeKVM(ctx context.Context, kernel string) error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no KVM: %w", err)
	}
	dev.Close()
	ctx, cancel := context.WithTimeout(ctx, lastWord)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.c.QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", q.c.Machine,
		"-accel", "kvm", "-cpu", q.c.cpu(accelKVM), "-m", "256", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1")
	runtime.LockOSThread() // its end is what the kernel takes for the parent's death
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	silence := time.AfterFunc(firstWord, cancel)
	defer silence.Stop()
	out := &panicWatch{heard: func() { silence.Stop() }, panicked: cancel}
	cmd.Stdout = out
	err = cmd.Run()
	switch {
	case out.done:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNoQEMU, err)
	}
	return fmt.Errorf("a kernel did not get through its start under KVM (%d bytes of output): %w", len(out.said), errors.Join(err, ctx.Err()))
}

// panicWatch collects a probe's console.
type panicWatch struct {
	said            []byte
	heard, panicked func()
	done            bool
}

// Write takes the console's next bytes. A firmware's words are not a kernel's.
func (p *panicWatch) Write(b []byte) (int, error) {
	p.said = append(p.said, b...)
	if bytes.Contains(p.said, []byte("Linux version")) {
		p.heard()
	}
	if !p.done && bytes.Contains(p.said, []byte("Kernel panic")) {
		p.done = true
		p.panicked()
	}
	return len(b), nil
}
