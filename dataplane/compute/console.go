package compute

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// A guest writes to its console as it likes, on the host's disk. What is longer
// than consoleLimit is cut off at the next look.
const (
	consoleLimit = 8 << 20 // bytes
	consoleLook  = 30 * time.Second
)

// watchConsoles looks until ctx ends.
func (q *QEMU) watchConsoles(ctx context.Context) {
	tick := time.NewTicker(consoleLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			q.trimConsoles(consoleLimit)
		}
	}
}

// trimConsoles empties the consoles that are longer than limit. QEMU appends, so
// what comes next stands at the start again.
func (q *QEMU) trimConsoles(limit int64) {
	q.mu.Lock()
	var ids []string
	for id, m := range q.machines {
		if m.run != nil {
			ids = append(ids, id)
		}
	}
	q.mu.Unlock()
	for _, id := range ids {
		file := filepath.Join(q.dir(id), consoleFile)
		info, err := os.Stat(file)
		if err != nil || info.Size() <= limit {
			continue
		}
		if err := os.Truncate(file, 0); err != nil {
			q.c.Log.Warn("a console is too long and can't be cut", "vm", id, "bytes", info.Size(), "err", err)
			continue
		}
		q.c.Log.Info("a console was too long and is cut", "vm", id, "bytes", info.Size())
	}
}
