// Package etcd opens the store's database: one embedded member in a data
// directory, or an external cluster. Whoever has an [Etcd] can't tell which: both
// give the same client. It knows of the rows only who the cluster is; what stands
// in the others is the business of package store and of control.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"replug/directory/store"
)

// Errors of this package.
var (
	ErrConfig   = errors.New("exactly one of data directory and etcd endpoints is needed")
	ErrLocked   = errors.New("another server has this data directory open")
	ErrDiskFull = errors.New("the disk is nearly full: nothing is written until there is room again")
	ErrFailed   = errors.New("the embedded store has stopped: restart the server once the cause is gone")
	ErrNotEmpty = errors.New("not empty: a backup is restored into a new one only")
	ErrBackup   = errors.New("not a whole backup")
)

// A CorruptedError says that a data directory can't be used. Nothing in it has
// been changed.
type CorruptedError struct {
	Dir  string
	What error
}

// Error says what is wrong and what to do.
func (e *CorruptedError) Error() string {
	return fmt.Sprintf("data directory %s is corrupted and was left as it is: %v; "+
		"move it away and restore the last backup (replug restore) into a new one", e.Dir, e.What)
}

// Unwrap returns what is wrong.
func (e *CorruptedError) Unwrap() error { return e.What }

// Config says where the database is.
type Config struct {
	DataDir   string   // of the embedded member; made when it is missing
	Endpoints []string // of an external cluster
	TLS       *tls.Config
	Name      string // of the server, for logs
	Log       *slog.Logger

	Quota   int64         // bytes the embedded database may grow to; 0: 2 GiB (an external one has its own)
	MinFree int64         // bytes that must be free on the disk for a write; 0: 96 MiB
	Timeout time.Duration // of a call whose context has no deadline; 0: 5 s
}

func (c *Config) fill() error {
	if (c.DataDir == "") == (len(c.Endpoints) == 0) {
		return ErrConfig
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Quota == 0 {
		c.Quota = defaultQuota
	}
	if c.MinFree == 0 {
		// A segment of the write-ahead log is 64 MiB and is allocated ahead of its
		// use: when that fails the member dies.
		c.MinFree = 96 << 20
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	return nil
}

// An Etcd is an open database. It is safe for concurrent use.
type Etcd struct {
	config Config
	client *clientv3.Client
	close  func() error
	// rewrite defragments a member: the embedded one not by the client, which would
	// look for a listener's health.
	rewrite func(ctx context.Context, member string) error

	tidying   sync.Mutex   // by one at a time; over what follows
	floor     int64        // bytes in use when there was no history; 0: not known yet
	compacted time.Time    // last
	history   sync.RWMutex // read by backups, written when it is removed

	mu     sync.Mutex
	err    error
	failed chan struct{}
}

// Open opens the database that c names and waits until it answers or ctx ends.
// For a data directory it returns [ErrLocked] or a [CorruptedError] without
// having changed anything in it.
func Open(ctx context.Context, c Config) (*Etcd, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	e := &Etcd{config: c, failed: make(chan struct{})}
	open := e.external
	if c.DataDir != "" {
		open = e.embedded
	}
	if err := open(ctx, c); err != nil {
		return nil, err
	}
	e.close = sync.OnceValue(e.close)
	e.client.KV = &guard{KV: e.client.KV, etcd: e, config: c}
	return e, nil
}

func (e *Etcd) external(ctx context.Context, c Config) error {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            c.Endpoints,
		TLS:                  c.TLS,
		Context:              context.WithoutCancel(ctx),
		DialTimeout:          c.Timeout,
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		Logger:               zap.New(&slogCore{log: c.Log.With("part", "etcd client")}),
	})
	if err != nil {
		return fmt.Errorf("connect to etcd at %v: %w", c.Endpoints, err)
	}
	asked, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if _, err := client.Get(asked, store.Cluster); err != nil {
		_ = client.Close()
		return fmt.Errorf("etcd at %v does not answer: %w", c.Endpoints, err)
	}
	e.client, e.close = client, client.Close
	e.rewrite = func(ctx context.Context, member string) error {
		_, err := client.Defragment(ctx, member)
		return err
	}
	return nil
}

// Client returns the client, the same for both kinds of database. A write on a
// nearly full disk fails with [ErrDiskFull], any call after a failure of the
// embedded member with [ErrFailed]; a call without a deadline gets one.
func (e *Etcd) Client() *clientv3.Client { return e.client }

// Failed is closed when the embedded member has stopped by itself: its disk
// refused a write. The program should then end with [Etcd.Err].
func (e *Etcd) Failed() <-chan struct{} { return e.failed }

// Err returns why the member has stopped, nil as long as it runs.
func (e *Etcd) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

func (e *Etcd) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = fmt.Errorf("%w: %w", ErrFailed, err)
		close(e.failed)
	}
}

// Close closes the database. Calls that are under way fail.
func (e *Etcd) Close() error { return e.close() }
