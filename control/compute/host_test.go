package compute

import (
	"context"
	"errors"
	"strings"
	"testing"

	"replug/directory/etcd"
	"replug/directory/store"
	"replug/directory/vnet"
)

func newManager(t *testing.T) *Manager {
	t.Helper()
	db, err := etcd.Open(context.Background(), etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return New(store.New(db.Client()), 3)
}

func put(t *testing.T, s *store.Store, txn *store.Txn) {
	t.Helper()
	if _, err := s.Commit(context.Background(), txn); err != nil {
		t.Fatal(err)
	}
}

func TestChoose(t *testing.T) {
	m := newManager(t)
	ctx := context.Background()
	host := func(name string, memory, ports int, images ...string) Candidate {
		return Candidate{HostInfo: vnet.HostInfo{Name: name, Memory: memory, Images: images}, FreePorts: ports}
	}
	// h3 has most memory, but most of it is used.
	put(t, m.Store, (&store.Txn{}).Put(Key("vm-7"), VM{ID: "vm-7", Host: "h3", Memory: 7000, Phase: Stopped}))
	typ := Type{Name: "tiny", Memory: 300, Image: "small"}
	hosts := []Candidate{host("h1", 1500, 9, "small"), host("h2", 1700, 5, "small"), host("h3", 8000, 90, "small"),
		host("h4", 9000, 90, "large"), host("h5", 9000, 0, "small"), host("h6", 0, 90, "small"), host("h7", 1700, 6, "small")}
	for _, c := range []struct {
		name, want string
		hosts      []Candidate
		got        string
		err        error
		says       string
	}{
		{"most free memory, then ports", "", hosts, "h7", nil, ""},
		{"the one asked for", "h1", hosts, "h1", nil, ""},
		{"asked for one without the image", "h4", hosts, "", ErrExhausted, "large"},
		{"asked for one that isn't there", "h8", hosts, "", ErrNotSo, "h8"},
		{"no host at all", "", nil, "", ErrExhausted, "no host is connected"},
		{"none fits", "", hosts[3:6], "", ErrExhausted, "h5 has no port left"},
	} {
		got, err := m.Choose(ctx, typ, c.want, c.hosts)
		if got.Name != c.got || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", c.name, got.Name, err, c.got, c.err)
		}
		if c.says != "" && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q says nothing of %q", c.name, err, c.says)
		}
	}
}

// A number is given once, over restarts and over a restore from an old backup.
func TestIDsOnce(t *testing.T) {
	m := newManager(t)
	ctx := context.Background()
	put(t, m.Store, (&store.Txn{}).Put(TypeKey("tiny"), Type{Name: "tiny"}))
	seen := make(map[string]bool)
	for era := uint16(3); era < 6; era++ {
		for range 3 { // servers of the era
			n := New(m.Store, era)
			for range 70 {
				vm, txn, err := n.Create(ctx, VM{Tenant: "acme"}, Type{Name: "tiny"})
				if err != nil {
					t.Fatal(err)
				}
				if seen[vm.ID] || seen[vm.UUID] {
					t.Fatalf("%s given twice", vm.ID)
				}
				seen[vm.ID], seen[vm.UUID] = true, true
				_ = txn
			}
		}
	}
	if !seen["vm-1"] {
		t.Error("numbers don't begin at 1")
	}
}
