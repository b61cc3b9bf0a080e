package network

import (
	"context"
	"fmt"

	"replug/directory/store"
	"replug/directory/vnet"
)

// indexBatch is how many rows go with one write.
const indexBatch = 50

// Index writes the rows that say whose a MAC, a tap and a VTEP's underlay address
// are, for a store of a server that didn't know them. Nobody else may write
// meanwhile. It returns what is against the rules and was let in, in words.
func (m *Manager) Index(ctx context.Context) (wrong []string, err error) {
	rows := make(map[string]string)
	intents, _, err := store.List[vnet.Intent](ctx, m.Store, store.Intents)
	if err != nil {
		return nil, err
	}
	for _, in := range intents {
		for key, what := range deviceKeys(&in.Value) {
			if other, taken := rows[key]; taken {
				wrong = append(wrong, fmt.Sprintf("%s: both port %s and port %s have it; detach one", what, other, in.Value.Port))
			}
			rows[key] = in.Value.Port
		}
	}
	networks, _, err := store.List[Network](ctx, m.Store, store.Networks)
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		vteps, err := m.VTEPs(ctx, &n.Value)
		if err != nil {
			return nil, err
		}
		for _, v := range vteps {
			if _, err := m.outside(ctx, v.PA); err != nil {
				wrong = append(wrong, fmt.Sprintf("VTEP %q of network %q: %v", v.Name, n.Value.Moniker, err))
			}
			rows[store.VTEPKey(v.PA, n.Value.VNI, v.Name)] = vtepOf(v.Name, &n.Value)
		}
	}
	return wrong, m.putAll(ctx, rows)
}

func (m *Manager) putAll(ctx context.Context, rows map[string]string) error {
	t, n := &store.Txn{}, 0
	for key, v := range rows {
		t.Put(key, v)
		if n++; n%indexBatch != 0 && n != len(rows) {
			continue
		}
		if _, err := m.Store.Commit(ctx, t); err != nil {
			return err
		}
		t = &store.Txn{}
	}
	return nil
}

// vtepOf names a VTEP to an operator.
func vtepOf(name string, n *Network) string {
	return fmt.Sprintf("%q of network %q of tenant %q", name, n.Moniker, n.Tenant)
}
