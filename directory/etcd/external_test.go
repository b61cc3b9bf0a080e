package etcd

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"replug/directory/store"
)

// cluster is an etcd of somebody else.
func cluster(t *testing.T, quota int64) (endpoint string, stop func()) {
	t.Helper()
	dir := t.TempDir()
	at := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.LogOutputs = dir, "fatal", []string{filepath.Join(dir, "log")}
	c.ListenPeerUrls, c.ListenClientUrls = nil, []url.URL{at}
	c.QuotaBackendBytes = quota
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	<-e.Server.ReadyNotify()
	stop = func() {
		if e != nil {
			e.Close()
			e = nil
		}
	}
	t.Cleanup(stop)
	return e.Clients[0].Addr().String(), stop
}

func TestExternal(t *testing.T) {
	endpoint, stop := cluster(t, 0)
	ctx := context.Background()
	var ids []Identity
	var last *Etcd
	for range 2 { // two servers on one cluster
		e, err := Open(ctx, Config{Endpoints: []string{endpoint}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = e.Close() }()
		id, err := e.Identity(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ids, last = append(ids, id), e
	}
	if ids[0] != ids[1] || ids[0].ID == "" {
		t.Errorf("two servers see clusters %v", ids)
	}
	stop()
	last.client.KV.(*guard).config.Timeout = time.Second // not before: an open may take longer
	// Invariant 6: with the store down changes fail, fast and clearly.
	began := time.Now()
	_, err := store.New(last.Client()).Commit(ctx, new(store.Txn).Put(store.Intents+"h7/p23", "row"))
	if took := time.Since(began); !errors.Is(err, store.ErrUnavailable) || took > 3*time.Second {
		t.Errorf("got %v after %v, want %v", err, took, store.ErrUnavailable)
	}
	if _, err := Open(ctx, Config{Endpoints: []string{endpoint}, Timeout: time.Second}); err == nil {
		t.Error("opened a cluster that is down")
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{"neither": {}, "both": {DataDir: "x", Endpoints: []string{"y:1"}}} {
		if _, err := Open(t.Context(), c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want %v", name, err, ErrConfig)
		}
	}
}
