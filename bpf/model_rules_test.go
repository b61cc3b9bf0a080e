package bpf

import (
	"math/bits"
	"net/netip"
)

// classify asks the port's rules: the first that matches decides.
func (m *model) classify(p *modelPort, k modelKey, inbound bool, icmpType byte) string {
	if p.Rules == nil {
		return ""
	}
	rules, denied := p.Rules.Out, "rule_out"
	port := k.rport
	if inbound {
		rules, denied, port = p.Rules.In, "rule_in", k.lport
	}
	for _, r := range rules {
		if !r.matches(k, port, icmpType, m.members[MappingKey{p.VNI, k.remote}]) {
			continue
		}
		if r.Deny {
			return denied
		}
		return ""
	}
	if inbound {
		return "no_rule_in"
	}
	return ""
}

func (r Rule) matches(k modelKey, port uint16, icmpType byte, groups uint64) bool {
	family := IPv6
	if k.remote.Is4() {
		family = IPv4
	}
	return (r.Family == AnyFamily || r.Family == family) &&
		(r.Protocol == 0 || r.Protocol == k.proto) &&
		(!r.Remote.IsValid() || r.Remote.Contains(k.remote)) &&
		(r.Groups == 0 || r.Groups&groups != 0) &&
		(r.MinPort == 0 && r.MaxPort == 0 || port >= r.MinPort && port <= r.MaxPort) &&
		(r.ICMPType == nil || *r.ICMPType == icmpType)
}

// choose gives a new flow to a service its backend.
func (m *model) choose(j *judged, p *modelPort) string {
	s := m.services[ServiceKey{p.VNI, j.dst, j.dport, j.proto}]
	if s == nil {
		return ""
	}
	h := hashAddr(0x2545f491, j.src)
	if s.affinity {
		h = mix(h, 0xc2b2ae35)
	} else {
		h = hashAddr(h, j.dst)
		h = mix(mix(h, uint32(bits.ReverseBytes16(j.sport))<<16|uint32(bits.ReverseBytes16(j.dport))), uint32(j.proto))
	}
	for i := range uint32(8) {
		b := s.table[(h+i*0x9e3779b1)&uint32(len(s.table)-1)]
		if s.live[b] && b.Addr() != j.src {
			j.natted, j.nat = fService, b
			return ""
		}
	}
	return "no_backend"
}

func hashAddr(h uint32, a netip.Addr) uint32 {
	b := a.As16()
	for i := 0; i < 16; i += 4 {
		h = mix(h, uint32(b[i])|uint32(b[i+1])<<8|uint32(b[i+2])<<16|uint32(b[i+3])<<24)
	}
	return h
}
