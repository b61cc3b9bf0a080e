package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A Peer is another network of the same tenant whose VMs can be reached from this
// one and reach back. Both networks' rows have the other; what is needed of it for
// routes is copied, so that a place is made from one row.
type Peer struct {
	Moniker  vnet.Moniker   `json:"moniker"`
	VNI      vnet.VNI       `json:"vni"`
	Prefixes []netip.Prefix `json:"prefixes"` // its subnets
}

func (n *Network) asPeer() Peer {
	return Peer{Moniker: n.Moniker, VNI: n.VNI, Prefixes: n.prefixes()}
}

// peerRoutes are the routes to the subnets of all peers.
func (n *Network) peerRoutes() []vnet.Route {
	var routes []vnet.Route
	for _, p := range n.Peers {
		for _, prefix := range p.Prefixes {
			routes = append(routes, vnet.Route{Prefix: prefix, Peer: p.VNI})
		}
	}
	return routes
}

func (n *Network) peer(m vnet.Moniker) int {
	return slices.IndexFunc(n.Peers, func(p Peer) bool { return p.Moniker == m })
}

// Peer composes that two networks of a tenant reach one another.
func (m *Manager) Peer(ctx context.Context, tenant string, one, other vnet.Moniker) (*store.Txn, error) {
	a, b, err := m.pair(ctx, tenant, one, other)
	if err != nil {
		return nil, err
	}
	if a.Value.peer(other) >= 0 {
		return nil, fmt.Errorf("networks %q and %q: %w as peers", one, other, ErrExists)
	}
	if err := a.Value.addPeer(&b.Value); err != nil {
		return nil, err
	}
	if err := b.Value.addPeer(&a.Value); err != nil {
		return nil, err
	}
	return putPair(a, b), nil
}

// Unpeer composes that two networks don't reach one another any more.
func (m *Manager) Unpeer(ctx context.Context, tenant string, one, other vnet.Moniker) (*store.Txn, error) {
	a, b, err := m.pair(ctx, tenant, one, other)
	if err != nil {
		return nil, err
	}
	if a.Value.peer(other) < 0 {
		return nil, fmt.Errorf("networks %q and %q: %w: they are not peers", one, other, ErrNotFound)
	}
	a.Value.removePeer(other)
	b.Value.removePeer(one)
	return putPair(a, b), nil
}

func (m *Manager) pair(ctx context.Context, tenant string, one, other vnet.Moniker) (a, b store.Row[Network], err error) {
	if one == other {
		return a, b, fmt.Errorf("%w peering: network %q with itself; its subnets reach one another anyway", ErrInvalid, one)
	}
	if a, err = m.Get(ctx, tenant, one); err == nil {
		b, err = m.Get(ctx, tenant, other)
	}
	return a, b, err
}

func putPair(a, b store.Row[Network]) *store.Txn {
	return (&store.Txn{}).Unchanged(a.Key, a.Revision).Put(a.Key, a.Value).Unchanged(b.Key, b.Revision).Put(b.Key, b.Value)
}

// addPeer checks that no address would mean two places, or none.
func (n *Network) addPeer(other *Network) error {
	if n.Isolated || other.Isolated {
		return fmt.Errorf("%w peering: the VMs of the pool's network are isolated", ErrInvalid)
	}
	for _, p := range other.prefixes() {
		if err := n.apart(p); err != nil {
			return fmt.Errorf("%w peering of network %q with %q: %w; give one of them other subnets", ErrInvalid, n.Moniker, other.Moniker, err)
		}
	}
	n.Peers = append(slices.Clone(n.Peers), other.asPeer())
	if err := n.checkRoutes(); err != nil {
		return fmt.Errorf("network %q: %w", n.Moniker, err)
	}
	return nil
}

// apart returns an error when n can't have p as the subnet of a peer.
func (n *Network) apart(p netip.Prefix) error {
	if err := overlap(p, n.prefixes(), fmt.Sprintf("network %q", n.Moniker)); err != nil {
		return err
	}
	for _, peer := range n.Peers {
		if err := overlap(p, peer.Prefixes, fmt.Sprintf("network %q, a peer of %q", peer.Moniker, n.Moniker)); err != nil {
			return err
		}
	}
	for _, r := range n.Routes {
		if p.Contains(r.Prefix.Addr()) && p.Bits() <= r.Prefix.Bits() {
			return fmt.Errorf("route %s of network %q would take addresses of subnet %s away", r.Prefix, n.Moniker, p)
		}
	}
	return nil
}

func (n *Network) removePeer(m vnet.Moniker) {
	n.Peers = slices.DeleteFunc(slices.Clone(n.Peers), func(p Peer) bool { return p.Moniker == m })
}

// AddSubnet composes that a network has one more subnet, and that its peers know.
func (m *Manager) AddSubnet(ctx context.Context, tenant string, moniker vnet.Moniker, s Subnet) (*store.Txn, error) {
	row, err := m.Get(ctx, tenant, moniker)
	if err != nil {
		return nil, err
	}
	n := row.Value
	if err := s.complete(); err != nil {
		return nil, fmt.Errorf("network %q: %w", moniker, err)
	}
	if err := n.apart(s.Prefix); err != nil {
		return nil, fmt.Errorf("network %q: %w: %w", moniker, ErrInvalid, err)
	}
	n.Subnets = append(slices.Clone(n.Subnets), s)
	n.settle()
	if err := n.checkRoutes(); err != nil {
		return nil, fmt.Errorf("network %q: %w", moniker, err)
	}
	if err := CheckMTU(n.MTU, n.Families()); err != nil {
		return nil, fmt.Errorf("network %q: %w", moniker, err)
	}
	t := (&store.Txn{}).Unchanged(row.Key, row.Revision).Put(row.Key, n)
	for _, p := range n.Peers {
		other, err := m.Get(ctx, tenant, p.Moniker)
		if err != nil {
			return nil, err
		}
		o := &other.Value
		o.removePeer(moniker)
		if err := o.addPeer(&n); err != nil {
			return nil, err
		}
		t.Unchanged(other.Key, other.Revision).Put(other.Key, o)
	}
	return t, nil
}
