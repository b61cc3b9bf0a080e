package dataplane

import "replug/directory/vnet"

// What the directory says of groups and services. Groups take effect when ports
// ask for their rules; services at once.

// OnGroup takes a new or changed group.
func (ns *networks) OnGroup(g vnet.Group) {
	if ns.heardGroups != nil {
		ns.heardGroups[policyKey{g.VNI, g.Name}] = true
	}
	ns.groups.put(g)
	ns.ruled(g.VNI)
}

// OnGroupGone takes the end of a group.
func (ns *networks) OnGroupGone(vni vnet.VNI, name string) {
	ns.groups.gone(vni, name)
	ns.ruled(vni)
}

// ruled notes that the rules of a network's ports may have changed; they look
// when all of the revision is there.
func (ns *networks) ruled(vni vnet.VNI) { ns.judged[vni] = true }

// judge lets the ports look whose rules may have changed.
func (ns *networks) judge() {
	for vni := range ns.judged {
		ns.kickIn(vni)
	}
	clear(ns.judged)
}

// OnService takes a new or changed service. The mappings of its backends are
// there before it sends anything to them.
func (ns *networks) OnService(s vnet.Service) {
	if ns.heardServices != nil {
		ns.heardServices[policyKey{s.VNI, s.Name}] = true
	}
	ns.flush()
	ns.serve(s)
}

// OnServiceGone takes the end of a service.
func (ns *networks) OnServiceGone(vni vnet.VNI, name string) {
	ns.services.gone(vni, name)
	ns.roomier = true
	ns.served(policyKey{vni, name})
}

// policyLoaded says that all groups and services of a network have been heard.
func (ns *networks) policyLoaded(vni vnet.VNI) {
	groups, services := ns.heardGroups, ns.heardServices
	ns.groups.loaded(vni, func(name string) bool { return groups == nil || groups[policyKey{vni, name}] })
	if services != nil {
		ns.services.drop(func(k policyKey) bool { return k.vni != vni || services[k] })
	}
	ns.ruled(vni)
	ns.judge()
}

// policyGone says that a network is needed no more.
func (ns *networks) policyGone(vni vnet.VNI) {
	ns.groups.drop(func(v vnet.VNI) bool { return v != vni })
	ns.services.drop(func(k policyKey) bool { return k.vni != vni })
}

// policyResynced ends a resync: networks that were not in it are gone.
func (ns *networks) policyResynced() {
	loaded := func(v vnet.VNI) bool { ok, _ := ns.Synced(v); return ok }
	ns.groups.drop(loaded)
	ns.services.drop(func(k policyKey) bool { return loaded(k.vni) })
	ns.services.sweep(ns.whole)
	ns.heardGroups, ns.heardServices = nil, nil
}

// Rules returns what a place's flows are judged by, see [groups.rules].
func (ns *networks) Rules(place *vnet.Place) (*Ruleset, error) { return ns.groups.rules(place) }
