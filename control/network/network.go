// Package network is the networking manager: virtual networks by moniker, their
// VNIs, the customer addresses in them, and the ports with their place, MAC and
// physical address. Whoever else speaks of a network knows its moniker only.
//
// What changes the world is returned as a [store.Txn] that the caller joins with
// the writes of others into one commit. Each of them carries the conditions under
// which it is right, so a lost race is a conflict and never a second owner.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Errors of this package. What is wrong, why and what next is in the text around them.
var (
	ErrInvalid   = errors.New("invalid")
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("exists already")
	ErrTaken     = errors.New("address taken")
	ErrOutside   = errors.New("address outside the network")
	ErrFamily    = errors.New("no addresses of the family")
	ErrInUse     = errors.New("in use")
	ErrExhausted = errors.New("none left")
)

// A Network is a virtual network, as it is stored.
type Network struct {
	Moniker  vnet.Moniker  `json:"moniker"`
	Tenant   string        `json:"tenant"`
	VNI      vnet.VNI      `json:"vni"`
	Subnets  []Subnet      `json:"subnets"`
	Routes   []vnet.Route  `json:"routes,omitempty"` // static ones; those to peers come from Peers
	DNS      []netip.Addr  `json:"dns,omitempty"`
	Domain   string        `json:"domain,omitempty"`
	NTP      []netip.Addr  `json:"ntp,omitempty"`
	MTU      uint16        `json:"mtu,omitempty"` // bytes of a guest's IP packet; 0: what the underlay leaves
	Lease    time.Duration `json:"lease"`
	Isolated bool          `json:"isolated,omitempty"` // the pool's: its ports reach DHCP and IMDS only
	Peers    []Peer        `json:"peers,omitempty"`
	FlowLog  bool          `json:"flow_log,omitempty"` // hosts log the flows of its ports
}

// A Range is the VNIs that may be given out, both ends included.
type Range struct{ Min, Max vnet.VNI }

// Rest is how long a CA that was given back stays unused, so that no peer takes
// its next owner for the former one.
const Rest = 60 * time.Second

// A Manager reads and composes changes of networks, addresses and ports. It is
// safe for concurrent use.
type Manager struct {
	Store *store.Store
	Era   uint16
	VNIs  Range
	Rest  time.Duration    // of a CA given back; [Rest] unless a test says otherwise
	Now   func() time.Time // the clock that rests are measured with

	macs *store.Counter
	ids  rotation
}

// New makes a manager of the leader's store, in the cluster's era.
func New(s *store.Store, era uint16, vnis Range) *Manager {
	return &Manager{Store: s, Era: era, VNIs: vnis, Rest: Rest, Now: time.Now, macs: store.NewCounter(s, "mac", era)}
}

// Key is where a tenant's network is stored. Two tenants may have the same moniker.
func Key(tenant string, m vnet.Moniker) string {
	return store.Networks + tenant + "/" + string(m)
}

// Get reads a tenant's network; it returns [ErrNotFound], naming those there are.
func (m *Manager) Get(ctx context.Context, tenant string, moniker vnet.Moniker) (store.Row[Network], error) {
	row, err := store.Get[Network](ctx, m.Store, Key(tenant, moniker))
	if errors.Is(err, store.ErrNotFound) {
		return row, fmt.Errorf("network %q of tenant %q: %w%s", moniker, tenant, ErrNotFound, m.others(ctx, tenant))
	}
	return row, err
}

func (m *Manager) others(ctx context.Context, tenant string) string {
	nets, err := m.List(ctx, tenant)
	if err != nil || len(nets) == 0 {
		return "; the tenant has no network yet: create one first"
	}
	names := make([]string, 0, len(nets))
	for _, n := range nets {
		names = append(names, string(n.Moniker))
	}
	return "; there are: " + strings.Join(names, ", ")
}

// List returns a tenant's networks, or all for tenant "".
func (m *Manager) List(ctx context.Context, tenant string) ([]Network, error) {
	prefix := store.Networks
	if tenant != "" {
		prefix += tenant + "/"
	}
	rows, _, err := store.List[Network](ctx, m.Store, prefix)
	nets := make([]Network, 0, len(rows))
	for _, r := range rows {
		nets = append(nets, r.Value)
	}
	return nets, err
}

// Create checks n, fills in what was left open (gateways, VNI, lease) and composes
// its rows.
func (m *Manager) Create(ctx context.Context, n Network) (Network, *store.Txn, error) {
	n.Subnets = slices.Clone(n.Subnets)
	if err := n.complete(); err != nil {
		return n, nil, fmt.Errorf("network %q: %w", n.Moniker, err)
	}
	key := Key(n.Tenant, n.Moniker)
	if _, err := store.Get[Network](ctx, m.Store, key); err == nil {
		return n, nil, fmt.Errorf("network %q of tenant %q: %w: choose another moniker or delete it first", n.Moniker, n.Tenant, ErrExists)
	} else if !errors.Is(err, store.ErrNotFound) {
		return n, nil, err
	}
	vni, err := m.freeVNI(ctx, n.VNI)
	if err != nil {
		return n, nil, fmt.Errorf("network %q: %w", n.Moniker, err)
	}
	n.VNI = vni
	n.settle()
	vniKey := vniKey(vni)
	return n, (&store.Txn{}).Absent(key).Put(key, n).Absent(vniKey).Put(vniKey, key), nil
}

// settle fills in what the VNI says.
func (n *Network) settle() {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Addr().Is6() {
			n.Subnets[i].Gateway = n.VNI.Gateway6()
		}
	}
}

// SetFlowLog composes that the hosts log the flows of a network's ports, or don't.
func (m *Manager) SetFlowLog(ctx context.Context, tenant string, moniker vnet.Moniker, on bool) (*store.Txn, error) {
	return m.edit(ctx, tenant, moniker, func(n *Network) error {
		n.FlowLog = on
		return nil
	})
}

// Delete composes the removal of a network and of its security groups. It returns
// [ErrInUse] while a port, a service, a VTEP or a swap has an address in it, or it
// has a peer.
func (m *Manager) Delete(ctx context.Context, tenant string, moniker vnet.Moniker) (*store.Txn, error) {
	row, err := m.Get(ctx, tenant, moniker)
	if err != nil {
		return nil, err
	}
	n := row.Value
	if len(n.Peers) > 0 {
		return nil, fmt.Errorf("network %q: %w: it is a peer of %q%s; unpeer them first", moniker, ErrInUse, n.Peers[0].Moniker, andMore(len(n.Peers)-1))
	}
	held, rev, err := store.List[Holder](ctx, m.Store, casPrefix(n.VNI))
	if err != nil {
		return nil, err
	}
	held = slices.DeleteFunc(held, func(h store.Row[Holder]) bool { return h.Value.State == Resting })
	if len(held) > 0 {
		h := held[0]
		return nil, fmt.Errorf("network %q: %w: %s %s %s%s; delete or move them first", moniker, ErrInUse,
			strings.TrimPrefix(h.Key, casPrefix(n.VNI)), h.Value.State, h.Value.owner(), andMore(len(held)-1))
	}
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).Delete(row.Key).Delete(vniKey(n.VNI)).
		UnchangedUnder(casPrefix(n.VNI), rev).DeleteUnder(casPrefix(n.VNI)).DeleteUnder(store.NetworkGroups(n.VNI)).Delete(store.SlotKey(n.VNI)), nil
}

func andMore(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", and %d more", n)
}

// Place returns where port p with some addresses is, but for what the caller knows:
// groups, document, swap, proof and trigger. A port that a route leads to is a
// router: it may send from addresses that are not its own.
func (n *Network) Place(p Port, cas []vnet.CA, epoch vnet.Epoch) vnet.Place {
	place := vnet.Place{
		Epoch: epoch, Tenant: n.Tenant, Network: n.Moniker, VNI: n.VNI,
		Routes: slices.Concat(n.Routes, n.subnetRoutes(), n.peerRoutes()), MTU: n.MTU, Isolated: n.Isolated,
		Router: p.Router, FlowLog: n.FlowLog,
		DHCP: vnet.DHCP{DNS: n.DNS, Domain: n.Domain, NTP: n.NTP, Lease: n.Lease},
	}
	if p.MTU != 0 {
		place.MTU = p.MTU
	}
	for _, ca := range cas {
		if s, ok := n.subnet(ca); ok {
			place.Addrs = append(place.Addrs, vnet.Addr{CA: ca, Bits: s.Prefix.Bits(), Gateway: s.Gateway, SLAAC: s.SLAAC})
		}
		place.Router = place.Router || n.nextHop(ca)
	}
	return place
}

// Renew returns place, which is of port p in the network, as the two make it now:
// routes, MTU, servers and so on are the network's, the rest stays.
func (n *Network) Renew(place vnet.Place, p Port) vnet.Place {
	next := n.Place(p, CAsOf(&place), place.Epoch)
	next.Groups, next.Slots = place.Groups, place.Slots
	next.Document, next.Swap, next.Undo, next.Undoable = place.Document, place.Swap, place.Undo, place.Undoable
	next.Confirm, next.Trigger, next.LeaseBudget = place.Confirm, place.Trigger, place.LeaseBudget
	next.OldConnections, next.Drain, next.Hold = place.OldConnections, place.Drain, place.Hold
	return next
}
