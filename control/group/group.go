// Package group is the part of the networking manager that keeps security groups:
// the rules of a network's ports, and names for the ports that have them. Hosts
// read the groups' rows themselves; a port's place and mappings say which groups it
// is in, by name and by slot.
//
// What changes the world is returned as a [store.Txn] with the conditions under
// which it is right, for the caller to join with the writes of others.
package group

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	ErrInUse     = errors.New("in use")
	ErrExhausted = errors.New("none left")
)

// A Manager reads and composes changes of groups. It is safe for concurrent use.
type Manager struct{ Store *store.Store }

// Get reads a group of a network; it returns [ErrNotFound].
func (m *Manager) Get(ctx context.Context, v vnet.VNI, name string) (store.Row[vnet.Group], error) {
	if name == "" || strings.Contains(name, "/") {
		return store.Row[vnet.Group]{}, missing(name)
	}
	row, err := store.Get[vnet.Group](ctx, m.Store, store.GroupKey(v, name))
	if errors.Is(err, store.ErrNotFound) {
		return row, missing(name)
	}
	return row, err
}

func missing(name string) error {
	return fmt.Errorf("security group %q: %w in the network; list the groups there are", name, ErrNotFound)
}

// List returns the groups of a network, by name.
func (m *Manager) List(ctx context.Context, v vnet.VNI) ([]vnet.Group, error) {
	rows, _, err := store.List[vnet.Group](ctx, m.Store, store.NetworkGroups(v))
	groups := make([]vnet.Group, 0, len(rows))
	for _, r := range rows {
		groups = append(groups, r.Value)
	}
	return groups, err
}

// Create composes a new group, whose name the caller has checked.
func (m *Manager) Create(ctx context.Context, v vnet.VNI, name string, rules []vnet.Rule) (*store.Txn, error) {
	rows, rev, err := store.List[vnet.Group](ctx, m.Store, store.NetworkGroups(v))
	if err != nil {
		return nil, err
	}
	var used vnet.Groups
	others := map[string]bool{name: true}
	for _, r := range rows {
		if r.Value.Name == name {
			return nil, fmt.Errorf("security group %q: %w: set its rules, or choose another name", name, ErrExists)
		}
		used = used.With(r.Value.Slot)
		others[r.Value.Name] = true
	}
	if rules, err = complete(rules, others); err != nil {
		return nil, fmt.Errorf("security group %q: %w", name, err)
	}
	slot, err := m.freeSlot(ctx, v, used)
	if err != nil {
		return nil, fmt.Errorf("security group %q: %w", name, err)
	}
	g := vnet.Group{VNI: v, Name: name, Slot: slot, Generation: 1, Rules: rules}
	return (&store.Txn{}).UnchangedUnder(store.NetworkGroups(v), rev).
		Absent(store.GroupKey(v, name)).Put(store.GroupKey(v, name), g).Put(store.SlotKey(v), slot), nil
}

// freeSlot returns the free slot after the last that was given: one is given again as
// late as possible, for a host that is cut off still has rules by it.
func (m *Manager) freeSlot(ctx context.Context, v vnet.VNI, used vnet.Groups) (uint8, error) {
	last, err := store.Get[uint8](ctx, m.Store, store.SlotKey(v))
	if errors.Is(err, store.ErrNotFound) {
		last.Value = vnet.MaxGroups - 1
	} else if err != nil {
		return 0, err
	}
	for i := range uint8(vnet.MaxGroups) {
		if slot := (last.Value + 1 + i) % vnet.MaxGroups; !used.Has(slot) {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("%w of the network's %d: put the rules into one that there is, or delete one", ErrExhausted, vnet.MaxGroups)
}

// SetRules composes that a group has these rules and no others. It returns
// [ErrExhausted] when a port in it would have too many.
func (m *Manager) SetRules(ctx context.Context, v vnet.VNI, name string, rules []vnet.Rule) (*store.Txn, error) {
	rows, rev, err := store.List[vnet.Group](ctx, m.Store, store.NetworkGroups(v))
	if err != nil {
		return nil, err
	}
	of := make(map[string]vnet.Group, len(rows))
	names := make(map[string]bool, len(rows))
	for _, r := range rows {
		of[r.Value.Name], names[r.Value.Name] = r.Value, true
	}
	g, ok := of[name]
	if !ok {
		return nil, missing(name)
	}
	if g.Rules, err = complete(rules, names); err != nil {
		return nil, fmt.Errorf("security group %q: %w", name, err)
	}
	g.Generation++
	of[name] = g
	ports, seen, err := m.ports(ctx, v)
	if err != nil {
		return nil, err
	}
	for port, sets := range ports {
		for _, set := range sets {
			if err := fits(set, of); slices.Contains(set, name) && err != nil {
				return nil, fmt.Errorf("security group %q: port %s: %w", name, port, err)
			}
		}
	}
	return (&store.Txn{}).UnchangedUnder(store.NetworkGroups(v), rev).UnchangedUnder(store.Intents, seen).
		Exists(store.GroupKey(v, name)).Put(store.GroupKey(v, name), g), nil
}

// Delete composes the removal of a group. It returns [ErrInUse] while a port is in
// it or on its way there, a rule of another group names it, or the caller has held
// it for somebody.
func (m *Manager) Delete(ctx context.Context, v vnet.VNI, name string, held func(name string) error) (*store.Txn, error) {
	row, err := m.Get(ctx, v, name)
	if err != nil {
		return nil, err
	}
	in, seen, err := m.ports(ctx, v)
	if err != nil {
		return nil, err
	}
	// Asked after the ports were read: a swap that takes one out in between changes its
	// intent, which the commit minds.
	if err := held(name); err != nil {
		return nil, fmt.Errorf("security group %q: %w: %w", name, ErrInUse, err)
	}
	for _, port := range slices.Sorted(maps.Keys(in)) {
		if slices.ContainsFunc(in[port], func(set []string) bool { return slices.Contains(set, name) }) {
			return nil, fmt.Errorf("security group %q: %w: port %s is in it; give it other groups first", name, ErrInUse, port)
		}
	}
	others, rev, err := store.List[vnet.Group](ctx, m.Store, store.NetworkGroups(v))
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		for _, r := range o.Value.Rules {
			if r.RemoteGroup == name && o.Value.Name != name {
				return nil, fmt.Errorf("security group %q: %w: rule %s of group %s names it; change that first", name, ErrInUse, r.Name, o.Value.Name)
			}
		}
	}
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).UnchangedUnder(store.NetworkGroups(v), rev).
		UnchangedUnder(store.Intents, seen).Delete(row.Key), nil
}

// Resolve returns the groups of some names, sorted and each once, with their slots
// and the conditions under which a port can be in all of them. It returns
// [ErrExhausted] when their rules are too many for one port.
func (m *Manager) Resolve(ctx context.Context, v vnet.VNI, names []string) ([]string, vnet.Groups, *store.Txn, error) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	of := make(map[string]vnet.Group, len(names))
	var slots vnet.Groups
	t := &store.Txn{}
	for _, name := range names {
		row, err := m.Get(ctx, v, name)
		if err != nil {
			return nil, 0, nil, err
		}
		t.Unchanged(row.Key, row.Revision)
		slots = slots.With(row.Value.Slot)
		of[name] = row.Value
	}
	if err := fits(names, of); err != nil {
		return nil, 0, nil, fmt.Errorf("security groups %s: %w", strings.Join(names, ", "), err)
	}
	return names, slots, t, nil
}

// fits returns an error when the rules of a set of groups are too many for a port.
func fits(set []string, of map[string]vnet.Group) error {
	count := make(map[vnet.Direction]int)
	for _, name := range set {
		for _, r := range of[name].Rules {
			count[r.Direction]++
		}
	}
	for _, d := range []vnet.Direction{vnet.In, vnet.Out} {
		if n := count[d]; n > vnet.MaxRules {
			return fmt.Errorf("%w: %d rules %q, a port has %d of a direction at most; sum some up in one prefix or port range", ErrExhausted, n, d, vnet.MaxRules)
		}
	}
	return nil
}

// Members returns the ports in each group of a network, by name.
func (m *Manager) Members(ctx context.Context, v vnet.VNI) (map[string][]string, error) {
	ports, _, err := m.ports(ctx, v)
	members := make(map[string][]string)
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		for _, set := range ports[port] {
			for _, name := range set {
				if !slices.Contains(members[name], port) {
					members[name] = append(members[name], port)
				}
			}
		}
	}
	return members, err
}

// ports returns the sets of groups that each port has in a network, or is to have
// there, and the revision of that.
func (m *Manager) ports(ctx context.Context, v vnet.VNI) (map[string][][]string, int64, error) {
	rows, rev, err := store.List[vnet.Intent](ctx, m.Store, store.Intents)
	ports := make(map[string][][]string)
	for _, r := range rows {
		for _, p := range []*vnet.Place{&r.Value.Current, r.Value.Next} {
			if p != nil && p.VNI == v && len(p.Groups) > 0 {
				ports[r.Value.Port] = append(ports[r.Value.Port], p.Groups)
			}
		}
	}
	return ports, rev, err
}
