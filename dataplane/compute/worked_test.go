package compute

import (
	"os"
	"testing"
	"time"
)

// What a process has had of the CPUs grows while it works, and one that is off has none.
func TestWorked(t *testing.T) {
	s := State{PID: os.Getpid()}
	before := s.Worked()
	for begin := time.Now(); time.Since(begin) < 20*time.Millisecond; {
	}
	if d := s.Worked() - before; d < 10*time.Millisecond || d > 10*time.Second {
		t.Errorf("20 ms of work became %s", d)
	}
	if d := (State{}).Worked(); d != 0 {
		t.Errorf("a machine that is off worked for %s", d)
	}
}
