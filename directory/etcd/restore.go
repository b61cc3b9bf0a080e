package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"replug/directory/store"
)

// bump is how far the revision of a restored store is ahead of its backup: more
// than could be written between the backup and the loss.
const bump = 1_000_000_000

// restoredQuota bounds a store while it is restored: what a server may have raised
// its own to.
const restoredQuota = 8 << 30

// Restore makes a data directory of a backup: with the next era, so that every
// host takes everything anew, and with a revision that no host has ever seen. The
// directory must not exist or be empty ([ErrNotEmpty]); it is there whole or,
// after an error, not at all.
func Restore(ctx context.Context, backup io.Reader, dir string, log *slog.Logger) (Identity, error) {
	if found, err := os.ReadDir(dir); err == nil && len(found) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return Identity{}, errors.Join(fmt.Errorf("restore into %s: %w", dir, ErrNotEmpty), err)
	}
	r, err := newBackupReader(backup)
	if err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	id := Identity{ID: r.head.Cluster.ID, Era: r.head.Cluster.Era + 1}
	if r.head.Cluster.Era == math.MaxUint16 {
		return Identity{}, fmt.Errorf("restore: era %d is the last one", r.head.Cluster.Era)
	}
	dir = filepath.Clean(dir)
	tmp := dir + ".restoring"
	if err := os.RemoveAll(tmp); err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := restoreRows(ctx, r, tmp, log); err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	if err := seal(tmp, id, r.head.Revision+bump); err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	return id, nil
}

func restoreRows(ctx context.Context, r *backupReader, dir string, log *slog.Logger) (err error) {
	e, err := Open(ctx, Config{DataDir: dir, Log: log, Quota: restoredQuota})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	var ops []clientv3.Op
	size := 0
	for {
		l, err := r.next()
		// etcd takes 1.5 MiB a transaction.
		if done := errors.Is(err, io.EOF); done || size > 512<<10 || len(ops) == 100 {
			if _, err := e.client.Txn(ctx).Then(ops...).Commit(); err != nil {
				return fmt.Errorf("write rows: %w", err)
			}
			if done {
				return nil
			}
			ops, size = nil, 0
		}
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(l.Key, string(l.Value)))
		size += len(l.Key) + len(l.Value)
	}
}

// seal writes who the cluster is, at a given revision, into a closed database. A
// client can't choose revisions, so this is done in the file, the way etcdutl does
// when it restores a snapshot with a bumped revision.
func seal(dir string, id Identity, revision int64) error {
	value, err := json.Marshal(id)
	if err != nil {
		return err
	}
	row, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(store.Cluster), Value: value,
		CreateRevision: revision, ModRevision: revision, Version: 1})
	if err != nil {
		return err
	}
	db, err := bolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true})
	if err != nil {
		return fmt.Errorf("open the restored database: %w", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		at := mvcc.RevToBytes(mvcc.Revision{Main: revision}, mvcc.NewRevBytes())
		return tx.Bucket(schema.Key.Name()).Put(at, row)
	})
	return errors.Join(err, db.Close())
}
