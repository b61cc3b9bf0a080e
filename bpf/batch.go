package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// each calls f with every row of a map, a batch a system call. It ends with f's
// first error. Rows that are put or deleted meanwhile may be missed or come twice.
func each[K, V any](m *ebpf.Map, f func(K, V) error) error {
	const batch = 2048
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if err := f(keys[i], values[i]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("list %s: %w", m, err)
		}
	}
}
