package dataplane

import (
	"net/netip"

	"replug/directory/vnet"
)

// vteps are the remote VTEPs that mappings lead to. Each has a next hop from its first
// mapping to its last.
type vteps struct {
	of   map[MappingKey]vnet.PA
	uses map[vnet.PA]int
}

// vtepHost is the name under which a VTEP's address is kept among the hosts.
func vtepHost(pa vnet.PA) string { return "vtep " + pa.String() }

// leadVTEP makes a way to a VTEP.
func (ns *networks) leadVTEP(pa vnet.PA) {
	ns.lead(vtepHost(pa), hostRow{prefix: netip.PrefixFrom(pa.Addr, pa.BitLen()), vtep: true})
}

// wayTo returns the next hop to where a mapping leads.
func (ns *networks) wayTo(k MappingKey, m *vnet.Mapping) uint32 {
	old, led := ns.vteps.of[k]
	if led && (m.Host != "" || old != m.PA) {
		ns.leaveVTEP(k)
		led = false
	}
	host := m.Host
	if host == "" {
		host = vtepHost(m.PA)
		if !led {
			ns.vteps.of[k] = m.PA
			ns.vteps.uses[m.PA]++
		}
		if !led && ns.vteps.uses[m.PA] == 1 {
			ns.leadVTEP(m.PA)
		} else if ns.heard != nil {
			ns.heard[host] = true
		}
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.hosts[host].nextHop
}

// leaveVTEP says that a mapping leads to a VTEP no more, if it did.
func (ns *networks) leaveVTEP(k MappingKey) {
	pa, led := ns.vteps.of[k]
	if !led {
		return
	}
	delete(ns.vteps.of, k)
	if ns.vteps.uses[pa]--; ns.vteps.uses[pa] == 0 {
		delete(ns.vteps.uses, pa)
		ns.OnHostGone(vtepHost(pa))
	}
}
