package server

import (
	"maps"
	"slices"

	"replug/directory/directorypb"
	"replug/directory/vnet"
	"replug/directory/wire"
)

// An item is one message to a host. It is made into its wire form only when it
// is sent: a snapshot is many of them.
type item struct {
	host    *vnet.HostInfo
	intent  *vnet.Intent
	mapping *vnet.Mapping
	group   *vnet.Group
	service *vnet.Service
	ready   *directorypb.ToHost
}

func (i *item) message() *directorypb.ToHost {
	switch {
	case i.mapping != nil:
		return &directorypb.ToHost{Message: &directorypb.ToHost_Mapping{Mapping: wire.FromMapping(i.mapping)}}
	case i.group != nil:
		return &directorypb.ToHost{Message: &directorypb.ToHost_Group{Group: wire.FromGroup(i.group)}}
	case i.service != nil:
		return &directorypb.ToHost{Message: &directorypb.ToHost_Service{Service: wire.FromService(i.service)}}
	case i.intent != nil:
		return &directorypb.ToHost{Message: &directorypb.ToHost_Intent{Intent: wire.FromIntent(i.intent)}}
	case i.host != nil:
		return &directorypb.ToHost{Message: &directorypb.ToHost_Host{Host: wire.FromHost(i.host)}}
	default:
		return i.ready
	}
}

// item is the message of a change.
func (c *change) item() item {
	switch {
	case !c.gone():
		return item{host: c.host, intent: c.intent, mapping: c.mapping, group: c.group, service: c.service}
	case c.isMapping():
		return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_MappingGone{
			MappingGone: &directorypb.MappingKey{Vni: uint32(c.vni), Ca: c.ca.String()}}}}
	case c.isGroup():
		return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_GroupGone{
			GroupGone: wire.FromPolicyKey(c.vni, c.key.group)}}}
	case c.ofNetwork():
		return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_ServiceGone{
			ServiceGone: wire.FromPolicyKey(c.vni, c.key.service)}}}
	case c.isIntent():
		return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_IntentGone{IntentGone: c.port}}}
	default:
		return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_HostGone{HostGone: c.key.host}}}
	}
}

func synced(revision int64) item {
	return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_Synced{
		Synced: &directorypb.Synced{Revision: revision}}}}
}

func networkGone(v vnet.VNI) item {
	return item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_NetworkGone{NetworkGone: uint32(v)}}}
}

// network is all of a network's groups, services and mappings, and the word that
// this was all.
func (v *view) network(vni vnet.VNI) []item {
	out := make([]item, 0, len(v.groups[vni])+len(v.services[vni])+len(v.mappings[vni])+1)
	for _, g := range v.groups[vni] {
		out = append(out, item{group: g})
	}
	for _, s := range v.services[vni] {
		out = append(out, item{service: s})
	}
	for _, m := range v.mappings[vni] {
		out = append(out, item{mapping: m})
	}
	return append(out, item{ready: &directorypb.ToHost{Message: &directorypb.ToHost_NetworkSynced{
		NetworkSynced: &directorypb.NetworkSynced{Vni: uint32(vni), Revision: v.revision}}}})
}

// snapshot is everything a host may see.
func (v *view) snapshot(host string) []item {
	var out []item
	for _, name := range slices.Sorted(maps.Keys(v.hosts)) {
		out = append(out, item{host: v.hosts[name]})
	}
	for _, vni := range slices.Sorted(maps.Keys(v.needs(host))) {
		out = append(out, v.network(vni)...)
	}
	for _, port := range slices.Sorted(maps.Keys(v.intents[host])) {
		out = append(out, item{intent: v.intents[host][port]})
	}
	return append(out, synced(v.revision))
}

// batch is what a host has to hear of changes that have been applied, when it
// needed the networks before until then. The order matters: a host accepts
// frames only from hosts it knows, an intent comes when its network is loaded, and
// what is no longer needed goes last. after are the networks it needs now.
func (v *view) batch(host string, before map[vnet.VNI]bool, cs []change) (out []item, after map[vnet.VNI]bool) {
	after = before
	if slices.ContainsFunc(cs, func(c change) bool { return c.isIntent() && c.key.host == host }) {
		after = v.needs(host)
	}
	stale := maps.Clone(before)
	var hosts, puts, gones, intents, intentsGone, hostsGone []item
	for i := range cs {
		c := &cs[i]
		switch {
		case c.ofNetwork() && after[c.vni] && c.gone():
			gones = append(gones, c.item())
		case c.ofNetwork() && after[c.vni] && before[c.vni]:
			puts = append(puts, c.item())
		case c.isIntent() && c.key.host == host:
			// Also of a network that came and went: a host that lost its stream in
			// between may hold a part of it.
			for _, i := range append(c.between, c.was, c.intent) {
				networks(stale, i)
			}
			if c.gone() {
				intentsGone = append(intentsGone, c.item())
			} else {
				intents = append(intents, c.item())
			}
		case c.isHost() && c.gone():
			hostsGone = append(hostsGone, c.item())
		case c.isHost():
			hosts = append(hosts, c.item())
		}
	}
	out = hosts
	for _, vni := range slices.Sorted(maps.Keys(after)) {
		if !before[vni] {
			out = append(out, v.network(vni)...)
		}
		delete(stale, vni)
	}
	out = slices.Concat(out, puts, gones, intents, intentsGone)
	for _, vni := range slices.Sorted(maps.Keys(stale)) {
		out = append(out, networkGone(vni))
	}
	return append(out, hostsGone...), after
}

// resume is what a host lacks that has seen everything up to a revision; false
// when that is not known any more.
func (v *view) resume(host string, revision int64) ([]item, bool) {
	cs, ok := v.since(revision)
	if !ok {
		return nil, false
	}
	items, _ := v.batch(host, v.needsBefore(host, cs), cs)
	return append(items, synced(v.revision)), true
}

// needsBefore returns what a host needed before the changes.
func (v *view) needsBefore(host string, cs []change) map[vnet.VNI]bool {
	changed := map[string]bool{}
	all := map[vnet.VNI]bool{}
	for i := range cs {
		if c := &cs[i]; c.isIntent() && c.key.host == host {
			changed[c.port] = true
			networks(all, c.was)
		}
	}
	for port, i := range v.intents[host] {
		if !changed[port] {
			networks(all, i)
		}
	}
	return all
}
