package control

import (
	"context"
	"errors"

	"replug/directory/store"
)

// schema counts what was added to the store that this server relies on; 1: the rows
// at [store.MACs], [store.Taps] and [store.VTEPs].
const schema = 1

// complete adds what a store of an older server lacks. It writes the schema last,
// so a leader that dies over it leaves the work to the next.
func (r *reign) complete(ctx context.Context) error {
	row, err := store.Get[int](ctx, r.store, store.Schema)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if row.Value >= schema {
		return nil
	}
	wrong, err := r.networks.Index(ctx)
	if err != nil {
		return err
	}
	for _, w := range wrong {
		r.log.Warn("the store has what is refused now", "what", w)
	}
	return r.commit(ctx, (&store.Txn{}).Put(store.Schema, schema))
}
