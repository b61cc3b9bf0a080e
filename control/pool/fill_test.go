package pool

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"replug/directory/etcd"
	"replug/directory/store"
)

// A yard is a fleet in memory.
type yard struct {
	members []Member
	next    int
	room    int // VMs that may boot at once
	broken  error
}

func (y *yard) Members(context.Context) ([]Member, error) { return y.members, nil }

func (y *yard) Boot(_ context.Context, typ string) error {
	n := 0
	for _, m := range y.members {
		if m.State == Booting {
			n++
		}
	}
	if y.broken != nil {
		return y.broken
	}
	if n >= y.room {
		return ErrBusy
	}
	y.next++
	y.members = append(y.members, Member{ID: fmt.Sprint("vm-", y.next), Type: typ, State: Booting})
	return nil
}

func (y *yard) Destroy(_ context.Context, id string) error {
	for i, m := range y.members {
		if m.ID == id {
			y.members = append(y.members[:i:i], y.members[i+1:]...)
			return nil
		}
	}
	return errors.New("destroyed twice: " + id)
}

// become lets every booting VM reach a state.
func (y *yard) become(s State, at time.Time) {
	for i := range y.members {
		if y.members[i].State == Booting {
			y.members[i].State, y.members[i].Since = s, at.Add(time.Duration(i)*time.Second)
		}
	}
}

func newPool(t *testing.T, y *yard) (*Manager, *time.Time) {
	t.Helper()
	db, err := etcd.Open(context.Background(), etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	m, now := New(store.New(db.Client()), y), time.Unix(1700000000, 0)
	m.Now = func() time.Time { return now }
	return m, &now
}

func set(t *testing.T, m *Manager, typ string, size int) {
	t.Helper()
	txn, err := m.Set(context.Background(), typ, &size, nil)
	if err == nil {
		_, err = m.Store.Commit(context.Background(), txn)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, m *Manager) time.Time {
	t.Helper()
	again, err := m.Fill(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// S20: a suitable number of each type is kept, by adding and by taking away.
func TestFill(t *testing.T) {
	y := &yard{room: 3}
	m, now := newPool(t, y)
	set(t, m, "tiny", 5)
	fill(t, m)
	if len(y.members) != 3 {
		t.Fatalf("%d boot, room for 3", len(y.members))
	}
	y.become(Waiting, *now)
	fill(t, m)
	y.become(Waiting, *now)
	fill(t, m)
	if ready := Ready(y.members, "tiny"); len(ready) != 5 || ready[0].ID != "vm-1" {
		t.Errorf("ready %v", ready)
	}
	set(t, m, "tiny", 2)
	set(t, m, "huge", 1)
	fill(t, m)
	if ready := Ready(y.members, "tiny"); len(ready) != 2 || ready[1].ID != "vm-2" {
		t.Errorf("the youngest go: left %v", ready)
	}
	c, err := m.Count(context.Background(), "huge")
	if err != nil || c.Booting != 1 || c.Ready != 0 {
		t.Errorf("huge: %+v, %v", c, err)
	}
	set(t, m, "huge", 0)
	set(t, m, "tiny", 0)
	fill(t, m)
	if len(y.members) != 0 {
		t.Errorf("an ended pool has %v", y.members)
	}
}

// VMs that fail are destroyed, and made again after a pause that grows; one that
// succeeds ends the pauses.
func TestBackoff(t *testing.T) {
	y := &yard{room: 9}
	m, now := newPool(t, y)
	set(t, m, "tiny", 1)
	fill(t, m)
	var pauses []time.Duration
	for range 4 {
		y.become(Broken, *now)
		again := fill(t, m)
		if len(y.members) != 0 {
			t.Fatalf("not destroyed, or made again at once: %v", y.members)
		}
		pauses = append(pauses, again.Sub(*now))
		*now = again
		fill(t, m)
		if len(y.members) != 1 {
			t.Fatalf("not made again after the pause: %v", y.members)
		}
	}
	if fmt.Sprint(pauses) != "[1s 2s 4s 8s]" {
		t.Errorf("pauses %v", pauses)
	}
	*now = now.Add(time.Second)
	y.become(Waiting, *now)
	fill(t, m)
	if c, _ := m.Count(context.Background(), "tiny"); c.Error != "" {
		t.Errorf("error after success: %q", c.Error)
	}
	y.broken = errors.New("no host is connected")
	set(t, m, "tiny", 2)
	again := fill(t, m)
	if c, _ := m.Count(context.Background(), "tiny"); c.Error != "no host is connected" || again.IsZero() {
		t.Errorf("error %q, again at %v", c.Error, again)
	}
	y.broken = nil // a host has come: no pause
	fill(t, m)
	if len(y.members) != 2 {
		t.Errorf("members %v", y.members)
	}
}
