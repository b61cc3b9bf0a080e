// Package pool is the VM pool manager: it keeps a set number of VMs of each type
// booted, half configured and waiting, so that a claim finds one ready. How many
// is told, not guessed. It is level-triggered: it looks at what is there, and
// boots or destroys the difference.
package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Errors of this package.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNotFound = errors.New("not found")
	// ErrBusy is what a [Fleet] answers when as many VMs boot as may.
	ErrBusy = errors.New("as many VMs boot as may")
)

// MaxSize bounds a pool.
const MaxSize = 10000

// A Pool is a row: how many VMs of a type are to wait.
type Pool struct {
	Type string    `json:"type"`
	Size int       `json:"size"`
	Hold vnet.Hold `json:"hold,omitempty"` // how its VMs wait
}

// A Member is a VM of the platform, as the pool sees it.
type Member struct {
	ID      string
	Type    string
	State   State
	Since   time.Time // waiting since
	Because string    // of a broken one
}

// State is what a member is good for.
type State uint8

// The states of a member.
const (
	Booting State = 1
	Waiting State = 2
	Broken  State = 3
)

// A Fleet makes and destroys VMs for the pool.
type Fleet interface {
	Members(ctx context.Context) ([]Member, error)
	// Boot begins to make a VM of a type. ErrBusy: not now; the next change of a
	// member may make room.
	Boot(ctx context.Context, typ string) error
	Destroy(ctx context.Context, id string) error
}

// Key is where a type's pool is stored.
func Key(typ string) string { return store.Pools + typ }

// A Manager keeps the pools filled.
type Manager struct {
	Store *store.Store
	Fleet Fleet
	Now   func() time.Time

	mu    sync.Mutex
	state map[string]*backoff // by type
}

// backoff is what is remembered of a pool that can't fill.
type backoff struct {
	failures int
	at       time.Time // of the last failure
	until    time.Time
	why      string
}

// New makes a manager of the leader's store.
func New(s *store.Store, f Fleet) *Manager {
	return &Manager{Store: s, Fleet: f, Now: time.Now, state: make(map[string]*backoff)}
}

// Set composes how many VMs of a type are to wait, and how; nil: as it was. Size 0
// ends the pool, and how its VMs waited is forgotten. A pool that is not there has no
// size yet: without one Set returns [ErrNotFound].
func (m *Manager) Set(ctx context.Context, typ string, size *int, hold *vnet.Hold) (*store.Txn, error) {
	row, err := m.row(ctx, typ)
	if err != nil && (size == nil || !errors.Is(err, ErrNotFound)) {
		return nil, err
	}
	p := row.Value
	p.Type = typ
	if size != nil {
		p.Size = *size
	}
	if hold != nil {
		p.Hold = *hold
	}
	if p.Size < 0 || p.Size > MaxSize {
		return nil, fmt.Errorf("%w pool of %d VMs: must be 0 to %d", ErrInvalid, p.Size, MaxSize)
	}
	t := (&store.Txn{}).Unchanged(Key(typ), row.Revision)
	if p.Size == 0 {
		return t.Delete(Key(typ)), nil
	}
	return t.Put(Key(typ), p), nil
}

// List returns all pools.
func (m *Manager) List(ctx context.Context) ([]Pool, error) {
	rows, _, err := store.List[Pool](ctx, m.Store, store.Pools)
	pools := make([]Pool, 0, len(rows))
	for _, r := range rows {
		pools = append(pools, r.Value)
	}
	return pools, err
}

// Get reads a type's pool; it returns [ErrNotFound].
func (m *Manager) Get(ctx context.Context, typ string) (Pool, error) {
	row, err := m.row(ctx, typ)
	return row.Value, err
}

func (m *Manager) row(ctx context.Context, typ string) (store.Row[Pool], error) {
	row, err := store.Get[Pool](ctx, m.Store, Key(typ))
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("pool of VM type %q: %w; set its size first", typ, ErrNotFound)
	}
	return row, err
}

// Counts is what a pool has.
type Counts struct {
	Ready, Booting int
	Error          string // why it can't fill, if it can't
}

// Count returns what the pool of a type has.
func (m *Manager) Count(ctx context.Context, typ string) (Counts, error) {
	members, err := m.Fleet.Members(ctx)
	var c Counts
	for _, v := range members {
		switch {
		case v.Type != typ:
		case v.State == Waiting:
			c.Ready++
		case v.State == Booting:
			c.Booting++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.state[typ]; b != nil {
		c.Error = b.why
	}
	return c, err
}

// Ready returns the members of a type that can be claimed, the longest waiting first.
func Ready(members []Member, typ string) []Member {
	ready := slices.DeleteFunc(slices.Clone(members), func(v Member) bool { return v.Type != typ || v.State != Waiting })
	slices.SortFunc(ready, func(a, b Member) int { return a.Since.Compare(b.Since) })
	return ready
}
