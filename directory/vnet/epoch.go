package vnet

import (
	"fmt"
	"strconv"
	"strings"
)

// An Epoch is the identity of a port's place in a network: era in the upper 16
// bits, counter in the lower 48. It grows with each flip; the higher one wins
// everywhere. The era grows when the store is restored from a backup.
type Epoch uint64

const counterBits = 48

// NewEpoch puts an epoch together. Counter must fit 48 bits.
func NewEpoch(era uint16, counter uint64) Epoch {
	return Epoch(uint64(era)<<counterBits | counter&(1<<counterBits-1))
}

// Era returns the era.
func (e Epoch) Era() uint16 { return uint16(e >> counterBits) }

// Counter returns the counter.
func (e Epoch) Counter() uint64 { return uint64(e) & (1<<counterBits - 1) }

// Next returns the epoch after e, in the same era.
func (e Epoch) Next() Epoch { return NewEpoch(e.Era(), e.Counter()+1) }

// String prints "era.counter".
func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.Era(), e.Counter()) }

// ParseEpoch reads what [Epoch.String] prints; it returns [ErrEpoch].
func ParseEpoch(s string) (Epoch, error) {
	era, counter, ok := strings.Cut(s, ".")
	a, err1 := strconv.ParseUint(era, 10, 16)
	c, err2 := strconv.ParseUint(counter, 10, counterBits)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q: %w", s, ErrEpoch)
	}
	return NewEpoch(uint16(a), c), nil
}

// MarshalText prints e as [Epoch.String] does.
func (e Epoch) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what [ParseEpoch] reads.
func (e *Epoch) UnmarshalText(b []byte) (err error) {
	*e, err = ParseEpoch(string(b))
	return err
}
