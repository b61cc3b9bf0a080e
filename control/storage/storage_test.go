package storage

import (
	"context"
	"errors"
	"testing"

	"replug/directory/etcd"
	"replug/directory/store"
)

// S25, S51, S52, S55: a VM begins with its OS disk; its disks change their owner by
// metadata, and new ones come with the new owner.
func TestDisks(t *testing.T) {
	ctx := context.Background()
	db, err := etcd.Open(ctx, etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m := &Manager{Store: store.New(db.Client())}
	commit := func(txn *store.Txn, err error) {
		t.Helper()
		if err == nil {
			_, err = m.Store.Commit(ctx, txn)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_, txn, err := m.Create("vm-17", "platform", 0, nil)
	commit(txn, err)
	_, txn, err = m.Create("vm-1", "umbra", 7<<30, []int64{5 << 30})
	commit(txn, err)
	disks, txn, err := m.Associate(ctx, "vm-17", "acme", []int64{9 << 30, 11 << 30})
	commit(txn, err)
	if len(disks) != 3 || disks[2].ID != "vm-17-2" {
		t.Errorf("disks %+v", disks)
	}
	disks, err = m.Of(ctx, "vm-17")
	if err != nil || len(disks) != 3 || !disks[0].OS || disks[0].ID != "vm-17-0" || disks[1].Size != 9<<30 {
		t.Errorf("disks %+v, %v", disks, err)
	}
	for _, d := range disks {
		if d.Tenant != "acme" {
			t.Errorf("disk %s is %s's", d.ID, d.Tenant)
		}
	}
	commit(m.Delete(ctx, "vm-17"))
	if disks, _ := m.Of(ctx, "vm-17"); len(disks) != 0 {
		t.Errorf("left %+v", disks)
	}
	if disks, _ := m.Of(ctx, "vm-1"); len(disks) != 2 {
		t.Errorf("of another VM: %+v", disks)
	}
	if _, _, err := m.Create("vm-2", "acme", 0, []int64{MinDataSize - 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("tiny disk: %v", err)
	}
	if _, _, err := m.Create("vm-2", "acme", 0, make([]int64, MaxData+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}
