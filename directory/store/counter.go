package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// counterBlock is how many numbers one durable write sets aside: a restart loses
// what is left of a block, and no number is ever given twice.
const counterBlock = 64

// eraGap is what a counter skips when the store was restored from a backup: the
// numbers given out after the backup was made are among them.
const eraGap = 1 << 20

// A Counter hands out numbers, each once, beginning at 1. It is safe for
// concurrent use by one leader.
type Counter struct {
	store *Store
	key   string
	era   uint16

	mu        sync.Mutex
	next, end uint64
}

// counterRow is what is stored: numbers below End may have been given out.
type counterRow struct {
	End uint64 `json:"end"`
	Era uint16 `json:"era"`
}

// NewCounter returns the counter of a name, in the era of the cluster.
func NewCounter(s *Store, name string, era uint16) *Counter {
	return &Counter{store: s, key: Counters + name, era: era}
}

// Next returns the next number.
func (c *Counter) Next(ctx context.Context) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == c.end {
		if err := c.reserve(ctx); err != nil {
			return 0, fmt.Errorf("next number of %s: %w", c.key, err)
		}
	}
	n := c.next
	c.next++
	return n, nil
}

func (c *Counter) reserve(ctx context.Context) error {
	row, err := Get[counterRow](ctx, c.store, c.key)
	if errors.Is(err, ErrNotFound) {
		row = Row[counterRow]{Value: counterRow{End: 1, Era: c.era}}
	} else if err != nil {
		return err
	}
	begin := row.Value.End
	if row.Value.Era != c.era {
		begin += eraGap
	}
	end := begin + counterBlock
	t := (&Txn{}).Unchanged(c.key, row.Revision).Put(c.key, counterRow{End: end, Era: c.era})
	if _, err := c.store.Commit(ctx, t); err != nil {
		return err
	}
	c.next, c.end = begin, end
	return nil
}
