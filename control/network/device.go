package network

import (
	"context"
	"errors"
	"fmt"

	"replug/directory/store"
	"replug/directory/vnet"
)

// takeDevice composes that a port has its MAC, and its tap if that is somebody
// else's, which no other port has.
func (m *Manager) takeDevice(ctx context.Context, in *vnet.Intent) (*store.Txn, error) {
	t := &store.Txn{}
	for key, what := range deviceKeys(in) {
		row, err := store.Get[string](ctx, m.Store, key)
		if err == nil {
			return nil, fmt.Errorf("%s: %w: port %s has it", what, ErrInUse, row.Value)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		t.Absent(key).Put(key, in.Port)
	}
	return t, nil
}

// deviceKeys returns the rows that say that a device is a port's, and its name.
func deviceKeys(in *vnet.Intent) map[string]string {
	keys := map[string]string{store.MACs + in.MAC.String(): "MAC " + in.MAC.String()}
	if in.Tap != "" {
		keys[store.Taps+in.Host+"/"+in.Tap] = fmt.Sprintf("tap %s of host %s", in.Tap, in.Host)
	}
	return keys
}

// mac returns want, or the next MAC that no port has.
func (m *Manager) mac(ctx context.Context, want vnet.MAC) (vnet.MAC, error) {
	for want == (vnet.MAC{}) {
		n, err := m.macs.Next(ctx)
		if err != nil {
			return want, err
		}
		next := vnet.PortMAC(uint32(n))
		_, err = store.Get[string](ctx, m.Store, store.MACs+next.String())
		if errors.Is(err, store.ErrNotFound) {
			return next, nil
		}
		if err != nil {
			return want, err
		}
	}
	return want, nil
}
