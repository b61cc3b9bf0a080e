package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A pidRef names one process for good: a process id alone is used again.
type pidRef struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, proc(5) stat field 22
}

// refer makes a reference to a living process.
func refer(pid int) (pidRef, error) {
	s, err := stat(pid)
	return pidRef{PID: pid, Start: s.start}, err
}

// alive reports whether the process runs; a zombie doesn't, unless it is the first
// thread of a process another thread of which is about to take its place (execve(2)).
func (r pidRef) alive() bool {
	s, err := stat(r.PID)
	return err == nil && s.start == r.Start && (s.state != 'Z' && s.state != 'X' || s.threads > 1)
}

// signal sends sig through a pidfd, so that the check and the signal are about
// the same process.
func (r pidRef) signal(sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return fmt.Errorf("signal pid %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	if !r.alive() {
		return fmt.Errorf("signal pid %d: %w", r.PID, unix.ESRCH)
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// A procStat is what /proc says of a process.
type procStat struct {
	state   byte
	threads int
	start   uint64 // as in [pidRef]
}

func stat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// The command in parentheses may hold anything; the fields follow its end.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const stateField, threadsField, startField = 0, 17, 19
	if len(fields) <= startField {
		return procStat{}, fmt.Errorf("pid %d: short stat", pid)
	}
	threads, err1 := strconv.Atoi(fields[threadsField])
	start, err2 := strconv.ParseUint(fields[startField], 10, 64)
	return procStat{fields[stateField][0], threads, start}, errors.Join(err1, err2)
}

// pids lists the processes of the machine.
func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// ancestors returns this process and all that it descends from.
func ancestors() map[int]bool {
	family := map[int]bool{}
	for pid := os.Getpid(); pid > 0 && !family[pid]; {
		family[pid] = true
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		pid, _ = strconv.Atoi(fields[1])
	}
	return family
}
