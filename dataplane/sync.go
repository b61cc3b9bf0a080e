package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"replug/directory/vnet"
)

// networks keeps what the datapath knows of other hosts and their ports equal
// to what the directory says. Its On methods are the directory's; they come one
// at a time. While no directory is there, what was known stays.
type networks struct {
	datapath   Directory
	neighbours Neighbours
	self       string     // this host's name
	own        netip.Addr // and its underlay address
	log        *slog.Logger
	metrics    *Metrics
	groups     *groups
	services   *services
	routes     *routes
	kickIn     func(vnet.VNI) // ports that need a network may go on
	tapOf      func(vnet.VNI, vnet.MAC) (int, bool)
	refresh    chan struct{} // of length 1: resolve next hops again
	resynced   chan struct{} // of length 1: a server has said all

	// Of the directory's caller alone.
	changes map[MappingKey]*MappingRow // not written yet; nil: to be deleted
	seen    map[MappingKey]struct{}    // since a resync began; nil: there is none
	heard   map[string]bool            // hosts, likewise
	members map[MappingKey]vnet.Groups // that the datapath has
	vteps   vteps
	roomier bool                     // something has gone since what the networks lack was tried
	judged  map[vnet.VNI]bool        // ports there are to look at their rules
	moved   map[vnet.VNI]vnet.Groups // whose members have changed since they were told of it

	heardGroups, heardServices map[policyKey]bool // since a resync began; nil: there is none

	mu     sync.Mutex
	loaded map[vnet.VNI]bool
	lacks  map[vnet.VNI]*lack // written, and all of it but why read, by the directory's caller alone
	hosts  map[string]hostRow
	hops   map[uint32]NextHop // as last written
	taken  map[uint32]bool    // next hops of hosts
	last   uint32             // that was given out
	kept   map[uint32]vnet.PA // next hops that mappings of an earlier session name
}

// What a network needs and this host hasn't. The text says what to do.
var (
	errMapRoom     = errors.New("no room for its mappings: start this host's agent with a larger --max-mappings, or use another host")
	errMemberRoom  = errors.New("no room for who is in its security groups: start this host's agent with a larger --max-mappings, or use another host")
	errServiceRoom = errors.New("no room for its services: remove services or backends, or use another host")
)

const (
	batch = 256
	// maxNextHops bounds the hosts that have a next hop of their own; the kernel
	// finds the way to the others, a little slower.
	maxNextHops = 4095
	// refreshEvery keeps next hops younger than the minute after which the
	// datapath distrusts them.
	refreshEvery = 20 * time.Second
)

func newNetworks(d Directory, n Neighbours, self string, m *Metrics, log *slog.Logger) (*networks, error) {
	ns := &networks{
		datapath: d, neighbours: n, self: self, log: log, metrics: m, kickIn: func(vnet.VNI) {},
		tapOf:  func(vnet.VNI, vnet.MAC) (int, bool) { return 0, false },
		groups: newGroups(), services: newServices(d, log),
		members: map[MappingKey]vnet.Groups{}, vteps: vteps{map[MappingKey]vnet.PA{}, map[vnet.PA]int{}}, judged: map[vnet.VNI]bool{}, moved: map[vnet.VNI]vnet.Groups{},
		refresh: make(chan struct{}, 1), resynced: make(chan struct{}, 1), changes: map[MappingKey]*MappingRow{},
		loaded: map[vnet.VNI]bool{}, lacks: map[vnet.VNI]*lack{}, hosts: map[string]hostRow{},
		hops: map[uint32]NextHop{}, kept: map[uint32]vnet.PA{}, taken: map[uint32]bool{},
	}
	err := d.EachMapping(func(m MappingRow) {
		if m.NextHop != 0 {
			ns.kept[m.NextHop] = m.PA // all that share it are of one host
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read back the mappings: %w", err)
	}
	if err := d.EachMember(func(m Member) { ns.members[m.MappingKey] = m.Groups }); err != nil {
		return nil, fmt.Errorf("read back who is in which groups: %w", err)
	}
	if ns.routes, err = newRoutes(d); err != nil {
		return nil, fmt.Errorf("read back the routes: %w", err)
	}
	return ns, nil
}

// OnMapping takes a new or changed mapping.
func (ns *networks) OnMapping(m vnet.Mapping) {
	k := MappingKey{m.VNI, m.CA}
	if !ns.sendsTo(m.PA.Addr) {
		if m.Host == "" { // of a host it is told when that comes
			ns.leadVTEP(m.PA)
		}
		ns.OnMappingGone(m.VNI, m.CA)
		return
	}
	if ns.seen != nil {
		ns.seen[k] = struct{}{}
	}
	ns.change(k, &MappingRow{m, ns.wayTo(k, &m)})
}

// OnMappingGone takes the end of a mapping.
func (ns *networks) OnMappingGone(vni vnet.VNI, ca vnet.CA) {
	ns.change(MappingKey{vni, ca}, nil)
	ns.leaveVTEP(MappingKey{vni, ca})
}

func (ns *networks) change(k MappingKey, m *MappingRow) {
	ns.changes[k] = m
	if len(ns.changes) >= batch {
		ns.flush()
	}
}

// flush writes all changes. It comes before whatever may rely on them. Who is in
// which groups is known before there is a way to or from it.
func (ns *networks) flush() {
	if len(ns.changes) == 0 {
		return
	}
	var put []MappingRow
	var gone []MappingKey
	var members, strangers []Member
	for k, m := range ns.changes {
		switch {
		case m == nil:
			gone = append(gone, k)
			strangers = ns.member(strangers, k, 0)
		default:
			put = append(put, *m)
			members = ns.member(members, k, m.Groups)
		}
	}
	ns.roomier = ns.roomier || len(gone) > 0
	if err := ns.datapath.DeleteMappings(gone); err != nil {
		ns.log.Error("mappings that are gone stay in the datapath", "err", err, "mappings", len(gone))
	}
	stay, unknown := ns.setMembers(strangers), ns.setMembers(members)
	put = slices.DeleteFunc(put, func(m MappingRow) bool { return unknown[MappingKey{m.VNI, m.CA}] != nil })
	ns.settle(ns.changes, stay, unknown, ns.datapath.SetMappings(put))
	clear(ns.changes)
	ns.tellMoves()
}

// tellMoves lets the rules that name a group judge again, now that the datapath
// knows who is in it.
func (ns *networks) tellMoves() {
	for vni, in := range ns.moved {
		ns.groups.moved(vni, in)
		ns.ruled(vni)
	}
	clear(ns.moved)
}

// member adds to a list of changes that who has an address is in groups, unless
// the datapath knows.
func (ns *networks) member(list []Member, k MappingKey, in vnet.Groups) []Member {
	if ns.members[k] == in {
		return list
	}
	return append(list, Member{k, in})
}

// setMembers writes a list of changes.
func (ns *networks) setMembers(list []Member) NotSet {
	not := ns.datapath.SetMembers(list)
	for _, m := range list {
		if not[m.MappingKey] != nil {
			continue
		}
		ns.roomier = ns.roomier || m.Groups == 0
		ns.moved[m.VNI] |= ns.members[m.MappingKey] ^ m.Groups
		if ns.members[m.MappingKey] = m.Groups; m.Groups == 0 {
			delete(ns.members, m.MappingKey)
		}
	}
	return not
}

// OnNetworkSynced says that a network is complete.
func (ns *networks) OnNetworkSynced(vni vnet.VNI, _ int64) {
	ns.flush()
	ns.mu.Lock()
	ns.loaded[vni] = true
	ns.mu.Unlock()
	ns.policyLoaded(vni)
	ns.kickIn(vni)
}

// OnNetworkGone says that this host needs a network no more.
func (ns *networks) OnNetworkGone(vni vnet.VNI) {
	ns.flush()
	ns.mu.Lock()
	delete(ns.loaded, vni)
	delete(ns.lacks, vni)
	ns.mu.Unlock()
	ns.sweep(func(k MappingKey) bool { return k.VNI == vni })
	ns.policyGone(vni)
}

// OnResync says that everything follows: what isn't repeated until OnSynced is gone.
func (ns *networks) OnResync() {
	ns.flush()
	ns.seen, ns.heard = map[MappingKey]struct{}{}, map[string]bool{}
	ns.heardGroups, ns.heardServices = map[policyKey]bool{}, map[policyKey]bool{}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	clear(ns.loaded)
	clear(ns.lacks)
}

// OnSynced ends a revision, or a resync.
func (ns *networks) OnSynced(int64) {
	ns.flush()
	if ns.seen != nil {
		ns.endResync()
	}
	ns.retry()
	ns.judge()
}

// endResync takes out of force what hasn't been repeated.
func (ns *networks) endResync() {
	seen := ns.seen
	ns.sweep(func(k MappingKey) bool { _, ok := seen[k]; return !ok })
	ns.forgetHosts()
	ns.policyResynced()
	ns.seen, ns.heard = nil, nil
	signal(ns.resynced)
}

// sweep deletes the mappings that old says, and all that is known of who has them.
func (ns *networks) sweep(old func(MappingKey) bool) {
	var gone []MappingKey
	err := ns.datapath.EachMapping(func(m MappingRow) {
		if k := (MappingKey{m.VNI, m.CA}); old(k) {
			gone = append(gone, k)
		}
	})
	err = errors.Join(err, ns.datapath.DeleteMappings(gone))
	var strangers []Member
	changes := map[MappingKey]*MappingRow{}
	for k := range ns.members {
		if old(k) {
			strangers, changes[k] = ns.member(strangers, k, 0), nil
		}
	}
	for k := range ns.vteps.of {
		if old(k) {
			ns.leaveVTEP(k)
		}
	}
	if err != nil {
		ns.log.Error("old mappings stay in the datapath", "err", err)
	}
	ns.settle(changes, ns.setMembers(strangers))
	ns.roomier = true
	ns.tellMoves()
}

// Synced reports whether a network is loaded whole.
func (ns *networks) Synced(vni vnet.VNI) (bool, error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if l := ns.lacks[vni]; l != nil {
		return ns.loaded[vni], l.why
	}
	return ns.loaded[vni], nil
}

// Use says where a port is or is about to be, for the routes of its networks.
func (ns *networks) Use(id vnet.PortID, places ...*vnet.Place) error {
	return ns.routes.use(id, places)
}

// run keeps next hops fresh, and routes free of what nobody has asked for, until
// ctx is done.
func (ns *networks) run(ctx context.Context) {
	t := time.NewTicker(refreshEvery)
	defer t.Stop()
	var stale <-chan time.Time
	for {
		ns.resolve(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-ns.refresh:
		case <-ns.resynced:
			stale = time.After(staleRoutes)
		case <-stale:
			ns.warn("old routes stay in the datapath", ns.routes.forget(), "")
		}
	}
}
