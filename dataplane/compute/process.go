package compute

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

var errNotOurs = errors.New("another process has its number")

// A process is a QEMU that runs, held by a pidfd: its number can't pass to another
// process unnoticed.
type process struct {
	pid    int
	start  uint64 // clock ticks after the host's boot
	fd     *os.File
	exited chan struct{} // closed by await
	asked  atomic.Bool   // its end was asked for
}

// openProcess takes hold of pid if its command line has all of words in it.
func openProcess(pid int, words ...string) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd"), exited: make(chan struct{})}
	// What is read after the open is of the process that is held, or of none.
	if err := p.identify(words); err != nil {
		p.fd.Close()
		return nil, err
	}
	return p, nil
}

func (p *process) identify(words []string) error {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	args := strings.Split(string(cmdline), "\x00")
	for _, w := range words {
		if !slices.Contains(args, w) {
			return fmt.Errorf("process %d: %w", p.pid, errNotOurs)
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	// proc(5): the start time is field 22, the command in parentheses may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return fmt.Errorf("process %d: %w", p.pid, unix.ESRCH)
	}
	if p.start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	return nil
}

// await returns true when the process has ended, false when it was let go.
func (p *process) await() bool {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	// The poller wakes this up; the function only looks.
	_ = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(poll, 0)
		ended = n == 1
		return ended
	})
	if !ended {
		return false
	}
	_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil) // a zombie, if this agent started it
	close(p.exited)
	return true
}

// kill sends SIGKILL to exactly this process. One that has ended is no error.
func (p *process) kill() error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return nil // let go: it has ended
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}
