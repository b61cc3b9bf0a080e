package dataplane

import "replug/directory/vnet"

// Ports by what others know them by.

// find returns a port by its name, as it is in force.
func (ps *ports) find(name string) (target, bool) {
	ps.mu.Lock()
	p := ps.byName[name]
	ps.mu.Unlock()
	if p == nil {
		return target{}, false
	}
	place, ifindex, mac, ok := p.inForce()
	return target{p.id, place, ifindex, mac}, ok
}

// networksOf returns where each port is.
func (ps *ports) networksOf() map[vnet.PortID]account {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	all := make(map[vnet.PortID]account, len(ps.byID))
	for id, p := range ps.byID {
		if place, _, _, ok := p.inForce(); ok {
			all[id] = accountOf(place)
		}
	}
	return all
}

// inForce returns the ports that have a place in force.
func (ps *ports) inForce() map[string]vnet.PortID {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	all := make(map[string]vnet.PortID, len(ps.byName))
	for name, p := range ps.byName {
		if _, _, _, ok := p.inForce(); ok {
			all[name] = p.id
		}
	}
	return all
}

// kickIn lets the ports look again that need a network.
func (ps *ports) kickIn(vni vnet.VNI) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for p := range ps.users[vni] {
		p.kick()
	}
}

// index notes which networks a port needs, by its newest intent; nil: none.
func (ps *ports) index(p *port, in *vnet.Intent) {
	for _, vni := range p.needs {
		if delete(ps.users[vni], p); len(ps.users[vni]) == 0 {
			delete(ps.users, vni)
		}
	}
	p.needs = nil
	if in == nil {
		return
	}
	p.needs = in.Current.VNIs()
	if in.Next != nil {
		p.needs = append(p.needs, in.Next.VNIs()...)
	}
	for _, vni := range p.needs {
		if ps.users[vni] == nil {
			ps.users[vni] = map[*port]struct{}{}
		}
		ps.users[vni][p] = struct{}{}
	}
}

// tapOf returns the tap of a port of this host, by its MAC in a network.
func (ps *ports) tapOf(vni vnet.VNI, mac vnet.MAC) (int, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.byID {
		if place, ifindex, m, ok := p.inForce(); ok && place.VNI == vni && m == mac {
			return ifindex, true
		}
	}
	return 0, false
}
