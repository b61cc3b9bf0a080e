package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// startWithin bounds a start that hangs; a sound directory takes a fraction of it.
const startWithin = 2 * time.Minute

// embedded starts the one member of a data directory. It listens nowhere: the
// client calls it in the process, so that nobody else can.
func (e *Etcd) embedded(ctx context.Context, c Config) error {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	lock, err := lockDir(c.DataDir)
	if err != nil {
		return err
	}
	if err := checkDir(c.DataDir); err != nil {
		_ = lock.Close()
		return err
	}
	if err := e.room(c); err != nil && !exists(filepath.Join(c.DataDir, "member")) {
		_ = lock.Close()
		return fmt.Errorf("make a store in %s: %w", c.DataDir, err)
	}
	member, err := e.start(ctx, c)
	if err != nil {
		_ = lock.Close()
		return err
	}
	e.client = v3client.New(member.Server)
	e.rewrite = func(context.Context, string) error { return member.Server.Backend().Defrag() }
	e.close = func() error {
		err := e.client.Close()
		if errors.Is(err, context.Canceled) {
			err = nil // what closing an in-process client always says
		}
		return errors.Join(err, e.stop(member), lock.Close())
	}
	return nil
}

// start starts the member in a goroutine of its own: etcd's way of giving up is
// to panic or to exit, and the logger turns that into e's failure.
func (e *Etcd) start(ctx context.Context, c Config) (*embed.Etcd, error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	type result struct {
		member *embed.Etcd
		err    error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- result{err: fmt.Errorf("etcd gave up: %v", p)}
			}
		}()
		member, err := embed.StartEtcd(e.memberConfig(c))
		done <- result{member, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-e.failed:
		r.err = e.Err()
	}
	if r.err != nil {
		return nil, fmt.Errorf("start the embedded store in %s: %w", c.DataDir, r.err)
	}
	select {
	case <-r.member.Server.ReadyNotify():
		return r.member, nil
	case <-e.failed:
		return nil, fmt.Errorf("start the embedded store in %s: %w", c.DataDir, e.Err())
	case <-ctx.Done():
		r.member.Close()
		return nil, fmt.Errorf("start the embedded store in %s: %w", c.DataDir, ctx.Err())
	}
}

// stop stops the member, unless it has failed or fails now: then it would never
// stop, and what it has not written is in its log.
func (e *Etcd) stop(member *embed.Etcd) error {
	done := make(chan struct{})
	if e.Err() == nil {
		go func() {
			defer close(done)
			member.Close()
		}()
	}
	select {
	case <-done:
		return nil
	case <-e.failed:
		return e.Err()
	}
}

func (e *Etcd) memberConfig(c Config) *embed.Config {
	m := embed.NewConfig()
	m.Name = "replug"
	m.Dir = c.DataDir
	// The URL is the member's identity inside the database. Nobody listens there.
	nowhere := []url.URL{{Scheme: "http", Host: "localhost:2380"}}
	m.AdvertisePeerUrls, m.AdvertiseClientUrls = nowhere, nowhere
	m.ListenPeerUrls, m.ListenClientUrls = nil, nil
	m.InitialCluster = m.InitialClusterFromName(m.Name)
	m.TickMs, m.ElectionMs = 10, 100
	m.QuotaBackendBytes = c.Quota
	// There is no follower that entries would have to wait for, and each may be 1.5 MiB
	// of memory and of the write-ahead log.
	m.SnapshotCount, m.SnapshotCatchUpEntries = 1000, 100
	m.MaxTxnOps = 1024 // a switched swap or a deleted network is one transaction
	log := c.Log.With("part", "etcd")
	m.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&slogCore{log: log},
		zap.WithFatalHook(giveUp{e}), zap.WithPanicHook(giveUp{e})))
	return m
}

// lockDir takes the data directory for this process.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(path)
		_ = f.Close()
		return nil, fmt.Errorf("data directory %s, process %s: %w", dir, owner, ErrLocked)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprint(f, os.Getpid())
	}
	return f, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}

var _ clientv3.KV = (*guard)(nil)
