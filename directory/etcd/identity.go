package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"replug/directory/store"
)

// An Identity is the row [store.Cluster]: which cluster the database is of, and
// how many times it was restored from a backup. Hosts that hold what another
// cluster or era told them forget it.
type Identity struct {
	ID  string `json:"id"`
	Era uint16 `json:"era"`
}

// firstEra is the era of a database that was never restored. Not 0: epochs of
// era 0 are none.
const firstEra = 1

// Identity returns who the cluster is; the first server that asks decides it.
func (e *Etcd) Identity(ctx context.Context) (Identity, error) {
	s := store.New(e.client)
	for {
		row, err := store.Get[Identity](ctx, s, store.Cluster)
		if !errors.Is(err, store.ErrNotFound) {
			return row.Value, err
		}
		first := Identity{ID: rand.Text(), Era: firstEra}
		_, err = s.Commit(ctx, new(store.Txn).Absent(store.Cluster).Put(store.Cluster, first))
		if err == nil {
			return first, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return Identity{}, fmt.Errorf("name the cluster: %w", err)
		}
	}
}
