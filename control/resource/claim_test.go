package resource

import (
	"context"
	"errors"
	"testing"
	"time"

	"replug/directory/etcd"
	"replug/directory/store"
)

// A claim takes three VMs at most; its timeline has each step.
func TestClaimLife(t *testing.T) {
	now := time.Unix(1700000000, 0)
	c := Claim{ID: "claim-7", Phase: Accepted}
	c = c.Take("vm-3", "", now).Again("guest: no space", now)
	if c.Phase != Accepted || c.VM != "" || c.Done() {
		t.Fatalf("after the first: %+v", c)
	}
	c = c.Make("vm-5", "none ready", now).Again("boot failed", now).Take("vm-9", "its image is plain", now)
	if c.Source != FromPool || c.Tries != 3 || c.VM != "vm-9" {
		t.Fatalf("third: %+v", c)
	}
	failed := c.Again("host gone", now)
	if failed.Phase != Failed || !failed.Done() || failed.Error == "" || failed.Ended.IsZero() {
		t.Errorf("after three: %+v", failed)
	}
	ok := c.Succeed(now)
	if ok.Phase != Ready || ok.Error != "" || len(ok.Timeline) != 6 {
		t.Errorf("success: %+v", ok)
	}
	if c.Phase != Swapping || len(c.Timeline) != 5 {
		t.Errorf("the steps changed their own beginning: %+v", c)
	}
}

// A tenant goes only when it has nothing, also if a network is made at that moment.
func TestDeleteTenant(t *testing.T) {
	ctx := context.Background()
	db, err := etcd.Open(ctx, etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := store.New(db.Client())
	m := New(s, 3)
	commit := func(txn *store.Txn, err error) error {
		if err == nil {
			_, err = s.Commit(ctx, txn)
		}
		return err
	}
	_, txn, err := m.CreateTenant(ctx, "acme")
	if err := commit(txn, err); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.CreateTenant(ctx, "acme"); !errors.Is(err, ErrExists) {
		t.Errorf("twice: %v", err)
	}
	if _, _, err := m.CreateTenant(ctx, Platform); !errors.Is(err, ErrReserved) {
		t.Errorf("platform: %v", err)
	}
	gone, err := m.DeleteTenant(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := commit((&store.Txn{}).Put(store.Networks+"acme/red", struct{}{}), nil); err != nil {
		t.Fatal(err)
	}
	if err := commit(gone, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a network was made meanwhile: %v", err)
	}
	if _, err := m.DeleteTenant(ctx, "acme"); !errors.Is(err, ErrInUse) {
		t.Errorf("with a network: %v", err)
	}
	if err := commit((&store.Txn{}).Delete(store.Networks+"acme/red"), nil); err != nil {
		t.Fatal(err)
	}
	if err := commit(m.DeleteTenant(ctx, "acme")); err != nil {
		t.Errorf("without one: %v", err)
	}
	if _, err := m.Tenant(ctx, "acme"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after it: %v", err)
	}
}
