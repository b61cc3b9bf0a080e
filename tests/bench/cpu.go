package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpu returns the CPU time that ksoftirqd and the processes given have used:
// where the kernel charges work that no load process is charged for.
func cpu(pids ...int) (total time.Duration) {
	for _, pid := range append(softirqd(), pids...) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, f := range files {
			b, err := os.ReadFile(f)
			var ns int64
			if _, scan := fmt.Sscan(string(b), &ns); err == nil && scan == nil {
				total += time.Duration(ns)
			}
		}
	}
	return total
}

// softirqd returns the pids of the kernel's ksoftirqd threads. They are among
// the first.
func softirqd() (pids []int) {
	for pid := 2; pid < 200; pid++ {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.HasPrefix(string(b), "ksoftirqd/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// keepToFirstCPU binds the calling goroutine to a thread, and that to a CPU: one
// that wakes another pays for an interrupt between CPUs, which in a virtual
// machine costs more than all that is measured here.
func keepToFirstCPU() (release func(), err error) {
	runtime.LockOSThread()
	var old, first unix.CPUSet
	first.Set(0)
	err = errors.Join(unix.SchedGetaffinity(0, &old), unix.SchedSetaffinity(0, &first))
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("bind a thread to the first CPU: %w", err)
	}
	return func() {
		if unix.SchedSetaffinity(0, &old) == nil {
			runtime.UnlockOSThread() // else the thread ends with its goroutine
		}
	}, nil
}

// threadCPU is what the calling thread has used.
func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
