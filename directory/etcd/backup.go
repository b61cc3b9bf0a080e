package etcd

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
)

// A backup is lines of JSON: a head, one line for each row, and a foot that tells
// whether all of it is there. It depends on no version of etcd, and a person can
// read it.
type head struct {
	Format   int      `json:"replug_backup"`
	Cluster  Identity `json:"cluster"`
	Revision int64    `json:"revision"`
}

type line struct {
	Key   string          `json:"key,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`

	Rows   *int   `json:"rows,omitempty"` // in the foot only
	SHA256 string `json:"sha256,omitempty"`
}

const (
	format   = 1
	pageSize = 500
)

// Backup writes all rows as they were at one revision. Rows that live with a
// lease, such as the leader's, are left out. Servers go on meanwhile.
func (e *Etcd) Backup(ctx context.Context, to io.Writer) error {
	e.history.RLock()
	defer e.history.RUnlock()
	id, err := e.Identity(ctx)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	revision, err := store.New(e.client).Revision(ctx)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	buf := bufio.NewWriter(to)
	sum := sha256.New()
	lines := json.NewEncoder(io.MultiWriter(buf, sum))
	if err := lines.Encode(head{format, id, revision}); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	rows, err := e.backupRows(ctx, revision, lines)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := lines.Encode(line{Rows: &rows, SHA256: hex.EncodeToString(sum.Sum(nil))}); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

func (e *Etcd) backupRows(ctx context.Context, revision int64, to *json.Encoder) (rows int, err error) {
	from, end := store.Root, clientv3.GetPrefixRangeEnd(store.Root)
	for {
		r, err := e.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(pageSize))
		if errors.Is(err, rpctypes.ErrCompacted) {
			return 0, fmt.Errorf("the store was full meanwhile and its history had to go: take another backup (%w)", err)
		}
		if err != nil {
			return 0, fmt.Errorf("read rows from %s on: %w", from, err)
		}
		for _, kv := range r.Kvs {
			from = string(kv.Key) + "\x00"
			if kv.Lease != 0 || string(kv.Key) == store.Cluster {
				continue
			}
			if !json.Valid(kv.Value) {
				return 0, fmt.Errorf("row %s is not JSON: who has written it?", kv.Key)
			}
			if err := to.Encode(line{Key: string(kv.Key), Value: kv.Value}); err != nil {
				return 0, err
			}
			rows++
		}
		if !r.More {
			return rows, nil
		}
	}
}

// A backupReader reads a backup and knows in the end whether it was whole.
type backupReader struct {
	in   *bufio.Reader
	sum  hash.Hash
	rows int
	head head
}

func newBackupReader(in io.Reader) (*backupReader, error) {
	r := &backupReader{in: bufio.NewReader(in), sum: sha256.New()}
	first, err := r.in.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	if err := json.Unmarshal(first, &r.head); err != nil || r.head.Format != format || r.head.Cluster.ID == "" || r.head.Revision <= 0 {
		return nil, fmt.Errorf("%w: its first line is not that of a backup of format %d", ErrBackup, format)
	}
	r.sum.Write(first)
	return r, nil
}

// next returns the next row, or io.EOF after the last one of a whole backup.
func (r *backupReader) next() (line, error) {
	b, err := r.in.ReadBytes('\n')
	if err != nil {
		return line{}, fmt.Errorf("%w: it is cut off after %d rows", ErrBackup, r.rows)
	}
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return line{}, fmt.Errorf("%w: row %d: %w", ErrBackup, r.rows+1, err)
	}
	if l.Rows == nil {
		r.rows++
		r.sum.Write(b)
		return l, nil
	}
	if *l.Rows != r.rows || l.SHA256 != hex.EncodeToString(r.sum.Sum(nil)) {
		return line{}, fmt.Errorf("%w: its checksum is wrong", ErrBackup)
	}
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return line{}, fmt.Errorf("%w: something follows its end", ErrBackup)
	}
	return line{}, io.EOF
}
