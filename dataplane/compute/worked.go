package compute

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Worked is the time that the machine's threads have run, or have waited for a CPU of
// the host; 0 when it is off. A guest that waits for something adds next to nothing.
func (s State) Worked() (sum time.Duration) {
	if s.PID == 0 {
		return 0
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.PID)) // the pattern is good
	for _, task := range tasks {
		// Documentation/scheduler/sched-stats.rst: ns that it ran, and ns that it waited.
		var ran, waited time.Duration
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		if n, _ := fmt.Sscan(string(b), (*int64)(&ran), (*int64)(&waited)); n == 2 {
			sum += ran + waited
		}
	}
	return sum
}
