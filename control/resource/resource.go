// Package resource is the resource manager: what customers ask for. It keeps
// tenants and claims. A claim turns a pooled VM into a tenant's, or has one made
// from scratch; the rows here say how far it is, whoever does the work.
package resource

import (
	"context"
	"errors"
	"fmt"

	"replug/directory/store"
)

// Platform is the tenant that owns pooled VMs and their network.
const Platform = "platform"

// Errors of this package.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrInUse    = errors.New("in use")
	ErrReserved = errors.New("reserved for the platform")
)

// A Tenant owns networks, VMs and ports.
type Tenant struct {
	Name string `json:"name"`
}

// A Manager reads and composes changes of tenants and claims.
type Manager struct {
	Store *store.Store
	ids   *store.Counter
}

// New makes a manager of the leader's store, in the cluster's era.
func New(s *store.Store, era uint16) *Manager {
	return &Manager{Store: s, ids: store.NewCounter(s, "claim", era)}
}

// TenantKey is where a tenant is stored.
func TenantKey(name string) string { return store.Tenants + name }

// CreateTenant composes a tenant. The form of the name was checked by the caller.
func (m *Manager) CreateTenant(ctx context.Context, name string) (Tenant, *store.Txn, error) {
	t := Tenant{Name: name}
	if name == Platform {
		return t, nil, fmt.Errorf("tenant %q: %w: choose another name", name, ErrReserved)
	}
	if _, err := store.Get[Tenant](ctx, m.Store, TenantKey(name)); err == nil {
		return t, nil, fmt.Errorf("tenant %q: %w", name, ErrExists)
	} else if !errors.Is(err, store.ErrNotFound) {
		return t, nil, err
	}
	return t, (&store.Txn{}).Absent(TenantKey(name)).Put(TenantKey(name), t), nil
}

// Tenant returns a condition that the tenant is there until the commit; it returns
// [ErrNotFound].
func (m *Manager) Tenant(ctx context.Context, name string) (*store.Txn, error) {
	if name == Platform {
		return &store.Txn{}, nil
	}
	if _, err := store.Get[Tenant](ctx, m.Store, TenantKey(name)); errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("tenant %q: %w; create it first", name, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	return (&store.Txn{}).Exists(TenantKey(name)), nil
}

// ListTenants returns all tenants but the platform.
func (m *Manager) ListTenants(ctx context.Context) ([]Tenant, error) {
	rows, _, err := store.List[Tenant](ctx, m.Store, store.Tenants)
	tenants := make([]Tenant, 0, len(rows))
	for _, r := range rows {
		tenants = append(tenants, r.Value)
	}
	return tenants, err
}

// DeleteTenant composes the removal of a tenant that has no network: without one
// it has no port and no VM either.
func (m *Manager) DeleteTenant(ctx context.Context, name string) (*store.Txn, error) {
	if name == Platform {
		return nil, fmt.Errorf("tenant %q: %w", name, ErrReserved)
	}
	cond, err := m.Tenant(ctx, name)
	if err != nil {
		return nil, err
	}
	nets, rev, err := store.List[struct{}](ctx, m.Store, store.Networks+name+"/")
	if err != nil {
		return nil, err
	}
	if len(nets) > 0 {
		return nil, fmt.Errorf("tenant %q: %w: it has %d networks; delete its VMs, ports and networks first", name, ErrInUse, len(nets))
	}
	return cond.UnchangedUnder(store.Networks+name+"/", rev).Delete(TenantKey(name)), nil
}
