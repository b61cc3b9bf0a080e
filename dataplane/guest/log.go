package guest

import (
	"fmt"
	"io"
	"sync"
)

// A logger writes one line an event, stamped with the monotonic clock: it goes to
// the VM's console, where it stands beside the kernel's own stamps. Any goroutine
// may use it.
type logger struct {
	mu *sync.Mutex
	w  io.Writer
}

func newLogger(w io.Writer) logger { return logger{new(sync.Mutex), w} }

func (l logger) say(format string, args ...any) {
	now := uptime()
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "replug-guest %d.%03d %s\n", int(now.Seconds()), now.Milliseconds()%1000, fmt.Sprintf(format, args...))
}
