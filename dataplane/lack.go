package dataplane

import (
	"fmt"
	stdmaps "maps"

	"replug/directory/vnet"
)

// A lack is what the datapath hasn't taken of a network, for want of room as a rule.
// Ports don't enter the network until there is none. All of it is tried again when
// something else has gone, at the end of that revision.
type lack struct {
	why      error                      // of one of them
	changes  map[MappingKey]*MappingRow // as in networks
	services map[policyKey]vnet.Service
}

// lacking is what a network lacks, from now on for this reason, too.
func (ns *networks) lacking(vni vnet.VNI, why error) *lack {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	l := ns.lacks[vni]
	if l == nil {
		l = &lack{changes: map[MappingKey]*MappingRow{}, services: map[policyKey]vnet.Service{}}
		ns.lacks[vni] = l
	}
	l.why = fmt.Errorf("network %d: %w", vni, why)
	return l
}

// settle notes which changes aren't in force, and why.
func (ns *networks) settle(changes map[MappingKey]*MappingRow, nots ...NotSet) {
	failed := NotSet{}
	for _, not := range nots {
		stdmaps.Copy(failed, not)
	}
	for k, why := range failed {
		l := ns.lacking(k.VNI, why)
		if len(l.changes) == 0 {
			ns.log.Error("a network isn't whole on this host: the port with this address, and maybe others, can't be reached from here", "err", l.why, "ca", k.CA)
		}
		l.changes[k] = changes[k]
	}
	if len(ns.lacks) == 0 {
		return
	}
	for k := range changes {
		if l := ns.lacks[k.VNI]; l != nil && failed[k] == nil {
			delete(l.changes, k)
			ns.mended(k.VNI)
		}
	}
}

// serve puts a service in force, or notes why it isn't.
func (ns *networks) serve(s vnet.Service) {
	k := policyKey{s.VNI, s.Name}
	if err := ns.services.put(s); err != nil {
		l := ns.lacking(s.VNI, err)
		if _, told := l.services[k]; !told {
			ns.log.Error("service doesn't reach the datapath: it stays as it was", "err", err, "service", s.Name, "vni", s.VNI)
		}
		l.services[k] = s
		return
	}
	ns.roomier = true // it may have become smaller
	ns.served(k)
}

// served says that nothing is to be done about a service any more.
func (ns *networks) served(k policyKey) {
	if l := ns.lacks[k.vni]; l != nil {
		delete(l.services, k)
		ns.mended(k.vni)
	}
}

// mended lets ports into a network again that lacks nothing any more. What an earlier
// session has put there had to stay as long as it might be a service's without room.
func (ns *networks) mended(vni vnet.VNI) {
	if l := ns.lacks[vni]; len(l.changes)+len(l.services) > 0 {
		return
	}
	ns.mu.Lock()
	delete(ns.lacks, vni)
	ns.mu.Unlock()
	ns.log.Info("a network is whole on this host again: ports can enter it", "vni", vni)
	if ns.seen == nil {
		ns.services.sweep(ns.whole)
	}
	ns.ruled(vni)
}

// whole reports whether the datapath has all that it was told of a network.
func (ns *networks) whole(vni vnet.VNI) bool {
	_, err := ns.Synced(vni)
	return err == nil
}

// retry tries again what isn't in force, if something has gone since.
func (ns *networks) retry() {
	if !ns.roomier {
		return
	}
	ns.roomier = false
	for _, l := range ns.lacks {
		for ns.again(l) {
		}
		for _, s := range l.services {
			ns.serve(s)
		}
	}
}

// again tries a batch of changes, and reports whether there was room for some of them
// and more are left.
func (ns *networks) again(l *lack) bool {
	before := len(l.changes)
	for k, m := range l.changes {
		if m != nil { // since then there may be another way to it
			m.NextHop = ns.wayTo(k, &m.Mapping)
		}
		if ns.changes[k] = m; len(ns.changes) == batch {
			break
		}
	}
	ns.flush()
	return 0 < len(l.changes) && len(l.changes) < before
}
