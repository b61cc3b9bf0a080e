package network

import (
	"context"
	"fmt"

	"replug/directory/store"
	"replug/directory/vnet"
)

func vniKey(v vnet.VNI) string { return fmt.Sprintf("%s%08d", store.VNIs, v) }

// freeVNI returns want if it is free, or for want 0 the lowest free VNI of the
// range. It returns [ErrExhausted] when the range is used up.
func (m *Manager) freeVNI(ctx context.Context, want vnet.VNI) (vnet.VNI, error) {
	if want != 0 && !want.Valid() {
		return 0, fmt.Errorf("%w: %d is %w", ErrInvalid, want, vnet.ErrVNI)
	}
	rows, _, err := store.List[string](ctx, m.Store, store.VNIs)
	if err != nil {
		return 0, err
	}
	used := make(map[string]string, len(rows))
	for _, r := range rows {
		used[r.Key] = r.Value
	}
	if want != 0 {
		if _, taken := used[vniKey(want)]; taken {
			return 0, fmt.Errorf("VNI %d: %w: another network has it; leave it out to get the next free one", want, ErrExists)
		}
		return want, nil
	}
	for v := m.VNIs.Min; v <= m.VNIs.Max; v++ {
		if _, taken := used[vniKey(v)]; !taken {
			return v, nil
		}
	}
	return 0, fmt.Errorf("VNI: %w of %d to %d: delete a network, or give the server a larger range", ErrExhausted, m.VNIs.Min, m.VNIs.Max)
}
