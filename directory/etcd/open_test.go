package etcd

import (
	"testing"

	"replug/directory/store"
)

func TestIdentityStays(t *testing.T) {
	dir := t.TempDir()
	e := open(t, dir)
	first, err := e.Identity(t.Context())
	if err != nil || first.ID == "" || first.Era != 1 {
		t.Fatalf("Identity = %+v, %v", first, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = open(t, dir)
	defer func() { _ = e.Close() }()
	again, err := e.Identity(t.Context())
	if err != nil || again != first {
		t.Errorf("after a restart %+v, %v, want %+v", again, err, first)
	}
	if n := store.New(e.Client()).Txns(); n != 0 {
		t.Errorf("reading wrote %d times", n)
	}
}
