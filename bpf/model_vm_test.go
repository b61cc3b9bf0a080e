package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

var (
	imds6      = netip.MustParseAddr("fd00:ec2::254")
	wireServer = netip.MustParseAddr("168.63.129.16")
	linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")
)

func isLinkScope(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

func isMetadata(a netip.Addr) bool { return a == imds6 || a == wireServer || linkLocal4.Contains(a) }

// fromVM is what becomes of a frame from the VM of a port.
func (m *model) fromVM(id uint16, frame []byte, gso int) outcome {
	p := m.ports[id]
	switch {
	case p == nil:
		return refuse("no_port")
	case !p.is(Open):
		return refuse("closed")
	}
	kind := binary.BigEndian.Uint16(frame[12:])
	switch {
	case kind == etherVLAN || kind == 0x88a8:
		return refuse("vlan")
	case [6]byte(frame[6:]) != p.MAC:
		return refuse("spoofed_mac")
	case kind == etherARP:
		return m.arp(p, frame)
	}
	j := &judged{frame: frame, gso: gso, from: p}
	var why string
	if j.parsed, why = parse(kind, frame[14:], gso); why != "" {
		return refuse(why)
	}
	return m.sent(j)
}

func refuse(why string) outcome { return outcome{reason: why, verdict: actShot} }

func sendOut(frame []byte) outcome { return outcome{reason: "none", verdict: actRedirect, out: frame} }

// sent is an IP packet of a VM, in the order of the checks.
func (m *model) sent(j *judged) outcome {
	p := j.from
	gateway := p.gatewayOf(j.v6)
	switch {
	case j.isUDP(68, 67) && !j.v6:
		return m.trapOf(j, TrapDHCP)
	case j.isUDP(546, 547) && j.v6 && isLinkScope(j.src):
		return m.trapOf(j, TrapDHCPv6)
	case j.isUDP(67, 68) && !j.v6, j.isUDP(547, 546) && j.v6:
		return refuse("rogue_dhcp")
	case j.isND():
		return m.nd(j)
	case isMetadata(j.dst):
		return m.metadata(j)
	case isLinkScope(j.src) && j.dst != gateway:
		return refuse("link_scope")
	case !isLinkScope(j.src) && !p.has(j.src) && !p.is(Router):
		return refuse("spoofed_ca")
	}
	if why := notUnicast(j); why != "" {
		return refuse(why)
	}
	if j.dst == gateway {
		return m.toGateway(j)
	}
	if p.is(Isolated) {
		return refuse("isolated")
	}
	if why := m.judge(j, p, false); why != "" {
		return m.refuseSent(j, why)
	}
	if j.natted != 0 {
		j.dst = j.nat.Addr()
		if j.quoted == nil {
			j.dport = j.nat.Port()
		}
	}
	if j.route.here {
		return m.sendToPort(j)
	}
	if j.tooLarge(m.pathMTU(p)) {
		return m.refuseSent(j, "too_big")
	}
	return m.sendToWire(j)
}

func (j *judged) isUDP(sport, dport uint16) bool {
	return j.proto == protoUDP && j.sport == sport && j.dport == dport
}

func (j *judged) isND() bool {
	return j.v6 && j.proto == protoICMPv6 && j.icmpType >= ndRS && j.icmpType <= ndRedirect
}

func (m *model) trapOf(j *judged, kind TrapKind) outcome {
	switch {
	case len(j.frame) > 1532:
		return refuse("trap_size")
	case !m.spend(j.from, bucketTrap, 1):
		return refuse("trap_rate")
	}
	return outcome{reason: "none", verdict: actShot, trap: kind}
}

// answer is what the gateway says to the VM of a port, if it says so much.
func (m *model) answer(p *modelPort, frame []byte) outcome {
	if !m.spend(p, bucketAnswer, 1) {
		return refuse("answer_rate")
	}
	return sendOut(frame)
}

// notUnicast names a destination that isn't one machine's.
func notUnicast(j *judged) string {
	switch {
	case j.v6 && j.dst.IsMulticast():
		return "multicast"
	case !j.v6 && j.from.isBroadcast(j.dst):
		return "broadcast"
	case !j.v6 && j.dst.As4()[0]&0xf0 == 0xe0:
		return "multicast"
	case j.frame[0] == 0xff:
		return "broadcast"
	case j.frame[0]&1 == 1:
		return "multicast"
	case isLinkScope(j.dst) && j.dst != j.from.gatewayOf(true):
		return "link_scope"
	}
	return ""
}

func (p *modelPort) isBroadcast(a netip.Addr) bool {
	if a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return true
	}
	for _, ca := range p.CAs {
		if ca.Addr().Is4() && ca.Bits() < 31 && ca.Masked().Contains(a) {
			last := binary.BigEndian.Uint32(a.AsSlice())
			if last|^uint32(0)<<(32-ca.Bits()) == ^uint32(0) {
				return true
			}
		}
	}
	return false
}

// toGateway is what a VM says to the gateway itself.
func (m *model) toGateway(j *judged) outcome {
	echo, reply := byte(8), byte(0)
	proto := byte(protoICMP)
	if j.v6 {
		proto, echo, reply = protoICMPv6, 128, 129
	}
	if j.proto == proto && j.icmpType == echo && j.icmpCode == 0 && j.fragment == unbroken {
		out := bytes.Clone(j.frame)
		copy(out, j.frame[6:12])
		copy(out[6:], gatewayMAC[:])
		at, n := 26, 4
		if j.v6 {
			at, n = 22, 16
		}
		copy(out[at:], j.frame[at+n:at+2*n])
		copy(out[at+n:], j.frame[at:at+n])
		l4 := out[14+j.header:]
		l4[0] = reply
		fixSum(l4[2:], []byte{echo, 0}, []byte{reply, 0})
		return m.answer(j.from, out)
	}
	syn := j.tcpFlags & (flagSYN | flagACK)
	if j.proto == protoTCP && j.fragment == unbroken && (j.tcpFlags&flagRST != 0 || syn == flagSYN|flagACK) {
		return m.trapOf(j, TrapProbe)
	}
	return refuse("to_gateway")
}

// metadata goes to the host's service, from an address that says who asks.
func (m *model) metadata(j *judged) outcome {
	p := j.from
	if j.proto != protoTCP || j.dport != 80 || j.fragment != unbroken || !j.v6 && j.dst != imds && j.dst != wireServer {
		return refuse("imds_other")
	}
	if ca, ok := p.first(j.v6); !ok || ca != j.src {
		return refuse("imds_source")
	}
	out := bytes.Clone(j.frame)
	copy(out, imdsMAC[:])
	j.clamp(out, p.MTU)
	j.rewrite(out, false, netip.AddrPortFrom(callerIn(p.id, p.Epoch, j.v6), 0))
	return sendOut(out)
}

// arp: RFC 826, RFC 5227.
func (m *model) arp(p *modelPort, frame []byte) outcome {
	b := frame[14:]
	if len(b) < 28 {
		return refuse("truncated")
	}
	op := binary.BigEndian.Uint16(b[6:])
	if !bytes.Equal(b[:6], []byte{0, 1, 8, 0, 6, 4}) || op != 1 && op != 2 {
		return refuse("bad_arp")
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
	switch {
	case [6]byte(b[8:]) != p.MAC:
		return refuse("spoofed_arp")
	case sender == netip.AddrFrom4([4]byte{}):
		return refuse("arp_probe")
	case !p.has(sender) && !p.is(Router):
		return refuse("spoofed_arp")
	case op == 2 && target == p.Gateway:
		return m.trapOf(&judged{frame: frame, from: p}, TrapARPReply)
	case op == 2:
		return refuse("arp_unasked")
	case p.has(target):
		return refuse("arp_own")
	case target != p.Gateway && target != imds && (p.is(Isolated) || !p.onSubnet(target)):
		return refuse("arp_stranger")
	}
	reply := eth(p.MAC, gatewayMAC, etherARP, arp(2, gatewayMAC, target, p.MAC, sender))
	return m.answer(p, append(bytes.Clone(reply), frame[len(reply):]...))
}

// nd: RFC 4861, 7.1; RFC 4862; RFC 6980.
func (m *model) nd(j *judged) outcome {
	p, none := j.from, j.src.IsUnspecified()
	speaks := isLinkScope(j.src) || p.has(j.src) || p.is(Router)
	switch {
	case j.frame[21] != 255 || j.header != 40:
		return refuse("bad_nd")
	case j.icmpType == ndRS && !none && !speaks:
		return refuse("spoofed_nd")
	case j.icmpType == ndRS:
		return m.trapOf(j, TrapRouterSolicit)
	case j.icmpType == ndRA || j.icmpType == ndRedirect:
		return refuse("rogue_ra")
	}
	target, why := m.target(j, none, speaks)
	gateway := p.gatewayOf(true)
	switch {
	case why != "":
		return refuse(why)
	case j.icmpType == ndNA && !p.has(target) && !isLinkScope(target):
		return refuse("spoofed_nd")
	case j.icmpType == ndNA && j.dst != gateway:
		return refuse("nd_unasked")
	case j.icmpType == ndNA:
		return m.trapOf(j, TrapNeighbourAdvert)
	case none:
		return refuse("nd_probe")
	case p.has(target):
		return refuse("nd_own")
	case target != gateway && target != imds6 && (p.is(Isolated) || isLinkScope(target) || !p.onSubnet(target)):
		return refuse("nd_stranger")
	}
	target = netip.AddrFrom16(target.As16())
	answer := advertise(target, j.src, target, gatewayMAC)
	answer[0], answer[1], answer[2], answer[3] = j.frame[14], j.frame[15], j.frame[16], j.frame[17]
	if target == gateway { // which has the router flag
		answer[44] |= 0x80
	}
	return m.answer(p, eth(p.MAC, gatewayMAC, etherIPv6, resum6(answer)))
}

// target reads the target of a solicitation or an advertisement, and its first option.
func (m *model) target(j *judged, none, speaks bool) (netip.Addr, string) {
	if j.payload < 24 || len(j.l4) < 24 {
		return netip.Addr{}, "truncated"
	}
	target := netip.AddrFrom16([16]byte(j.l4[8:])).Unmap()
	switch {
	case j.icmpCode != 0 || j.l4[8] == 0xff:
		return target, "bad_nd"
	case !none && !speaks:
		return target, "spoofed_nd"
	case j.payload < 32:
		return target, ""
	case len(j.l4) < 32:
		return target, "truncated"
	case j.l4[24] != 1 && j.l4[24] != 2:
		return target, ""
	case j.l4[25] != 1:
		return target, "bad_nd"
	case [6]byte(j.l4[26:]) != j.from.MAC:
		return target, "spoofed_nd"
	}
	return target, ""
}
