package service

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A Seat is a port's place behind a service.
type Seat struct {
	Service string
	Backend vnet.Backend
}

// Of returns the seats of a port behind the services of a network.
func (m *Manager) Of(ctx context.Context, v vnet.VNI, port string) ([]Seat, error) {
	seats, _, err := m.Leave(ctx, v, port)
	return seats, err
}

// Leave composes that a port is behind no service of a network any more, and
// returns what it was.
func (m *Manager) Leave(ctx context.Context, v vnet.VNI, port string) ([]Seat, *store.Txn, error) {
	rows, rev, err := store.List[vnet.Service](ctx, m.Store, store.NetworkServices(v))
	if err != nil {
		return nil, nil, err
	}
	t := (&store.Txn{}).UnchangedUnder(store.NetworkServices(v), rev)
	var seats []Seat
	for _, r := range rows {
		i := slices.IndexFunc(r.Value.Backends, func(b vnet.Backend) bool { return b.Member == port })
		if i < 0 {
			continue
		}
		seats = append(seats, Seat{r.Value.Name, r.Value.Backends[i]})
		r.Value.Backends = slices.Delete(r.Value.Backends, i, i+1)
		t.Unchanged(r.Key, r.Revision).Put(r.Key, r.Value)
	}
	return seats, t, nil
}

// Join composes that a port is behind services of a network: at each of cas that
// is of the service's family, with the port and weight of its seat, or the service's
// own. A service that is gone or full, or has the port already, is passed over:
// a swap does not fail for it.
func (m *Manager) Join(ctx context.Context, v vnet.VNI, port string, cas []vnet.CA, seats []Seat) (*store.Txn, error) {
	t := &store.Txn{}
	for _, seat := range seats {
		row, err := m.Get(ctx, v, seat.Service)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s := row.Value
		at := slices.IndexFunc(cas, func(ca vnet.CA) bool { return ca.Is4() == s.VIP.Is4() })
		there := slices.ContainsFunc(s.Backends, func(b vnet.Backend) bool { return b.Member == port })
		if at < 0 || there || len(s.Backends) >= MaxBackends {
			continue
		}
		b := seat.Backend
		b.Member, b.CA, b.Port, b.Dead, b.Away = port, cas[at], cmp.Or(b.Port, s.Port), false, false
		if s.Protocol == vnet.SCTP {
			b.Port = s.Port
		}
		s.Backends = append(s.Backends, b)
		t.Unchanged(row.Key, row.Revision).Put(row.Key, s)
	}
	return t, nil
}
