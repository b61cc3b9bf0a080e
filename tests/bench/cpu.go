package bench

import (
	"fmt"
	"os"
	"path/filepath"
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

// threadCPU is what the calling thread has used.
func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
