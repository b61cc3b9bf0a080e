package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// State is what a CA is to its holder.
type State string

// The states of a CA's row. A CA without a row is free.
const (
	Used    State = "used"    // a port has it
	Held    State = "held"    // a swap has set it aside for a port
	Resting State = "resting" // given back, unused until Holder.Until
)

// A Holder says who has a CA: one row a CA, so no CA is given twice (invariant 10).
type Holder struct {
	Port  string    `json:"port"`
	Claim string    `json:"claim,omitempty"` // that may take the CA while it rests
	State State     `json:"state"`
	Until time.Time `json:"until,omitzero"` // of a resting one, and of one that its port holds again before that
}

// free reports whether the CA of a row may be given to next: at once to the port
// that gave it back, which nobody can take for another one.
func (h Holder) free(next Holder, now time.Time) bool {
	return h.State == Resting && (!h.Until.After(now) || h.Claim != "" && h.Claim == next.Claim || next.Port != "" && h.Port == next.Port)
}

// What holds a CA and is no port, with its name behind.
const (
	vtepHolder    = "vtep:"
	serviceHolder = "service:"
)

func (h Holder) owner() string {
	if name, ok := strings.CutPrefix(h.Port, vtepHolder); ok {
		return "by VTEP " + name
	}
	if name, ok := strings.CutPrefix(h.Port, serviceHolder); ok {
		return "by service " + name
	}
	return "by port " + h.Port
}

func casPrefix(v vnet.VNI) string { return fmt.Sprintf("%s%08d/", store.CAs, v) }

// Take composes the taking of CAs of network n for h, a port with a MAC, one of each
// family that is needed: of those in want, and the next free ones. They are in the
// order of a place, IPv4 first. The network must not change until the commit.
func (m *Manager) Take(ctx context.Context, n store.Row[Network], want []vnet.CA, need Families, mac vnet.MAC, h Holder) ([]vnet.CA, *store.Txn, error) {
	wanted, err := n.Value.wanted(want, need)
	if err != nil {
		return nil, nil, fmt.Errorf("network %q: %w", n.Value.Moniker, err)
	}
	t := (&store.Txn{}).Unchanged(n.Key, n.Revision)
	var cas []vnet.CA
	for _, f := range []Families{V4, V6} {
		if !need.Has(f) {
			continue
		}
		var row store.Row[Holder]
		ca, err := n.Value.own(f, wanted[f], mac)
		if err == nil && ca.IsValid() {
			row, err = m.check(ctx, &n.Value, ca, h)
		} else if err == nil {
			ca, row, err = m.nextFree(ctx, &n.Value, f)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("network %q: %w", n.Value.Moniker, err)
		}
		key, holder := store.CAKey(n.Value.VNI, ca), h
		if h.State == Held && row.Value.Until.After(m.Now()) {
			holder.Until = row.Value.Until
		}
		t.Unchanged(key, row.Revision).Put(key, holder)
		cas = append(cas, ca)
	}
	return cas, t, nil
}

// wanted returns the CAs that were asked for by their family, of which the port
// has one each at most.
func (n *Network) wanted(want []vnet.CA, need Families) (map[Families]vnet.CA, error) {
	have := n.Families()
	wanted := make(map[Families]vnet.CA, len(want))
	for _, ca := range want {
		f := FamilyOf(ca.Addr)
		if !have.Has(f) {
			return nil, fmt.Errorf("%w: %s is in none of %s", ErrOutside, ca, join(n.prefixes()))
		}
		if !need.Has(f) {
			return nil, fmt.Errorf("%w: %s is asked for, but the port has %s addresses only", ErrFamily, ca, need)
		}
		if wanted[f].IsValid() {
			return nil, fmt.Errorf("%w: both %s and %s are asked for; a port has one address of each family", ErrInvalid, wanted[f], ca)
		}
		wanted[f] = ca
	}
	if !have.Has(need) {
		return nil, fmt.Errorf("%w: it has %s subnets, %s is needed; choose another network or add a subnet", ErrFamily, have, need)
	}
	return wanted, nil
}

// own returns the address that a guest makes itself, when it is in a subnet with
// SLAAC; else what was asked for, which may be none.
func (n *Network) own(f Families, want vnet.CA, mac vnet.MAC) (vnet.CA, error) {
	for _, s := range n.Subnets {
		if FamilyOf(s.Prefix.Addr()) != f || want.IsValid() && !s.Prefix.Contains(want.Addr) {
			continue
		}
		if !s.SLAAC {
			return want, nil
		}
		made, _ := mac.EUI64(s.Prefix)
		if want.IsValid() && want != made {
			return want, fmt.Errorf("%w: in subnet %s a guest makes its address itself, of its MAC; leave %s out", ErrOutside, s.Prefix, want)
		}
		return made, nil
	}
	return want, nil
}

// check returns the row of want, of revision 0 for none, when it may be taken.
func (m *Manager) check(ctx context.Context, n *Network, want vnet.CA, next Holder) (store.Row[Holder], error) {
	s, ok := n.subnet(want)
	if !ok {
		return store.Row[Holder]{}, fmt.Errorf("%w: %s is in none of %s", ErrOutside, want, join(n.prefixes()))
	}
	if why := s.unusable(want.Addr); why != "" {
		return store.Row[Holder]{}, fmt.Errorf("%w: %s is %s of %s", ErrOutside, want, why, s.Prefix)
	}
	return m.checkFree(ctx, n.VNI, want, next)
}

// checkFree is check for an address that need not be in a subnet.
func (m *Manager) checkFree(ctx context.Context, v vnet.VNI, want vnet.CA, next Holder) (store.Row[Holder], error) {
	row, err := store.Get[Holder](ctx, m.Store, store.CAKey(v, want))
	if errors.Is(err, store.ErrNotFound) {
		return row, nil
	}
	if err != nil || row.Value.free(next, m.Now()) {
		return row, err
	}
	if row.Value.State != Resting {
		return row, fmt.Errorf("%w: %s is %s %s; leave the address out to get the next free one", ErrTaken, want, row.Value.State, row.Value.owner())
	}
	wait := row.Value.Until.Sub(m.Now()).Round(time.Second)
	return row, fmt.Errorf("%w: %s was given back and rests for another %s", ErrTaken, want, wait)
}

func join(prefixes []netip.Prefix) string {
	all := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return strings.Join(all, ", ")
}

// nextFree returns the lowest CA of a family that nobody has, never a resting one
// while its time is not up. It looks at as many addresses as are taken, however
// large the subnet is, and reads only their keys unless all are.
func (m *Manager) nextFree(ctx context.Context, n *Network, f Families) (vnet.CA, store.Row[Holder], error) {
	keys, err := store.Keys(ctx, m.Store, casPrefix(n.VNI))
	if err != nil {
		return vnet.CA{}, store.Row[Holder]{}, err
	}
	if ca, ok := n.lowest(f, func(ca string) bool { return !keys[ca] }); ok {
		return ca, store.Row[Holder]{}, nil
	}
	rows, _, err := store.List[Holder](ctx, m.Store, casPrefix(n.VNI))
	if err != nil {
		return vnet.CA{}, store.Row[Holder]{}, err
	}
	taken := make(map[string]store.Row[Holder], len(rows))
	for _, r := range rows {
		taken[strings.TrimPrefix(r.Key, casPrefix(n.VNI))] = r
	}
	ca, ok := n.lowest(f, func(ca string) bool { // one that has rested and was not swept yet
		row, held := taken[ca]
		return !held || row.Value.free(Holder{}, m.Now())
	})
	if !ok {
		return ca, store.Row[Holder]{}, fmt.Errorf("%s address: %w in %s (%d used, held or resting): add a subnet or delete ports", f, ErrExhausted, join(n.prefixes()), len(rows))
	}
	return ca, taken[ca.String()], nil
}

// lowest returns the lowest CA of a family that a port can have and that is free.
func (n *Network) lowest(f Families, free func(ca string) bool) (vnet.CA, bool) {
	for _, s := range n.Subnets {
		if FamilyOf(s.Prefix.Addr()) != f {
			continue
		}
		for a := s.Prefix.Addr(); s.Prefix.Contains(a); a = a.Next() {
			if s.unusable(a) == "" && free(a.String()) {
				return vnet.CA{Addr: a}, true
			}
		}
	}
	return vnet.CA{}, false
}

// Use composes that port now has ca, which was held for it.
func (m *Manager) Use(v vnet.VNI, ca vnet.CA, port string) *store.Txn {
	return (&store.Txn{}).Put(store.CAKey(v, ca), Holder{Port: port, State: Used})
}

// Release composes that ca, held in vain, is free at once: nobody has seen it. If
// its port had it shortly before, it goes on resting.
func (m *Manager) Release(ctx context.Context, v vnet.VNI, ca vnet.CA) (*store.Txn, error) {
	key := store.CAKey(v, ca)
	row, err := store.Get[Holder](ctx, m.Store, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if h := row.Value; h.Until.After(m.Now()) {
		return (&store.Txn{}).Put(key, Holder{Port: h.Port, State: Resting, Until: h.Until}), nil
	}
	return (&store.Txn{}).Delete(key), nil
}

// Retire composes that ca is given back and rests.
func (m *Manager) Retire(v vnet.VNI, ca vnet.CA, port string) *store.Txn {
	return (&store.Txn{}).Put(store.CAKey(v, ca), Holder{Port: port, State: Resting, Until: m.Now().Add(m.Rest)})
}

// Yield composes that port, which is being destroyed, leaves ca to whatever serves
// claim next; to all others it rests.
func (m *Manager) Yield(v vnet.VNI, ca vnet.CA, port, claim string) *store.Txn {
	return (&store.Txn{}).Put(store.CAKey(v, ca), Holder{Port: port, Claim: claim, State: Resting, Until: m.Now().Add(m.Rest)})
}

// RestsUntil returns how long the CA of a row rests, zero if it doesn't.
func (m *Manager) RestsUntil(ctx context.Context, key string) (time.Time, error) {
	row, err := store.Get[Holder](ctx, m.Store, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && row.Value.State != Resting {
		return time.Time{}, nil
	}
	return row.Value.Until, err
}

// sweepBatch is how many rows go with one write.
const sweepBatch = 50

// Sweep deletes the rows of CAs that have rested and returns when the next one
// will have, or the zero time when none rests.
func (m *Manager) Sweep(ctx context.Context) (time.Time, error) {
	rows, _, err := store.List[Holder](ctx, m.Store, store.CAs)
	if err != nil {
		return time.Time{}, err
	}
	now, next, rested := m.Now(), time.Time{}, 0
	t := &store.Txn{}
	for _, r := range rows {
		switch until := r.Value.Until; {
		case r.Value.State != Resting:
		case until.After(now) || rested == sweepBatch:
			if next.IsZero() || until.Before(next) {
				next = until
			}
		default:
			t.Unchanged(r.Key, r.Revision).Delete(r.Key)
			rested++
		}
	}
	if rested == 0 {
		return next, nil
	}
	_, err = m.Store.Commit(ctx, t)
	return next, err
}
