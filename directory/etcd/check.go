package etcd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
)

// checkDir looks for corruption before etcd does, because etcd would repair,
// truncate or give up. It only reads, and returns a [CorruptedError].
func checkDir(dir string) error {
	db, logs := filepath.Join(dir, "member", "snap", "db"), filepath.Join(dir, "member", "wal")
	hasDB, hasWAL := exists(db), wal.Exist(logs)
	switch {
	case !hasDB && !hasWAL:
		return nil
	case !hasDB:
		return &CorruptedError{dir, fmt.Errorf("%s is missing, the write-ahead log is there", db)}
	}
	applied, rows, err := checkDB(db)
	if err == nil && !hasWAL {
		if rows == 0 { // killed before its first start was done: nothing to lose
			return os.RemoveAll(filepath.Join(dir, "member"))
		}
		err = fmt.Errorf("%s is missing, the database is there", logs)
	}
	if err == nil {
		err = checkWAL(logs, applied)
	}
	if err != nil {
		return &CorruptedError{dir, err}
	}
	return nil
}

// checkDB walks the whole database and returns the number of the last entry of
// the write-ahead log that it contains, and how many revisions of rows.
func checkDB(path string) (applied uint64, rows int, err error) {
	// bbolt maps the file: a page beyond its end, or a wild reference, is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is not readable: %v", path, p)
		}
	}()
	size, err := checkSize(path)
	if err != nil {
		return 0, 0, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, 0, fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bolt.Tx) error {
		if tx.Size() > size {
			return fmt.Errorf("%s is cut off: it has %d bytes of %d", path, size, tx.Size())
		}
		if err := tx.ForEach(walk); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		// Only now: it runs in a goroutine of its own, where a fault would end the process.
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("%s: %w", path, err)
			}
		}
		applied, rows = contents(tx)
		return first
	})
	return applied, rows, err
}

func checkSize(path string) (int64, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if fi.Size() < int64(4*os.Getpagesize()) {
		return 0, fmt.Errorf("%s is cut off: it has %d bytes", path, fi.Size())
	}
	return fi.Size(), nil
}

// walk reads every key and value of a bucket.
func walk(name []byte, b *bolt.Bucket) error {
	var last []byte
	sum := byte(0)
	return b.ForEach(func(k, v []byte) error {
		if last != nil && bytes.Compare(k, last) <= 0 {
			return fmt.Errorf("bucket %s: keys are out of order", name)
		}
		last = k
		for _, c := range v {
			sum ^= c
		}
		return nil
	})
}

func contents(tx *bolt.Tx) (applied uint64, rows int) {
	if meta := tx.Bucket(schema.Meta.Name()); meta != nil {
		if v := meta.Get(schema.MetaConsistentIndexKeyName); len(v) == 8 {
			applied = binary.BigEndian.Uint64(v)
		}
	}
	if keys := tx.Bucket(schema.Key.Name()); keys != nil {
		rows = keys.Stats().KeyN
	}
	return applied, rows
}

// checkWAL reads the write-ahead log from its last snapshot on. A record that was
// being written when the machine stopped is no corruption, as long as the
// database has not seen it: etcd cuts it off.
func checkWAL(dir string, applied uint64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write-ahead log %s is not readable: %v", dir, p)
		}
	}()
	quiet := zap.NewNop() // it panics all the same
	snaps, err := wal.ValidSnapshotEntries(quiet, dir)
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", dir, err)
	}
	last := &walpb.Snapshot{}
	if len(snaps) > 0 {
		last = snaps[len(snaps)-1]
	}
	log, err := wal.OpenForRead(quiet, dir, last)
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", dir, err)
	}
	defer func() { _ = log.Close() }()
	metadata, _, entries, err := log.ReadAll()
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("write-ahead log %s: %w", dir, err)
	}
	if len(metadata) == 0 {
		return fmt.Errorf("write-ahead log %s does not say whose it is", dir)
	}
	end := last.GetIndex()
	if len(entries) > 0 {
		end = entries[len(entries)-1].GetIndex()
	}
	if end < applied {
		return fmt.Errorf("write-ahead log %s ends at entry %d, but the database has seen entry %d", dir, end, applied)
	}
	return nil
}
