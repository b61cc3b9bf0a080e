package dataplane

import (
	"errors"
	"fmt"
	"net/netip"

	"replug/bpf"
	"replug/directory/vnet"
)

func (m *maps) SetMappings(rows []MappingRow) NotSet {
	out := make([]bpf.Mapping, len(rows))
	for i, r := range rows {
		out[i] = bpf.Mapping{
			MappingKey: bpf.MappingKey{VNI: uint32(r.VNI), CA: r.CA.Addr},
			PA:         r.PA.Addr, MAC: r.MAC, NextHop: r.NextHop,
		}
	}
	err := m.bpf.PutMappings(out...)
	if err == nil {
		return nil
	}
	not := NotSet{}
	if some := (bpf.NotPut{}); errors.As(err, &some) {
		for k, why := range some {
			not[mappingKey(k)] = roomFor(errMapRoom, why)
		}
		return not
	}
	for _, r := range rows {
		not[MappingKey{r.VNI, r.CA}] = err
	}
	return not
}

// roomFor says which room a full map is.
func roomFor(what, err error) error {
	if errors.Is(err, bpf.ErrFull) {
		return fmt.Errorf("%w (%w)", what, err)
	}
	return err
}

func mappingKey(k bpf.MappingKey) MappingKey {
	return MappingKey{vnet.VNI(k.VNI), vnet.CA{Addr: k.CA}}
}

func (m *maps) DeleteMappings(keys []MappingKey) error {
	out := make([]bpf.MappingKey, len(keys))
	for i, k := range keys {
		out[i] = bpf.MappingKey{VNI: uint32(k.VNI), CA: k.CA.Addr}
	}
	return m.bpf.DeleteMappings(out...)
}

func (m *maps) EachMapping(f func(MappingRow)) error {
	return m.bpf.EachMapping(func(b bpf.Mapping) { f(mappingRow(b)) })
}

func (m *maps) Mapping(k MappingKey) (MappingRow, bool, error) {
	b, ok, err := m.bpf.Mapping(bpf.MappingKey{VNI: uint32(k.VNI), CA: k.CA.Addr})
	return mappingRow(b), ok, err
}

func mappingRow(b bpf.Mapping) MappingRow {
	return MappingRow{NextHop: b.NextHop, Mapping: vnet.Mapping{
		VNI: vnet.VNI(b.VNI), CA: vnet.CA{Addr: b.CA}, PA: vnet.PA{Addr: b.PA}, MAC: b.MAC,
	}}
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

func (m *maps) SetRoute(vni vnet.VNI, r vnet.Route) error {
	return m.bpf.PutRoute(bpf.Route{VNI: uint32(vni), Prefix: r.Prefix, NextHop: r.NextHop, Peer: uint32(r.Peer)})
}

func (m *maps) DeleteRoute(vni vnet.VNI, p netip.Prefix) error {
	return m.bpf.DeleteRoute(uint32(vni), p)
}

func (m *maps) EachRoute(f func(vnet.VNI, vnet.Route)) error {
	all, err := m.bpf.Routes()
	for _, r := range all {
		f(vnet.VNI(r.VNI), vnet.Route{Prefix: r.Prefix, NextHop: r.NextHop, Peer: vnet.VNI(r.Peer)})
	}
	return err
}
