// Package service is the part of the networking manager that keeps services: an
// address and port of a network that leads to VMs. Hosts read the rows themselves,
// spread flows by them, and probe the backends that they have.
//
// What changes the world is returned as a [store.Txn] with the conditions under
// which it is right, for the caller to join with the writes of others. The caller
// also sees to it that nobody else gets a service's address.
package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Errors of this package. What is wrong, why and what next is in the text around them.
var (
	ErrInvalid   = errors.New("invalid")
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("exists already")
	ErrExhausted = errors.New("none left")
)

// MaxBackends is how many VMs may be behind one service.
const MaxBackends = 256

// A Manager reads and composes changes of services. It is safe for concurrent use.
type Manager struct{ Store *store.Store }

// Get reads a service of a network; it returns [ErrNotFound].
func (m *Manager) Get(ctx context.Context, v vnet.VNI, name string) (store.Row[vnet.Service], error) {
	missing := fmt.Errorf("service %q: %w in the network; list the services there are", name, ErrNotFound)
	if name == "" || strings.Contains(name, "/") {
		return store.Row[vnet.Service]{}, missing
	}
	row, err := store.Get[vnet.Service](ctx, m.Store, store.ServiceKey(v, name))
	if errors.Is(err, store.ErrNotFound) {
		return row, missing
	}
	return row, err
}

// List returns the services of a network, by name.
func (m *Manager) List(ctx context.Context, v vnet.VNI) ([]vnet.Service, error) {
	rows, _, err := store.List[vnet.Service](ctx, m.Store, store.NetworkServices(v))
	all := make([]vnet.Service, 0, len(rows))
	for _, r := range rows {
		all = append(all, r.Value)
	}
	return all, err
}

// Create checks s, whose name and backends the caller has checked, fills in what
// was left open and composes its row.
func (m *Manager) Create(ctx context.Context, s vnet.Service) (*store.Txn, error) {
	if err := complete(&s); err != nil {
		return nil, fmt.Errorf("service %q: %w", s.Name, err)
	}
	rows, rev, err := store.List[vnet.Service](ctx, m.Store, store.NetworkServices(s.VNI))
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		o := r.Value
		if o.Name == s.Name {
			return nil, fmt.Errorf("service %q: %w: change it, or choose another name", s.Name, ErrExists)
		}
		if o.VIP == s.VIP && o.Port == s.Port && o.Protocol == s.Protocol {
			return nil, fmt.Errorf("service %q: %w: service %q is at %s %s/%d; choose another address or port", s.Name, ErrExists, o.Name, o.VIP, o.Protocol, o.Port)
		}
	}
	key := store.ServiceKey(s.VNI, s.Name)
	return (&store.Txn{}).UnchangedUnder(store.NetworkServices(s.VNI), rev).Absent(key).Put(key, s), nil
}

// edit composes a change of a service.
func (m *Manager) edit(ctx context.Context, v vnet.VNI, name string, change func(*vnet.Service) error) (*store.Txn, error) {
	row, err := m.Get(ctx, v, name)
	if err != nil {
		return nil, err
	}
	s := row.Value
	s.Backends = slices.Clone(s.Backends)
	if err := change(&s); err != nil {
		return nil, fmt.Errorf("service %q: %w", name, err)
	}
	if err := complete(&s); err != nil {
		return nil, fmt.Errorf("service %q: %w", name, err)
	}
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).Put(row.Key, s), nil
}

// Set composes a change of a service's affinity and check. What a check has found
// out counts until the hosts say otherwise: they say what changes. Without a check all
// count as alive.
func (m *Manager) Set(ctx context.Context, v vnet.VNI, name string, change func(*vnet.Service) error) (*store.Txn, error) {
	return m.edit(ctx, v, name, func(s *vnet.Service) error {
		if err := change(s); err != nil {
			return err
		}
		for i := range s.Backends {
			b := &s.Backends[i]
			b.Dead, b.Away = b.Dead && s.Check != nil, b.Away && s.Check != nil
		}
		return nil
	})
}

// SetBackend composes that b is behind a service, in place of what its member was.
func (m *Manager) SetBackend(ctx context.Context, v vnet.VNI, name string, b vnet.Backend) (*store.Txn, error) {
	return m.edit(ctx, v, name, func(s *vnet.Service) error {
		if b.Port == 0 {
			b.Port = s.Port
		}
		i := slices.IndexFunc(s.Backends, func(o vnet.Backend) bool { return o.Member == b.Member })
		if i < 0 {
			s.Backends = append(s.Backends, b)
			return nil
		}
		if old := s.Backends[i]; old.CA == b.CA && old.Port == b.Port {
			b.Dead, b.Away = old.Dead, old.Away
		}
		s.Backends[i] = b
		return nil
	})
}

// RemoveBackend composes that a port is not behind a service any more.
func (m *Manager) RemoveBackend(ctx context.Context, v vnet.VNI, name, member string) (*store.Txn, error) {
	return m.edit(ctx, v, name, func(s *vnet.Service) error {
		n := len(s.Backends)
		s.Backends = slices.DeleteFunc(s.Backends, func(b vnet.Backend) bool { return b.Member == member })
		if len(s.Backends) == n {
			return fmt.Errorf("backend %s: %w; show the service to see those it has", member, ErrNotFound)
		}
		return nil
	})
}

// Delete composes the removal of a service. It returns the service, and another
// one with the same address, or "".
func (m *Manager) Delete(ctx context.Context, v vnet.VNI, name string) (s vnet.Service, heir string, t *store.Txn, err error) {
	row, err := m.Get(ctx, v, name)
	if err != nil {
		return s, "", nil, err
	}
	s = row.Value
	rows, rev, err := store.List[vnet.Service](ctx, m.Store, store.NetworkServices(v))
	for _, o := range rows {
		if o.Value.VIP == s.VIP && o.Value.Name != name {
			heir = o.Value.Name
		}
	}
	t = (&store.Txn{}).Unchanged(row.Key, row.Revision).UnchangedUnder(store.NetworkServices(v), rev).Delete(row.Key)
	if heir != "" {
		t.Exists(store.ServiceKey(v, heir))
	}
	return s, heir, t, err
}
