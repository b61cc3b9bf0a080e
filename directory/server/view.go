package server

import (
	"sort"

	"replug/directory/vnet"
)

// A view is what hosts may see of the store at one revision, and the changes
// that led there. The server's lock protects it; what it points to is never
// changed.
type view struct {
	revision int64
	hosts    map[string]*vnet.HostInfo
	intents  map[string]map[string]*vnet.Intent // by host, port
	mappings map[vnet.VNI]map[vnet.CA]*vnet.Mapping
	groups   map[vnet.VNI]map[string]*vnet.Group
	services map[vnet.VNI]map[string]*vnet.Service

	ring  []change // by revision, the oldest first
	floor int64    // the ring holds every change after it
	keep  int
	fresh int // changes since the quiet hosts were last moved on
}

func newView(keep int) *view {
	if keep == 0 {
		keep = 16384
	}
	return &view{
		hosts: map[string]*vnet.HostInfo{}, intents: map[string]map[string]*vnet.Intent{},
		mappings: map[vnet.VNI]map[vnet.CA]*vnet.Mapping{}, groups: map[vnet.VNI]map[string]*vnet.Group{},
		services: map[vnet.VNI]map[string]*vnet.Service{}, keep: keep,
	}
}

// A key names a row of the view; one of its kinds has its fields set. A row of a
// network has its VNI.
type key struct {
	host    string // of a host's row, or an intent's
	port    string
	vni     vnet.VNI
	ca      vnet.CA
	group   string
	service string
}

// A change is one row put (one pointer is set) or gone (none is).
type change struct {
	key
	revision int64
	host     *vnet.HostInfo
	intent   *vnet.Intent
	mapping  *vnet.Mapping
	group    *vnet.Group
	service  *vnet.Service
	was      *vnet.Intent   // the intent before
	between  []*vnet.Intent // in a summary of several changes: those that it skips
}

func (c *change) ofNetwork() bool { return c.vni != 0 }
func (c *change) isMapping() bool { return c.ca.IsValid() }
func (c *change) isGroup() bool   { return c.key.group != "" }
func (c *change) isIntent() bool  { return c.port != "" }
func (c *change) isHost() bool    { return c.vni == 0 && c.port == "" }
func (c *change) gone() bool {
	return c.host == nil && c.intent == nil && c.mapping == nil && c.group == nil && c.service == nil
}

// apply makes the changes of one revision true and keeps them in the ring.
func (v *view) apply(revision int64, cs []change) {
	for i := range cs {
		v.set(&cs[i])
	}
	v.revision = revision
	v.ring = append(v.ring, cs...)
	v.fresh += len(cs)
	if extra := len(v.ring) - v.keep; extra > 0 {
		v.floor = v.ring[extra-1].revision
		v.ring = v.ring[extra:] // append moves the rest to a fresh array now and then
	}
}

func (v *view) set(c *change) {
	switch {
	case c.isMapping():
		put(v.mappings, c.vni, c.ca, c.mapping)
	case c.isGroup():
		put(v.groups, c.vni, c.key.group, c.group)
	case c.ofNetwork():
		put(v.services, c.vni, c.key.service, c.service)
	case c.isIntent():
		c.was = v.intents[c.key.host][c.port]
		put(v.intents, c.key.host, c.port, c.intent)
	case c.host != nil:
		v.hosts[c.key.host] = c.host
	default:
		delete(v.hosts, c.key.host)
	}
}

// put sets or, with nil, removes m[a][b], and leaves no empty map behind.
func put[A, B comparable, T any](m map[A]map[B]*T, a A, b B, value *T) {
	if value == nil {
		delete(m[a], b)
		if len(m[a]) == 0 {
			delete(m, a)
		}
		return
	}
	if m[a] == nil {
		m[a] = map[B]*T{}
	}
	m[a][b] = value
}

// since sums up the changes of each row after a revision, and returns false when
// the ring does not reach back to it.
func (v *view) since(revision int64) ([]change, bool) {
	if revision < v.floor || revision > v.revision {
		return nil, false
	}
	from := sort.Search(len(v.ring), func(i int) bool { return v.ring[i].revision > revision })
	at := map[key]int{}
	var out []change
	for _, c := range v.ring[from:] {
		i, seen := at[c.key]
		if !seen {
			at[c.key] = len(out)
			out = append(out, c)
			continue
		}
		c.was = out[i].was // as it was at revision
		c.between = append(out[i].between, out[i].intent)
		out[i] = c
	}
	return out, true
}

// needs returns the networks a host's ports are in, or shall be, and their peers.
func (v *view) needs(host string) map[vnet.VNI]bool {
	all := map[vnet.VNI]bool{}
	for _, i := range v.intents[host] {
		networks(all, i)
	}
	return all
}

func networks(into map[vnet.VNI]bool, i *vnet.Intent) {
	if i == nil {
		return
	}
	for _, p := range []*vnet.Place{&i.Current, i.Next} {
		if p == nil {
			continue
		}
		for _, vni := range p.VNIs() {
			into[vni] = true
		}
	}
}
