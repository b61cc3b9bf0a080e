package resource

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Phase is how far a claim is.
type Phase string

// The phases of a claim.
const (
	Accepted Phase = "accepted" // waits to be served
	Swapping Phase = "swapping" // a pooled VM becomes the tenant's
	Creating Phase = "creating" // a VM is made from scratch
	Ready    Phase = "ready"
	Failed   Phase = "failed"
)

// The sources of a claim's VM.
const (
	FromPool    = "pool"
	FromScratch = "scratch"
)

// MaxTries is how many VMs a claim takes before it fails: one whose guest failed is
// destroyed, since nobody knows what it has taken in.
const MaxTries = 3

// Kept is how long a claim's row stays after its end, at least.
const Kept = 24 * time.Hour

// A Hop is a step of a claim.
type Hop struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	By   string    `json:"by"`
}

// A Claim is a row: what a tenant asked for, and how far it is.
type Claim struct {
	ID       string        `json:"id"`
	Tenant   string        `json:"tenant"`
	Name     string        `json:"name"`
	Type     string        `json:"type"`
	Network  vnet.Moniker  `json:"network"`
	CAs      []vnet.CA     `json:"cas,omitempty"` // asked for; the next free ones of the other families
	Groups   []string      `json:"groups,omitempty"`
	Settings vnet.Document `json:"settings"` // the owner's part of it
	Data     []int64       `json:"data,omitempty"`

	Phase    Phase     `json:"phase"`
	Source   string    `json:"source,omitempty"`
	VM       string    `json:"vm,omitempty"`
	Swap     string    `json:"swap,omitempty"`
	Error    string    `json:"error,omitempty"`
	Note     string    `json:"note,omitempty"`
	Tries    int       `json:"tries"`
	Timeline []Hop     `json:"timeline"`
	Created  time.Time `json:"created"`
	Ended    time.Time `json:"ended,omitzero"`
}

// Done reports whether nothing will change any more.
func (c *Claim) Done() bool { return c.Phase == Ready || c.Phase == Failed }

// ClaimKey is where a claim is stored.
func ClaimKey(id string) string { return store.Claims + id }

// Accept composes a new claim.
func (m *Manager) Accept(ctx context.Context, c Claim, now time.Time) (Claim, *store.Txn, error) {
	n, err := m.ids.Next(ctx)
	if err != nil {
		return c, nil, err
	}
	c.ID, c.Created = fmt.Sprintf("claim-%d", n), now
	c.step(Accepted, now)
	return c, (&store.Txn{}).Absent(ClaimKey(c.ID)).Put(ClaimKey(c.ID), c), nil
}

// GetClaim reads a claim; it returns [ErrNotFound].
func (m *Manager) GetClaim(ctx context.Context, id string) (store.Row[Claim], error) {
	missing := fmt.Errorf("claim %q: %w; a claim's record is kept for %s", id, ErrNotFound, Kept)
	if id == "" || strings.Contains(id, "/") {
		return store.Row[Claim]{}, missing
	}
	row, err := store.Get[Claim](ctx, m.Store, ClaimKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return row, missing
	}
	return row, err
}

// ListClaims returns a tenant's claims, or all for tenant "", oldest first.
func (m *Manager) ListClaims(ctx context.Context, tenant string) ([]Claim, error) {
	rows, _, err := store.List[Claim](ctx, m.Store, store.Claims)
	claims := make([]Claim, 0, len(rows))
	for _, r := range rows {
		if tenant == "" || r.Value.Tenant == tenant {
			claims = append(claims, r.Value)
		}
	}
	slices.SortStableFunc(claims, func(a, b Claim) int { return a.Created.Compare(b.Created) })
	return claims, err
}

// PutClaim composes the writing of c, which must not have changed since row was
// read. The row of a claim that has ended goes with lease.
func PutClaim(row store.Row[Claim], c Claim, lease clientv3.LeaseID) *store.Txn {
	t := (&store.Txn{}).Unchanged(row.Key, row.Revision)
	if c.Done() {
		return t.PutLeased(row.Key, c, lease)
	}
	return t.Put(row.Key, c)
}

// Take returns c with a VM of the pool on its way to it; note is what its owner is
// to know of that.
func (c Claim) Take(vm, note string, now time.Time) Claim {
	c.Source, c.VM, c.Tries = FromPool, vm, c.Tries+1
	c.note(note)
	c.step(Swapping, now)
	return c
}

// Make returns c with a VM being made for it, because of why.
func (c Claim) Make(vm, why string, now time.Time) Claim {
	c.Source, c.VM, c.Swap, c.Tries = FromScratch, vm, "", c.Tries+1
	c.note(why)
	c.step(Creating, now)
	return c
}

// Succeed returns c with its VM as the tenant wanted it.
func (c Claim) Succeed(now time.Time) Claim {
	c.Error, c.Ended = "", now
	c.step(Ready, now)
	return c
}

// Again returns c after its VM failed: to be served by another VM, or failed when
// it has had [MaxTries].
func (c Claim) Again(why string, now time.Time) Claim {
	if c.Tries >= MaxTries {
		return c.Fail(fmt.Sprintf("%d VMs were tried, the last one failed: %s", c.Tries, why), now)
	}
	c.note(fmt.Sprintf("%s failed and is destroyed (%s)", c.VM, why))
	c.VM, c.Swap = "", ""
	c.step(Accepted, now)
	return c
}

// Fail returns c as failed for good.
func (c Claim) Fail(why string, now time.Time) Claim {
	c.Error, c.Ended = why, now
	c.step(Failed, now)
	return c
}

func (c *Claim) note(s string) {
	if s != "" && c.Note != "" {
		s = c.Note + "; " + s
	}
	if s != "" {
		c.Note = s
	}
}

func (c *Claim) step(p Phase, now time.Time) {
	c.Phase = p
	c.Timeline = append(slices.Clone(c.Timeline), Hop{Name: string(p), At: now, By: "server"})
}
