package dataplane

import (
	"errors"
	"net/netip"

	"replug/bpf"
	"replug/directory/vnet"
)

func (m *maps) SetMappings(rows []MappingRow) error {
	out := make([]bpf.Mapping, len(rows))
	for i, r := range rows {
		out[i] = bpf.Mapping{
			MappingKey: bpf.MappingKey{VNI: uint32(r.VNI), CA: r.CA.Addr},
			PA:         r.PA.Addr, MAC: r.MAC, NextHop: r.NextHop,
		}
	}
	return m.bpf.PutMappings(out...)
}

func (m *maps) DeleteMappings(keys []MappingKey) error {
	out := make([]bpf.MappingKey, len(keys))
	for i, k := range keys {
		out[i] = bpf.MappingKey{VNI: uint32(k.VNI), CA: k.CA.Addr}
	}
	return m.bpf.DeleteMappings(out...)
}

func (m *maps) EachMapping(f func(MappingRow)) error {
	return m.bpf.EachMapping(func(b bpf.Mapping) {
		f(MappingRow{NextHop: b.NextHop, Mapping: vnet.Mapping{
			VNI: vnet.VNI(b.VNI), CA: vnet.CA{Addr: b.CA}, PA: vnet.PA{Addr: b.PA}, MAC: b.MAC,
		}})
	})
}

func (m *maps) PutHost(p netip.Prefix) error    { return m.bpf.PutHost(p) }
func (m *maps) DeleteHost(p netip.Prefix) error { return m.bpf.DeleteHost(p) }
func (m *maps) Hosts() ([]netip.Prefix, error)  { return m.bpf.Hosts() }

func (m *maps) SetNextHop(index uint32, n NextHop) error {
	if n == (NextHop{}) {
		return m.bpf.ClearNextHop(index)
	}
	return m.bpf.SetNextHop(index, bpf.NextHop{Ifindex: n.Ifindex, Src: n.Src, Dst: n.Dst})
}

// SetRoutes puts before it deletes, so that no route is missing in between.
func (m *maps) SetRoutes(vni vnet.VNI, routes []vnet.Route) error {
	keep := map[netip.Prefix]bool{}
	for _, r := range routes {
		keep[r.Prefix.Masked()] = true
		if err := m.bpf.PutRoute(bpf.Route{VNI: uint32(vni), Prefix: r.Prefix, NextHop: r.NextHop, Peer: uint32(r.Peer)}); err != nil {
			return err
		}
	}
	all, err := m.bpf.Routes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all {
		if r.VNI == uint32(vni) && !keep[r.Prefix] {
			errs = append(errs, m.bpf.DeleteRoute(r.VNI, r.Prefix))
		}
	}
	return errors.Join(errs...)
}

func (m *maps) RouteNetworks() ([]vnet.VNI, error) {
	all, err := m.bpf.Routes()
	seen := map[vnet.VNI]bool{}
	var vnis []vnet.VNI
	for _, r := range all {
		if v := vnet.VNI(r.VNI); !seen[v] {
			seen[v] = true
			vnis = append(vnis, v)
		}
	}
	return vnis, err
}

// What this datapath can't carry is refused, so that nobody relies on it.

func (m *maps) SetMembers(list []Member) error {
	if len(list) > 0 {
		return errNotYet
	}
	return nil
}

func (m *maps) EachMember(func(Member)) error   { return nil }
func (m *maps) SetService(vnet.Service) error   { return errNotYet }
func (m *maps) DeleteService(ServiceKey) error  { return nil }
func (m *maps) Services() ([]ServiceKey, error) { return nil, nil }
