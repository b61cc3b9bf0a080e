package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// Accelerators of QEMU.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// bootLimit is how long the small guest may take under KVM; it needs a second.
const bootLimit = 8 * time.Second

// An accelVerdict is what a probe has found; it holds until the machine boots.
type accelVerdict struct {
	Boot  string `json:"boot"`
	Accel string `json:"accel"`
	Why   string `json:"why,omitempty"`
}

// Accel says how QEMU is to run guests on this machine: [KVM] if a guest has
// booted with it, else [TCG], which emulates. A /dev/kvm that opens proves
// nothing: inside some virtual machines a kernel hangs on it. The probe takes up
// to 8 seconds, once a boot of the machine.
func Accel(ctx context.Context, image string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(cache, "accel.json")
	var known accelVerdict
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &known) == nil && known.Boot == bootID() {
		return known.Accel, nil
	}
	known = accelVerdict{Boot: bootID(), Accel: KVM}
	if err := tryBoot(ctx, image, KVM); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("try KVM: %w", context.Cause(ctx))
		}
		known.Accel, known.Why = TCG, err.Error()
	}
	return known.Accel, writeJSON(file, known)
}

// tryBoot boots the guest without a NIC until it says so.
func tryBoot(ctx context.Context, image, accel string) error {
	if accel == KVM {
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		f.Close()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the guest did not boot in time"))
	defer cancel()
	args, err := machine(image, "amd64", accel, 128)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], append(args[1:], "-no-reboot", "-serial", "stdio")...)
	killGroup(cmd)
	said := &listener{want: "guest: ", heard: cancel}
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Run()
	if said.done() {
		return nil
	}
	return fmt.Errorf("%w (%w): %s", context.Cause(ctx), err, tail(said.text.Bytes()))
}

// A listener calls heard when a text comes along.
type listener struct {
	want  string
	heard func()
	mu    sync.Mutex
	text  bytes.Buffer
}

func (l *listener) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text.Write(p)
	l.mu.Unlock()
	if l.done() {
		l.heard()
	}
	return len(p), nil
}

func (l *listener) done() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.text.Bytes(), []byte(l.want))
}
