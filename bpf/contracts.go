package bpf

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// changes are what each contract did to rows, by the name of the map. Maps that
// are named here count as changed even if their types are the same.
var changes = map[datapathLimits]map[string]change{
	2: {
		"ports":     {fix: portOf2},
		"hosts":     {write: hostsOf2},
		"mappings":  {write: mappingsOf2},
		"flows":     {forget: "they kept merged frames in order, which the pause of a switch does as well; nobody had rules"},
		"buckets":   {forget: "every bucket begins full, and a port has more of them"},
		"shortcuts": {forget: "they only save a look-up, and are laid out for more ports"},
	},
	3: {
		"flows": {write: flowsOf3},
	},
	4: {}, // flow events tell more, ports have a tenant: none, until they are set again
}

// portOf2: every CA has a mask of its own, where one prefix length stood for the
// first CA's subnet, and the gateway has an IPv6 address.
func portOf2(was, is view) error {
	for i := range 2 {
		was, is := was.value.field("row").at(i), is.value.field("row").at(i)
		if was.field("ifindex").uint() == 0 {
			continue
		}
		copy(is.field("gateway6").field("b").b, gateway6Of(uint32(was.field("vni").uint())))
		for j := range was.field("ca").len() {
			ca := addrOf(was.field("ca").at(j))
			if !ca.IsValid() {
				continue
			}
			subnet := netip.PrefixFrom(ca, ca.BitLen())
			if j == 0 {
				subnet = netip.PrefixFrom(ca, int(was.field("bits").uint()))
			}
			mask := mask16(subnet)
			copy(is.field("mask").at(j).field("b").b, mask.B[:])
		}
	}
	return nil
}

func gateway6Of(vni uint32) []byte {
	a := gateway6(vni)
	return a.B[:]
}

// hostsOf2: a host's prefix is a peer as well, by which mappings name their PA.
func hostsOf2(d *Datapath, was []view) error {
	for _, v := range was {
		bits := uint32(v.key.field("prefixlen").uint())
		if err := d.PutHost(prefix(datapathAddr{B: [16]byte(v.key.field("pa").b)}, bits)); err != nil {
			return err
		}
	}
	return nil
}

// mappingsOf2: the PA is a number behind a peer's, the epoch has gone.
func mappingsOf2(d *Datapath, was []view) error {
	rows := make([]Mapping, len(was))
	for i, v := range was {
		rows[i] = Mapping{
			MappingKey: MappingKey{VNI: uint32(v.key.field("vni").uint()), CA: addrOf(v.key.field("ca"))},
			PA:         addrOf(v.value.field("pa")),
			MAC:        [6]byte(v.value.field("mac").b),
			NextHop:    uint32(v.value.field("next_hop").uint()),
		}
	}
	return d.PutMappings(rows...)
}

// flowsOf3: flows of IPv4 have a map of their own with shorter keys, and rows
// another order. Their ways are found anew. Contract 1's are forgotten, see there.
func flowsOf3(d *Datapath, was []view) error {
	for _, v := range was {
		if v.value.field("generation").t == nil {
			return nil
		}
		k := datapathFlowKey{Rport: uint16(v.key.field("rport").uint()), Lport: uint16(v.key.field("lport").uint()),
			PortId: uint16(v.key.field("port_id").uint()), Proto: uint8(v.key.field("proto").uint())}
		copy(k.Remote.B[:], v.key.field("remote").field("b").b)
		copy(k.Local.B[:], v.key.field("local").field("b").b)
		number := v.value.number
		count := func(name string) datapathFlowCount {
			n := v.value.field(name)
			return datapathFlowCount{Packets: n.number("packets"), Bytes: n.number("bytes")}
		}
		row := datapathFlow{
			Epoch: number("epoch"), Seen: uint32(number("seen")), Aggregated: uint32(number("aggregated")),
			Generation: uint32(number("generation")), Rule: int32(number("rule")), Flags: uint8(number("flags")),
			Acked: [2]uint32{uint32(v.value.field("acked").at(0).uint()), uint32(v.value.field("acked").at(1).uint())},
			From:  count("from"), To: count("to"), Began: number("began"),
			Backend: uint16(number("backend")), NatPort: uint16(number("nat_port")),
		}
		copy(row.Nat.B[:], v.value.field("nat").field("b").b)
		if err := d.putFlow(k, row, ebpf.UpdateNoExist); err != nil {
			return fmt.Errorf("carry a flow over: %w", err)
		}
	}
	return nil
}

// addrOf reads a struct addr.
func addrOf(r record) netip.Addr {
	b := r.field("b").b
	if len(b) != 16 {
		return netip.Addr{}
	}
	return datapathAddr{B: [16]byte(b)}.ip()
}
