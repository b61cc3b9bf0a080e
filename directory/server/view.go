package server

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"replug/directory/store"
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
		mappings: map[vnet.VNI]map[vnet.CA]*vnet.Mapping{}, keep: keep,
	}
}

// A key names a row of the view; one of its three kinds has its fields set.
type key struct {
	host string // of a host's row, or an intent's
	port string
	vni  vnet.VNI
	ca   vnet.CA
}

// A change is one row put (one pointer is set) or gone (none is).
type change struct {
	key
	revision int64
	host     *vnet.HostInfo
	intent   *vnet.Intent
	mapping  *vnet.Mapping
	was      *vnet.Intent   // the intent before
	between  []*vnet.Intent // in a summary of several changes: those that it skips
}

func (c *change) isMapping() bool { return c.vni != 0 }
func (c *change) isIntent() bool  { return c.port != "" }
func (c *change) isHost() bool    { return c.vni == 0 && c.port == "" }
func (c *change) gone() bool      { return c.host == nil && c.intent == nil && c.mapping == nil }

// prefixes are what the view is made of.
func prefixes() []string { return []string{store.Hosts, store.Intents, store.Mappings} }

// parse reads a row's change; ok is false for a row of no concern.
func parse(e store.Event) (c change, ok bool, err error) {
	c.revision = e.Revision
	switch {
	case strings.HasPrefix(e.Key, store.Hosts):
		c.key.host = strings.TrimPrefix(e.Key, store.Hosts)
		if e.Value != nil {
			c.host = new(vnet.HostInfo)
			err = json.Unmarshal(e.Value, c.host)
		}
	case strings.HasPrefix(e.Key, store.Intents):
		c.key.host, c.port = store.Split(store.Intents, e.Key)
		if e.Value != nil {
			c.intent = new(vnet.Intent)
			err = json.Unmarshal(e.Value, c.intent)
		}
	case strings.HasPrefix(e.Key, store.Mappings):
		err = c.parseMapping(e)
	default:
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("row %s is not readable: %w", e.Key, err)
	}
	return c, true, nil
}

func (c *change) parseMapping(e store.Event) error {
	network, rest := store.Split(store.Mappings, e.Key)
	vni, err := strconv.ParseUint(network, 10, 32)
	if err != nil || !vnet.VNI(vni).Valid() {
		return vnet.ErrVNI
	}
	if c.ca, err = vnet.ParseCA(rest); err != nil {
		return err
	}
	c.vni = vnet.VNI(vni)
	if e.Value == nil {
		return nil
	}
	c.mapping = new(vnet.Mapping)
	if err := json.Unmarshal(e.Value, c.mapping); err != nil {
		return err
	}
	if c.mapping.VNI != c.vni || c.mapping.CA != c.ca {
		return fmt.Errorf("it speaks of %d %s", c.mapping.VNI, c.mapping.CA)
	}
	return nil
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

// needs returns the networks a host's ports are in, or shall be.
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
	into[i.Current.VNI] = true
	if i.Next != nil {
		into[i.Next.VNI] = true
	}
}
