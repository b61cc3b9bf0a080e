package dataplane

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"replug/directory/vnet"
)

// routes are those of the places that ports are in or are about to be in. Where
// places of a network disagree, the newest wins.
type routes struct {
	datapath Directory

	mu     sync.Mutex
	places map[vnet.PortID][]routed
	at     map[routeKey]*routeAt
}

type routeKey struct {
	vni    vnet.VNI
	prefix netip.Prefix
}

// routed is what a place says, as it was when its port said so.
type routed struct {
	vni    vnet.VNI
	epoch  vnet.Epoch
	routes []vnet.Route
}

// routeAt is what places say of one prefix of a network.
type routeAt struct {
	said    map[vnet.Route]*sayers
	written *vnet.Route // nil: nothing
	before  bool        // an earlier session wrote it
}

type sayers struct {
	places int
	newest vnet.Epoch
}

// staleRoutes is how long a route of an earlier session may wait for a port that
// still has it, after a server has spoken.
const staleRoutes = 30 * time.Second

func newRoutes(d Directory) (*routes, error) {
	rs := &routes{datapath: d, places: map[vnet.PortID][]routed{}, at: map[routeKey]*routeAt{}}
	return rs, d.EachRoute(func(vni vnet.VNI, r vnet.Route) {
		rs.at[routeKey{vni, r.Prefix}] = &routeAt{said: map[vnet.Route]*sayers{}, written: &r, before: true}
	})
}

// use says in which places a port is or is about to be; nil ones are ignored.
func (rs *routes) use(id vnet.PortID, places []*vnet.Place) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	old := rs.places[id]
	delete(rs.places, id)
	touched := map[routeKey]bool{}
	for _, pl := range places {
		if pl != nil {
			r := routed{pl.VNI, pl.Epoch, pl.Routes}
			rs.places[id] = append(rs.places[id], r)
			rs.say(r, 1, touched)
		}
	}
	for _, pl := range old {
		rs.say(pl, -1, touched)
	}
	var errs []error
	for k := range touched {
		errs = append(errs, rs.write(k))
	}
	return errors.Join(errs...)
}

// say counts a place's routes, or takes them back.
func (rs *routes) say(pl routed, n int, touched map[routeKey]bool) {
	for _, r := range pl.routes {
		r.Prefix = r.Prefix.Masked()
		k := routeKey{pl.vni, r.Prefix}
		if rs.at[k] == nil {
			rs.at[k] = &routeAt{said: map[vnet.Route]*sayers{}}
		}
		s := rs.at[k].said[r]
		if s == nil {
			s = &sayers{}
			rs.at[k].said[r] = s
		}
		s.newest = max(s.newest, pl.epoch)
		if s.places += n; s.places == 0 {
			delete(rs.at[k].said, r)
		}
		touched[k] = true
	}
}

// write makes a prefix lead where its places say.
func (rs *routes) write(k routeKey) error {
	at := rs.at[k]
	var want *vnet.Route
	var newest vnet.Epoch
	for r, s := range at.said {
		if want == nil || s.newest > newest {
			want, newest = &r, s.newest
		}
	}
	switch {
	case want == nil && at.written == nil:
	case want == nil:
		if err := rs.datapath.DeleteRoute(k.vni, k.prefix); err != nil {
			return err
		}
	case at.written == nil || *at.written != *want:
		if err := rs.datapath.SetRoute(k.vni, *want); err != nil {
			return err
		}
	}
	at.written, at.before = want, false
	if want == nil {
		delete(rs.at, k)
	}
	return nil
}

// forget removes what an earlier session wrote and no port has asked for since.
func (rs *routes) forget() error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var errs []error
	for k, at := range rs.at {
		if at.before {
			errs = append(errs, rs.write(k))
		}
	}
	return errors.Join(errs...)
}
