package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A VTEP is a VXLAN endpoint that is no host of ours (a plain Linux vxlan device, a
// switch) with one address of a network behind it. Hosts know it by its mapping,
// and accept its frames by that.
type VTEP struct {
	Name string
	CA   vnet.CA
	PA   vnet.PA
	MAC  vnet.MAC
}

// AddVTEP composes that v is in network n.
func (m *Manager) AddVTEP(ctx context.Context, n store.Row[Network], v VTEP) (*store.Txn, error) {
	holder := Holder{Port: vtepHolder + v.Name, State: Used}
	if n.Value.Isolated {
		return nil, fmt.Errorf("%w VTEP %q: the pool's network has pooled VMs only", ErrInvalid, v.Name)
	}
	all, rev, err := m.vteps(ctx, n.Value.VNI)
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		if o.Name == v.Name {
			return nil, fmt.Errorf("VTEP %q of network %q: %w, at %s; remove it first", v.Name, n.Value.Moniker, ErrExists, o.PA)
		}
	}
	hosts, err := m.outside(ctx, v.PA)
	if err != nil {
		return nil, fmt.Errorf("VTEP %q: %w", v.Name, err)
	}
	held, err := m.check(ctx, &n.Value, v.CA, holder)
	if err != nil {
		return nil, fmt.Errorf("network %q: %w", n.Value.Moniker, err)
	}
	key, mapping := store.CAKey(n.Value.VNI, v.CA), store.MappingKey(n.Value.VNI, v.CA)
	return (&store.Txn{}).Unchanged(n.Key, n.Revision).UnchangedUnder(store.NetworkMappings(n.Value.VNI), rev).UnchangedUnder(store.Hosts, hosts).
		Unchanged(key, held.Revision).Put(key, holder).
		Put(store.VTEPKey(v.PA, n.Value.VNI, v.Name), vtepOf(v.Name, &n.Value)).
		Absent(mapping).Put(mapping, vnet.Mapping{
		VNI: n.Value.VNI, CA: v.CA, PA: v.PA, MAC: v.MAC, Epoch: vnet.NewEpoch(m.Era, uint64(rev)), Port: holder.Port,
	}), nil
}

// outside returns an error when pa can't be a VTEP's: what comes from there would
// pass for a host of ours, or is of no machine; else the hosts' revision.
func (m *Manager) outside(ctx context.Context, pa vnet.PA) (int64, error) {
	if !pa.IsValid() || pa.IsLoopback() || pa.IsLinkLocalUnicast() || pa.IsMulticast() || pa.IsUnspecified() {
		return 0, fmt.Errorf("%w underlay address %s: the unicast address of a machine that hosts can reach", ErrInvalid, pa)
	}
	hosts, rev, err := store.List[vnet.HostInfo](ctx, m.Store, store.Hosts)
	for _, h := range hosts {
		if h.Value.Address == pa.Addr || h.Value.PAPrefix.Contains(pa.Addr) {
			return 0, fmt.Errorf("%w underlay address %s: it is host %s's; a VM there is attached as a port instead", ErrInvalid, pa, h.Value.Name)
		}
		if h.Value.Address.Is4() != pa.Is4() {
			return 0, fmt.Errorf("%w underlay address %s: the underlay is %s (host %s has %s), and no frame would get there; give the VTEP an %s address",
				ErrInvalid, pa, vnet.Underlay(h.Value.Address), h.Value.Name, h.Value.Address, vnet.Underlay(h.Value.Address))
		}
	}
	return rev, err
}

// BesideVTEPs returns an error when a VTEP of any network has an underlay address that
// host h claims or, if the host is fresh in its family, one that it could not send to;
// else the revision of what it has looked at, [store.VTEPs].
func BesideVTEPs(ctx context.Context, s *store.Store, h vnet.HostInfo, fresh bool) (int64, error) {
	all, rev, err := store.List[string](ctx, s, store.VTEPs)
	if err != nil {
		return 0, err
	}
	for _, v := range all {
		pa, _ := store.Split(store.VTEPs, v.Key)
		addr, err := vnet.ParsePA(pa)
		switch {
		case err != nil:
		case addr.Addr == h.Address || h.PAPrefix.Contains(addr.Addr):
			return 0, fmt.Errorf("underlay address %s is that of VTEP %s: remove the VTEP (replug vtep remove), or give the host other addresses", pa, v.Value)
		case fresh && addr.Is4() != h.Address.Is4():
			return 0, fmt.Errorf("its underlay is %s (%s), that of VTEP %s is %s (%s), and no frame would pass between them: remove the VTEP (replug vtep remove), or give the host a --pa-prefix of %s",
				vnet.Underlay(h.Address), h.Address, v.Value, vnet.Underlay(addr.Addr), pa, vnet.Underlay(addr.Addr))
		}
	}
	return rev, nil
}

// VTEPs returns those of a network, in the order of their addresses.
func (m *Manager) VTEPs(ctx context.Context, n *Network) ([]VTEP, error) {
	all, _, err := m.vteps(ctx, n.VNI)
	return all, err
}

func (m *Manager) vteps(ctx context.Context, v vnet.VNI) ([]VTEP, int64, error) {
	rows, rev, err := store.List[vnet.Mapping](ctx, m.Store, store.NetworkMappings(v))
	var all []VTEP
	for _, r := range rows {
		if name, ok := strings.CutPrefix(r.Value.Port, vtepHolder); ok {
			all = append(all, VTEP{Name: name, CA: r.Value.CA, PA: r.Value.PA, MAC: r.Value.MAC})
		}
	}
	return all, rev, err
}

// RemoveVTEP composes that a VTEP is in the network no more. Its address rests.
func (m *Manager) RemoveVTEP(ctx context.Context, n *Network, name string) (*store.Txn, error) {
	all, err := m.VTEPs(ctx, n)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		if v.Name == name {
			key := store.MappingKey(n.VNI, v.CA)
			return (&store.Txn{}).Exists(key).Delete(key).Delete(store.VTEPKey(v.PA, n.VNI, name)).Add(m.Retire(n.VNI, v.CA, vtepHolder+name)), nil
		}
	}
	return nil, fmt.Errorf("VTEP %q of network %q: %w; list the VTEPs there are", name, n.Moniker, ErrNotFound)
}

// TakeVIP composes that no port of network n gets vip, which is a service's: an
// address of a subnet or any other that no peer has. Services may share one.
func (m *Manager) TakeVIP(ctx context.Context, n store.Row[Network], vip vnet.CA, service string) (*store.Txn, error) {
	holder := Holder{Port: serviceHolder + service, State: Used}
	if err := n.Value.checkVIP(vip); err != nil {
		return nil, fmt.Errorf("network %q: %w", n.Value.Moniker, err)
	}
	t := (&store.Txn{}).Unchanged(n.Key, n.Revision)
	key := store.CAKey(n.Value.VNI, vip)
	row, err := store.Get[Holder](ctx, m.Store, key)
	if err == nil && row.Value.State == Used && strings.HasPrefix(row.Value.Port, serviceHolder) {
		return t.Unchanged(key, row.Revision), nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	free, err := m.checkFree(ctx, n.Value.VNI, vip, holder)
	if err != nil {
		return nil, fmt.Errorf("network %q: %w", n.Value.Moniker, err)
	}
	return t.Unchanged(key, free.Revision).Put(key, holder), nil
}

func (n *Network) checkVIP(vip vnet.CA) error {
	if s, ok := n.subnet(vip); ok {
		if why := s.unusable(vip.Addr); why != "" {
			return fmt.Errorf("%w: %s is %s of %s", ErrOutside, vip, why, s.Prefix)
		}
		return nil
	}
	p := netip.PrefixFrom(vip.Addr, vip.BitLen())
	if err := unreserved("service address", p); err != nil {
		return err
	}
	for _, peer := range n.Peers {
		if err := overlap(p, peer.Prefixes, fmt.Sprintf("its peer %q", peer.Moniker)); err != nil {
			return err
		}
	}
	return nil
}

// LeaveVIP composes that a service leaves its address to heir, another one with the
// same address, or that it rests for heir "".
func (m *Manager) LeaveVIP(v vnet.VNI, vip vnet.CA, service, heir string) *store.Txn {
	if heir == "" {
		return m.Retire(v, vip, serviceHolder+service)
	}
	return (&store.Txn{}).Put(store.CAKey(v, vip), Holder{Port: serviceHolder + heir, State: Used})
}
