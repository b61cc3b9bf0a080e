package bpf

import (
	"encoding/binary"
	"net/netip"
)

// The model is the datapath once more, in plain Go: what vnet.h, docs/frame.md
// and the RFCs ask for, written to be read and not to be fast. It knows one host
// with a directory and a clock that stand still; counters, flow logs, captures and
// what time ends have tests of their own. fuzz_test.go puts frames through both.

// A model is one host.
type model struct {
	mac       [6]byte // of its uplink
	pas       netip.Prefix
	self      netip.Addr
	under     int // MTU of the underlay
	ports     map[uint16]*modelPort
	mappings  map[MappingKey]Mapping
	routes    []Route
	hosts     []netip.Prefix
	members   map[MappingKey]uint64
	services  map[ServiceKey]*modelService
	hop       NextHop // of all mappings
	flows     map[modelKey]*modelFlow
	fragments map[modelFragment]firstPieceOf
	modelBudgets
}

// A modelPort is a port; its generation counts changes of its rules.
type modelPort struct {
	Port
	id         uint16
	generation int
}

// An outcome is what becomes of a frame. A frame that nobody refused, and a
// refused one whose sender is told, leave as out.
type outcome struct {
	reason  string // "none", or why it was refused; "": it isn't ours
	verdict uint32
	out     []byte
	mark    uint32
	trap    TrapKind // of a trapped frame
}

// A judged packet is what its headers say, and what the stages have found.
type judged struct {
	frame []byte // from the (inner) Ethernet header on
	gso   int
	parsed
	from     *modelPort
	to       *modelPort
	route    way
	natted   byte // as flow_flag
	nat      netip.AddrPort
	tooBig   int // the MTU that its sender is told
	reset    bool
	climbs   bool
	outerSrc netip.Addr
}

// A way is where a CA is reached.
type way struct {
	vni  uint32
	pa   netip.Addr
	mac  [6]byte
	here bool
}

func (p *modelPort) has(a netip.Addr) bool {
	for _, ca := range p.CAs {
		if ca.Addr() == a {
			return !a.IsUnspecified() || a.Is4()
		}
	}
	return false
}

func (p *modelPort) onSubnet(a netip.Addr) bool {
	for _, ca := range p.CAs {
		if ca.Masked().Contains(a) {
			return true
		}
	}
	return false
}

func (p *modelPort) first(v6 bool) (netip.Addr, bool) {
	for _, ca := range p.CAs {
		if ca.Addr().Is6() == v6 {
			return ca.Addr(), true
		}
	}
	return netip.Addr{}, false
}

func (p *modelPort) gatewayOf(v6 bool) netip.Addr {
	if v6 {
		return gateway6(p.VNI).ip()
	}
	return p.Gateway
}

func (p *modelPort) is(f PortFlags) bool { return p.Flags&f != 0 }

// findWay leads from a port to an address: by its subnet or the longest route,
// and then by the mapping of what that leads to.
func (m *model) findWay(p *modelPort, to netip.Addr) (way, string) {
	w, next := way{vni: p.VNI}, to
	if !p.onSubnet(to) {
		best := -1
		for i, r := range m.routes {
			if r.VNI == p.VNI && r.Prefix.Contains(to) && (best < 0 || r.Prefix.Bits() > m.routes[best].Prefix.Bits()) {
				best = i
			}
		}
		if best < 0 {
			return w, "no_route"
		}
		if r := m.routes[best]; r.NextHop.IsValid() {
			next = r.NextHop
		}
		if r := m.routes[best]; r.Peer != 0 {
			w.vni = r.Peer
		}
	}
	found, ok := m.mappings[MappingKey{w.vni, next}]
	if !ok {
		return w, "no_mapping"
	}
	w.pa, w.mac, w.here = found.PA, found.MAC, m.pas.Contains(found.PA)
	return w, ""
}

// portAt finds the port of this host that a MAC in a network is.
func (m *model) portAt(vni uint32, mac [6]byte) *modelPort {
	for _, p := range m.ports {
		if p.VNI == vni && p.MAC == mac {
			return p
		}
	}
	return nil
}

// admit is what a port takes at all.
func (p *modelPort) admit(dst netip.Addr) string {
	switch {
	case !p.is(Open):
		return "to_closed"
	case p.is(Isolated):
		return "to_isolated"
	case !p.has(dst) && !p.is(Router):
		return "wrong_ca"
	}
	return ""
}

// pathMTU is what the sender's network and the underlay both take.
func (m *model) pathMTU(p *modelPort) int {
	overhead := OverheadIPv4
	if m.self.Is6() {
		overhead = OverheadIPv6
	}
	return min(p.MTU, m.under-overhead)
}

// tooLarge checks a packet against an MTU, and notes whether its sender is told.
func (j *judged) tooLarge(mtu int) bool {
	if j.wireLen() <= mtu {
		return false
	}
	if j.fragment == laterFragment {
		return true
	}
	isError := j.proto == protoICMPv6 && j.icmpType < 128
	if !j.v6 {
		isError = j.frame[20]&0x40 == 0 || j.proto == protoICMP && j.icmpType != 8
	}
	if !isError {
		j.tooBig = mtu
	}
	return true
}

// wireLen is the largest IP packet that the frame becomes.
func (j *judged) wireLen() int {
	switch {
	case j.gso == 0:
		return len(j.frame) - 14
	case j.proto != protoTCP:
		return j.header + 8 + j.gso
	case j.l4 == nil:
		return len(j.frame)
	default:
		return j.header + 20 + j.optionsLen + j.gso
	}
}

// flowHash spreads flows over source ports: it is no secret, so it is the datapath's own.
func (j *judged) flowHash() uint32 {
	var ports uint32
	if j.fragment == unbroken {
		ports = uint32(swap16(j.sport))<<16 | uint32(swap16(j.dport))
	}
	word := func(a netip.Addr, i int) uint32 { b := a.As16(); return binary.NativeEndian.Uint32(b[i:]) }
	h := mix(ports^uint32(j.proto), word(j.src, 12))
	h = mix(h, word(j.dst, 12)*0x9e3779b1)
	if j.v6 {
		h = mix(h, word(j.src, 8)^word(j.dst, 8))
	}
	h *= 0xc2b2ae35
	return h ^ h>>16
}
