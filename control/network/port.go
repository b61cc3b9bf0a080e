package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A Port is the index row of a port: where to find its intent and whose it is.
// All that a host needs is in the intent.
type Port struct {
	Name     string `json:"name"` // unique in the cluster
	Tenant   string `json:"tenant"`
	Host     string `json:"host"`
	VM       string `json:"vm,omitempty"`
	Attached bool   `json:"attached,omitempty"` // somebody else's VM, by tap
	MTU      uint16 `json:"mtu,omitempty"`      // bytes of its IP packets; 0: its network's
	Router   bool   `json:"router,omitempty"`   // asked for: a port that a route leads to is one anyway
}

// PortKey is where a port's index row is.
func PortKey(name string) string { return store.Ports + name }

// GetPort reads the index row of a port; it returns [ErrNotFound].
func (m *Manager) GetPort(ctx context.Context, name string) (store.Row[Port], error) {
	row, err := store.Get[Port](ctx, m.Store, PortKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return row, fmt.Errorf("port %q: %w", name, ErrNotFound)
	}
	return row, err
}

// GetIntent reads the intent of a port; it returns [ErrNotFound].
func (m *Manager) GetIntent(ctx context.Context, port string) (store.Row[vnet.Intent], error) {
	row, err := m.GetPort(ctx, port)
	if err != nil {
		return store.Row[vnet.Intent]{}, err
	}
	intent, err := store.Get[vnet.Intent](ctx, m.Store, store.IntentKey(row.Value.Host, port))
	if errors.Is(err, store.ErrNotFound) {
		return intent, fmt.Errorf("intent of port %q: %w", port, ErrNotFound)
	}
	return intent, err
}

// A PortRequest is what a new port is to be.
type PortRequest struct {
	Port
	Network  store.Row[Network]
	Families Families  // it has one address of each
	CAs      []vnet.CA // asked for; the next free ones of the other families
	Groups   []string  // security groups of the network, which the caller has checked
	Slots    vnet.Groups
	MAC      vnet.MAC // of an attached port; zero: a new one
	Tap      string   // of an attached port; "": its host makes it one
	Host     vnet.HostInfo
	Claim    string // that it is for, or ""
}

// NewPort composes a port: its index, its number and devices on the host, its
// address, its mapping. The intent it returns is not yet in the transaction: the caller
// completes it (machine, document) and puts it with [PutIntent].
func (m *Manager) NewPort(ctx context.Context, r PortRequest) (vnet.Intent, *store.Txn, error) {
	port := r.Port
	port.Host = r.Host.Name
	mac, err := m.mac(ctx, r.MAC)
	if err != nil {
		return vnet.Intent{}, nil, err
	}
	cas, t, err := m.Take(ctx, r.Network, r.CAs, r.Families, mac, Holder{Port: port.Name, Claim: r.Claim, State: Used})
	if err != nil {
		return vnet.Intent{}, nil, err
	}
	id, rev, err := m.freePortID(ctx, r.Host)
	if err != nil {
		return vnet.Intent{}, nil, err
	}
	// A row of this host's dataplane may have held an older port under the same id.
	// The store's revision is higher than every epoch given before, since each
	// epoch takes at least one revision.
	epoch := vnet.NewEpoch(m.Era, uint64(rev))
	in := vnet.Intent{
		Port: port.Name, ID: id, Host: port.Host, MAC: mac, VM: port.VM,
		PA: paOf(r.Host, id), Tap: r.Tap, Current: r.Network.Value.Place(port, cas, epoch),
	}
	in.Current.Groups, in.Current.Slots = r.Groups, r.Slots
	device, err := m.takeDevice(ctx, &in)
	if err != nil {
		return vnet.Intent{}, nil, err
	}
	idKey := portIDKey(port.Host, id)
	t.Absent(PortKey(port.Name)).Put(PortKey(port.Name), port).Absent(idKey).Put(idKey, port.Name)
	return in, t.Add(device, m.Map(&in)).Absent(store.IntentKey(port.Host, port.Name)), nil
}

// PutIntent composes the writing of an intent.
func PutIntent(in *vnet.Intent) *store.Txn {
	return (&store.Txn{}).Put(store.IntentKey(in.Host, in.Port), in)
}

// Mappings returns the directory entries of a port in a place.
func Mappings(in *vnet.Intent, p *vnet.Place) []vnet.Mapping {
	all := make([]vnet.Mapping, 0, len(p.Addrs))
	for _, a := range p.Addrs {
		all = append(all, vnet.Mapping{VNI: p.VNI, CA: a.CA, PA: in.PA, MAC: in.MAC, Epoch: p.Epoch, Port: in.Port, Host: in.Host, Groups: p.Slots})
	}
	return all
}

// Map composes the directory entries of a port's current place.
func (m *Manager) Map(in *vnet.Intent) *store.Txn {
	t := &store.Txn{}
	for _, e := range Mappings(in, &in.Current) {
		t.Put(store.MappingKey(e.VNI, e.CA), e)
	}
	return t
}

// Unmap composes that the CAs of a port's place lead nowhere, unless they lead to
// another port by now.
func (m *Manager) Unmap(ctx context.Context, port string, p *vnet.Place) (*store.Txn, error) {
	t := &store.Txn{}
	for _, a := range p.Addrs {
		row, err := store.Get[vnet.Mapping](ctx, m.Store, store.MappingKey(p.VNI, a.CA))
		if errors.Is(err, store.ErrNotFound) || err == nil && row.Value.Port != port {
			continue
		}
		if err != nil {
			return nil, err
		}
		t.Unchanged(row.Key, row.Revision).Delete(row.Key)
	}
	return t, nil
}

// RemovePort composes the end of a port that its host has taken down: index,
// number and intent go, the address rests if the port still has it.
func (m *Manager) RemovePort(ctx context.Context, in *vnet.Intent) (*store.Txn, error) {
	t, err := m.Unmap(ctx, in.Port, &in.Current)
	if err != nil {
		return nil, err
	}
	t.Delete(PortKey(in.Port)).Delete(portIDKey(in.Host, in.ID)).
		Delete(store.IntentKey(in.Host, in.Port)).Delete(store.StatusKey(in.Host, in.Port))
	for key := range deviceKeys(in) {
		t.Delete(key)
	}
	for _, a := range in.Current.Addrs {
		key := store.CAKey(in.Current.VNI, a.CA)
		row, err := store.Get[Holder](ctx, m.Store, key)
		if errors.Is(err, store.ErrNotFound) || err == nil && (row.Value.Port != in.Port || row.Value.State == Resting) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t.Unchanged(key, row.Revision).Add(m.Retire(in.Current.VNI, a.CA, in.Port))
	}
	return t, nil
}

func portIDKey(host string, id vnet.PortID) string {
	return fmt.Sprintf("%s%s/%04d", store.PortIDs, host, id)
}

// Capacity is how many ports a host can have: what it says, what its PA prefix has
// addresses for, and what the dataplane can number.
func Capacity(h vnet.HostInfo) int {
	n := int(vnet.MaxPortID)
	if h.Ports > 0 {
		n = min(n, h.Ports)
	}
	if host := h.PAPrefix.Addr().BitLen() - h.PAPrefix.Bits(); !shared(h) && host < 16 {
		n = min(n, 1<<host-2)
	}
	return n
}

// shared reports whether all ports of a host have its own address as PA.
func shared(h vnet.HostInfo) bool { return h.PAPrefix.IsSingleIP() }

// paOf returns the PA of a host's port: the id-th address of the host's prefix, so
// that two ports share one only if all do.
func paOf(h vnet.HostInfo, id vnet.PortID) vnet.PA {
	if shared(h) {
		return vnet.PA{Addr: h.Address}
	}
	b := h.PAPrefix.Masked().Addr().AsSlice()
	for i, carry := len(b)-1, uint32(id); i >= 0 && carry > 0; i-- {
		carry += uint32(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return vnet.PA{Addr: a}
}

// rotation remembers the port id each host got last: a number is used again as
// late as possible.
type rotation struct {
	mu   sync.Mutex
	last map[string]int
}

// freePortID returns a number that no port of the host has, and a revision at which
// that was so. As a rule the one after the last is free; else all are looked at.
func (m *Manager) freePortID(ctx context.Context, h vnet.HostInfo) (vnet.PortID, int64, error) {
	m.ids.mu.Lock()
	defer m.ids.mu.Unlock()
	if m.ids.last == nil {
		m.ids.last = make(map[string]int)
	}
	room := Capacity(h)
	if room <= 0 {
		return 0, 0, fmt.Errorf("host %q: port: %w: it has room for no port", h.Name, ErrExhausted)
	}
	nth := func(i int) vnet.PortID { return vnet.PortID((m.ids.last[h.Name]+i)%room + 1) }
	first := nth(0)
	_, err := store.Get[string](ctx, m.Store, portIDKey(h.Name, first))
	if errors.Is(err, store.ErrNotFound) {
		rev, err := m.Store.Revision(ctx)
		m.ids.last[h.Name] = int(first)
		return first, rev, err
	}
	rows, rev, err := store.List[string](ctx, m.Store, store.PortIDs+h.Name+"/")
	if err != nil {
		return 0, 0, err
	}
	used := make(map[string]bool, len(rows))
	for _, r := range rows {
		used[r.Key] = true
	}
	for i := range room {
		if id := nth(i); !used[portIDKey(h.Name, id)] {
			m.ids.last[h.Name] = int(id)
			return id, rev, nil
		}
	}
	return 0, 0, fmt.Errorf("host %q: port: %w of %d: choose another host or delete ports", h.Name, ErrExhausted, room)
}
