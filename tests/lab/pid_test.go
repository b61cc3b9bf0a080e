package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

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

// leaderless, in the environment, makes this program one whose first thread has
// ended, as it has for a moment where another thread executes a program.
const leaderless = "REPLUG_TEST_LEADERLESS"

func init() {
	if os.Getenv(leaderless) == "" {
		return
	}
	go func() {
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // of the thread: init runs on the first
}

// A process whose first thread is a zombie runs as long as another thread does.
func TestFirstThreadIsGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), leaderless+"=1")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	ref, err := refer(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := Until(ctx, "its first thread to end", func() error {
		if s, err := stat(ref.PID); err != nil || s.state != 'Z' {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !ref.alive() {
		t.Error("a process is taken for dead that runs without its first thread")
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil || ref.alive() {
		t.Errorf("after its end: %v, alive %v", err, ref.alive())
	}
}
