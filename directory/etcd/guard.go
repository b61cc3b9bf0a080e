package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// A guard makes calls fail fast and clearly: at once when the member has failed
// or the disk is nearly full, and after Config.Timeout when the caller gave no
// deadline of its own.
type guard struct {
	clientv3.KV
	etcd   *Etcd
	config Config
}

func (g *guard) begin(ctx context.Context, write bool) (context.Context, context.CancelFunc, error) {
	err := g.etcd.Err()
	if err == nil && write {
		err = g.etcd.room(g.config)
	}
	if _, ok := ctx.Deadline(); ok || err != nil {
		return ctx, func() {}, err
	}
	ctx, cancel := context.WithTimeout(ctx, g.config.Timeout)
	return ctx, cancel, nil
}

// room returns [ErrDiskFull] when the disk of the data directory is: etcd itself
// would not survive a write that fails. One statfs costs about a microsecond.
func (e *Etcd) room(c Config) error {
	if c.DataDir == "" {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.DataDir, &fs); err != nil {
		return fmt.Errorf("look for room in %s: %w", c.DataDir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < c.MinFree {
		return fmt.Errorf("%s has %d MiB left, needs %d: %w", c.DataDir, free>>20, c.MinFree>>20, ErrDiskFull)
	}
	return nil
}

// Put writes one row.
func (g *guard) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	ctx, cancel, err := g.begin(ctx, true)
	defer cancel()
	if err != nil {
		return nil, err
	}
	return g.KV.Put(ctx, key, val, opts...)
}

// Get reads rows.
func (g *guard) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel, err := g.begin(ctx, false)
	defer cancel()
	if err != nil {
		return nil, err
	}
	return g.KV.Get(ctx, key, opts...)
}

// Delete removes rows.
func (g *guard) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	ctx, cancel, err := g.begin(ctx, true)
	defer cancel()
	if err != nil {
		return nil, err
	}
	return g.KV.Delete(ctx, key, opts...)
}

// Do applies one operation.
func (g *guard) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	ctx, cancel, err := g.begin(ctx, writes(op))
	defer cancel()
	if err != nil {
		return clientv3.OpResponse{}, err
	}
	return g.KV.Do(ctx, op)
}

// Txn begins a transaction; it is judged when it is committed.
func (g *guard) Txn(ctx context.Context) clientv3.Txn { return &guardedTxn{guard: g, ctx: ctx} }

type guardedTxn struct {
	guard      *guard
	ctx        context.Context
	conds      []clientv3.Cmp
	then, orel []clientv3.Op
}

// If adds conditions.
func (t *guardedTxn) If(cs ...clientv3.Cmp) clientv3.Txn { t.conds = append(t.conds, cs...); return t }

// Then adds what is done when all conditions hold.
func (t *guardedTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.then = append(t.then, ops...); return t }

// Else adds what is done when one does not.
func (t *guardedTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.orel = append(t.orel, ops...); return t }

// Commit applies the transaction.
func (t *guardedTxn) Commit() (*clientv3.TxnResponse, error) {
	ctx, cancel, err := t.guard.begin(t.ctx, writes(t.then...) || writes(t.orel...))
	defer cancel()
	if err != nil {
		return nil, err
	}
	return t.guard.KV.Txn(ctx).If(t.conds...).Then(t.then...).Else(t.orel...).Commit()
}

func writes(ops ...clientv3.Op) bool {
	for _, op := range ops {
		if !op.IsGet() {
			return true
		}
	}
	return false
}
