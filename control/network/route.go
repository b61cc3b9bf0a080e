package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"replug/directory/store"
	"replug/directory/vnet"
)

// maxRoutes is how many routes a network may have, those to its subnets and peers among them:
// each place has them all.
const maxRoutes = 256

// subnetRoutes lead from one subnet of the network to the others of its family: a
// port's row knows the subnets alone that it has an address in.
func (n *Network) subnetRoutes() []vnet.Route {
	of := map[bool]int{}
	for _, s := range n.Subnets {
		of[s.Prefix.Addr().Is4()]++
	}
	var routes []vnet.Route
	for _, s := range n.Subnets {
		if of[s.Prefix.Addr().Is4()] > 1 {
			routes = append(routes, vnet.Route{Prefix: s.Prefix})
		}
	}
	return routes
}

func (n *Network) checkRoutes() error {
	if all := len(n.Routes) + len(n.subnetRoutes()) + len(n.peerRoutes()); all > maxRoutes {
		return fmt.Errorf("%w: %d routes, those to subnets and peers among them; %d at most: sum some up in one prefix", ErrInvalid, all, maxRoutes)
	}
	seen := make(map[netip.Prefix]bool, len(n.Routes))
	for _, p := range n.peerRoutes() {
		seen[p.Prefix] = true
	}
	for _, r := range n.Routes {
		if err := n.checkRoute(r); err != nil {
			return err
		}
		if seen[r.Prefix] {
			return fmt.Errorf("%w route %s: given twice, or a peer has it as subnet", ErrInvalid, r.Prefix)
		}
		seen[r.Prefix] = true
	}
	return nil
}

func (n *Network) checkRoute(r vnet.Route) error {
	p := r.Prefix
	switch {
	case !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "":
		return fmt.Errorf("%w route: not a prefix, write it as in 10.9.0.0/16 or ::/0", ErrInvalid)
	case p != p.Masked():
		return fmt.Errorf("%w route %s: host bits are set; write %s", ErrInvalid, p, p.Masked())
	case !r.NextHop.IsValid() || r.NextHop.Is4() != p.Addr().Is4():
		return fmt.Errorf("%w route %s: next hop %s is not an address of the same family", ErrInvalid, p, r.NextHop)
	}
	s, ok := n.subnet(vnet.CA{Addr: r.NextHop})
	if !ok {
		return fmt.Errorf("%w route %s: next hop %s is in no subnet of the network; it must be the address of a VM or VTEP in it", ErrInvalid, p, r.NextHop)
	}
	if why := s.unusable(r.NextHop); why != "" {
		return fmt.Errorf("%w route %s: next hop %s is %s of %s; it must be the address of a VM or VTEP", ErrInvalid, p, r.NextHop, why, s.Prefix)
	}
	for _, s := range n.Subnets {
		if s.Prefix.Contains(p.Addr()) && s.Prefix.Bits() <= p.Bits() {
			return fmt.Errorf("%w route %s: it is inside subnet %s, whose addresses are reached directly", ErrInvalid, p, s.Prefix)
		}
	}
	for _, x := range reserved {
		if x.prefix.Contains(p.Addr()) && x.prefix.Bits() <= p.Bits() {
			return fmt.Errorf("%w route %s: %s is reserved (%s)", ErrInvalid, p, x.prefix, x.why)
		}
	}
	return nil
}

// AddRoute composes that a network has one more route. All ports in it get it by
// their intents, a little later.
func (m *Manager) AddRoute(ctx context.Context, tenant string, moniker vnet.Moniker, r vnet.Route) (*store.Txn, error) {
	return m.edit(ctx, tenant, moniker, func(n *Network) error {
		if i := slices.IndexFunc(n.Routes, func(o vnet.Route) bool { return o.Prefix == r.Prefix }); i >= 0 {
			return fmt.Errorf("route %s: %w, via %s; remove it first", r.Prefix, ErrExists, n.Routes[i].NextHop)
		}
		n.Routes = append(slices.Clone(n.Routes), r)
		return n.checkRoutes()
	})
}

// RemoveRoute composes that a network has the route of a prefix no more.
func (m *Manager) RemoveRoute(ctx context.Context, tenant string, moniker vnet.Moniker, p netip.Prefix) (*store.Txn, error) {
	return m.edit(ctx, tenant, moniker, func(n *Network) error {
		i := slices.IndexFunc(n.Routes, func(o vnet.Route) bool { return o.Prefix == p })
		if i < 0 {
			return fmt.Errorf("route %s: %w; routes to a peer's subnets go with the peering", p, ErrNotFound)
		}
		n.Routes = slices.Delete(slices.Clone(n.Routes), i, i+1)
		return nil
	})
}

// edit composes a change of a network's row.
func (m *Manager) edit(ctx context.Context, tenant string, moniker vnet.Moniker, change func(*Network) error) (*store.Txn, error) {
	row, err := m.Get(ctx, tenant, moniker)
	if err != nil {
		return nil, err
	}
	n := row.Value
	if err := change(&n); err != nil {
		return nil, fmt.Errorf("network %q: %w", moniker, err)
	}
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).Put(row.Key, n), nil
}

// nextHop reports whether a route of the network leads to ca.
func (n *Network) nextHop(ca vnet.CA) bool {
	return slices.ContainsFunc(n.Routes, func(r vnet.Route) bool { return r.NextHop == ca.Addr })
}
