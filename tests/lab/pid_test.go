package lab

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A process id that was given to another process is not the process we knew.
func TestReusedPID(t *testing.T) {
	self, err := refer(os.Getpid())
	if err != nil || !self.alive() {
		t.Fatalf("this process: %v, alive %v", err, self.alive())
	}
	other := pidRef{PID: self.PID, Start: self.Start - 7}
	if other.alive() {
		t.Error("a process with another start time is taken for the one we knew")
	}
	if err := other.signal(unix.SIGCONT); !errors.Is(err, unix.ESRCH) {
		t.Errorf("signal = %v, want ESRCH", err)
	}
	if err := self.signal(unix.SIGCONT); err != nil {
		t.Errorf("signal to this process = %v", err)
	}
}
