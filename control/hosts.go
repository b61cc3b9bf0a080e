package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// HostUp takes in that a host has opened its stream: its row says what it is. It
// refuses a host whose physical addresses another host or a VTEP has, one whose underlay
// is of another family than theirs, and one that has changed its own while ports have them.
func (s *Server) HostUp(ctx context.Context, h vnet.HostInfo) error {
	r := s.reign.Load()
	if r == nil {
		return onWire(s.standby())
	}
	if err := r.registerHost(ctx, h); err != nil {
		return onWire(err)
	}
	s.up.set(h.Name, &h)
	r.swaps.OnHost(h.Name, true)
	// That it is connected stands in no row.
	s.feed.touch(store.Hosts + h.Name)
	return nil
}

// HostDown takes in that a host's stream has ended.
func (s *Server) HostDown(name string) {
	s.up.set(name, nil)
	if r := s.reign.Load(); r != nil {
		r.swaps.OnHost(name, false)
		s.feed.touch(store.Hosts + name)
	}
}

// Status takes in what a host says of a port. The swap that runs on the port has
// the first word; the rest is left to a loop.
func (s *Server) Status(st vnet.Status) {
	r := s.reign.Load()
	if r == nil {
		return
	}
	taken := r.swaps.OnStatus(st)
	// That a port is gone ends more than its swap.
	r.board.put(st, !taken || st.Phase == vnet.StatusGone)
	s.feed.touch(statusPrefix+st.Port, network.PortKey(st.Port))
}

// A presence knows which hosts are there. The directory knows it too, but only a
// moment after [Server.HostUp] has returned.
type presence struct {
	mu    sync.Mutex
	hosts map[string]present
}

type present struct {
	host  *vnet.HostInfo // nil: it has left
	since time.Time
}

func (p *presence) set(name string, h *vnet.HostInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hosts == nil {
		p.hosts = make(map[string]present)
	}
	p.hosts[name] = present{h, time.Now()}
}

// get returns whether a host is there, and since when it is, or is not. The time
// is zero for a host that was not seen since this server started.
func (p *presence) get(name string) (bool, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[name]
	return h.host != nil, h.since
}

// all returns the hosts that are there, by name.
func (p *presence) all() []vnet.HostInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	var hosts []vnet.HostInfo
	for _, h := range p.hosts {
		if h.host != nil {
			hosts = append(hosts, *h.host)
		}
	}
	slices.SortFunc(hosts, func(a, b vnet.HostInfo) int { return strings.Compare(a.Name, b.Name) })
	return hosts
}

func (r *reign) registerHost(ctx context.Context, h vnet.HostInfo) error {
	return r.alone(ctx, func() error {
		return r.retried(ctx, func() (*store.Txn, error) {
			rows, rev, err := store.List[vnet.HostInfo](ctx, r.store, store.Hosts)
			if err != nil {
				return nil, err
			}
			var old store.Row[vnet.HostInfo]
			if i := slices.IndexFunc(rows, func(o store.Row[vnet.HostInfo]) bool { return o.Value.Name == h.Name }); i >= 0 {
				old = rows[i]
			}
			fresh := old.Value.Name == "" || old.Value.Address.Is4() != h.Address.Is4()
			if err := r.amongHosts(rows, h, fresh); err != nil {
				return nil, err
			}
			if reflect.DeepEqual(old.Value, h) {
				return nil, nil
			}
			if err := r.sameAddresses(ctx, old.Value, h); err != nil {
				return nil, err
			}
			vteps, err := network.BesideVTEPs(ctx, r.store, h, fresh)
			if err != nil {
				return nil, fmt.Errorf("host %q: %w: %w", h.Name, ErrNotSo, err)
			}
			return (&store.Txn{}).UnchangedUnder(store.Hosts, rev).UnchangedUnder(store.VTEPs, vteps).Put(store.Hosts+h.Name, h), nil
		})
	})
}

// amongHosts returns an error when a host can't be one of those there are. One that is
// not fresh in its family was let in by an older server, and stays: its VMs have each other.
func (r *reign) amongHosts(rows []store.Row[vnet.HostInfo], h vnet.HostInfo, fresh bool) error {
	for _, o := range rows {
		if o.Value.Name == h.Name {
			continue
		}
		if err := apart(o.Value, h); err != nil {
			return err
		}
		err := oneUnderlay(o.Value, h)
		if err != nil && fresh {
			return err
		}
		if err != nil {
			r.log.Warn("the store has what is refused now", "what", err)
		}
	}
	return nil
}

// oneUnderlay returns an error when two hosts can't send to one another.
func oneUnderlay(a, b vnet.HostInfo) error {
	ours, theirs := vnet.Underlay(b.Address), vnet.Underlay(a.Address)
	if ours == theirs {
		return nil
	}
	return fmt.Errorf("host %q: %w: its underlay is %s (%s), that of host %q is %s (%s), and no frame would pass between them; give it a --pa-prefix of %s, or, "+
		"to change the family of all, delete the hosts of the other one first", b.Name, ErrNotSo, ours, b.Address, a.Name, theirs, a.Address, theirs)
}

// apart returns an error when two hosts claim the same physical address.
func apart(a, b vnet.HostInfo) error {
	switch {
	case a.Address == b.Address:
		return fmt.Errorf("host %q: %w: host %q has the underlay address %s; give each host its own", b.Name, ErrNotSo, a.Name, a.Address)
	case a.PAPrefix.Overlaps(b.PAPrefix):
		return fmt.Errorf("host %q: %w: its PA prefix %s overlaps %s of host %q; route a prefix of its own to each host",
			b.Name, ErrNotSo, b.PAPrefix, a.PAPrefix, a.Name)
	}
	return nil
}

// sameAddresses returns an error when ports of a host would lose their addresses:
// a port keeps its PA for life.
func (r *reign) sameAddresses(ctx context.Context, old, h vnet.HostInfo) error {
	if !h.PAPrefix.IsValid() || !h.Address.IsValid() {
		return fmt.Errorf("host %q: %w: it gives no underlay address or no PA prefix", h.Name, ErrInvalid)
	}
	if h.Address.Is4() != h.PAPrefix.Addr().Is4() {
		return fmt.Errorf("host %q: %w: its underlay address %s and its PA prefix %s are of two families", h.Name, ErrInvalid, h.Address, h.PAPrefix)
	}
	if old.Name == "" || old.PAPrefix == h.PAPrefix && (old.Address == h.Address || !h.PAPrefix.IsSingleIP()) {
		return nil
	}
	ports, _, err := store.List[string](ctx, r.store, store.PortIDs+h.Name+"/")
	if err != nil || len(ports) == 0 {
		return err
	}
	return fmt.Errorf("host %q: %w: it has %d ports with addresses of %s; give it that PA prefix again, or delete its ports first",
		h.Name, ErrNotSo, len(ports), old.PAPrefix)
}

// deleteHost composes that a host is no more. What it had is gone with it: it must
// be disconnected, and nobody may want its ports any more.
func (r *reign) deleteHost(ctx context.Context, name string, txn *store.Txn) error {
	row, err := store.Get[vnet.HostInfo](ctx, r.store, store.Hosts+name)
	if errors.Is(err, store.ErrNotFound) || strings.Contains(name, "/") {
		return fmt.Errorf("host %q: %w", name, ErrMissing)
	}
	if err != nil {
		return err
	}
	if r.connected(name) {
		return fmt.Errorf("host %q: %w: it is connected; stop its agent first", name, ErrNotSo)
	}
	ports, rev, err := store.List[string](ctx, r.store, store.PortIDs+name+"/")
	if err != nil {
		return err
	}
	if len(ports) > maxHostPorts {
		return fmt.Errorf("host %q: %w: it has %d ports; delete its VMs first", name, ErrNotSo, len(ports))
	}
	txn.Unchanged(row.Key, row.Revision).UnchangedUnder(store.PortIDs+name+"/", rev).Delete(row.Key)
	for _, p := range ports {
		if err := r.forgetPort(ctx, p.Value, txn); err != nil {
			return err
		}
	}
	return nil
}

// maxHostPorts bounds the size of the transaction that deletes a host.
const maxHostPorts = 10

// forgetPort composes the end of a port whose host will never say that it is gone.
func (r *reign) forgetPort(ctx context.Context, port string, txn *store.Txn) error {
	in, err := r.networks.GetIntent(ctx, port)
	if err != nil {
		return err
	}
	if !in.Value.Gone {
		return fmt.Errorf("host %q: %w: port %s is on it; delete VM or port first", in.Value.Host, ErrNotSo, port)
	}
	return r.composeGone(ctx, in, txn)
}
