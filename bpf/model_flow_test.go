package bpf

import "net/netip"

// A modelKey is a flow as its port sees it.
type modelKey struct {
	port          uint16
	proto         byte
	local, remote netip.Addr
	lport, rport  uint16
}

type modelFlow struct {
	epoch      uint64
	generation int
	flags      byte // as enum flow_flag
	nat        netip.AddrPort
	climbs     bool
}

type modelFragment struct {
	port     uint16
	src, dst netip.Addr
	id       uint32
	proto    byte
	inbound  bool
}

// A firstPieceOf a packet has the ports that the others lack.
type firstPieceOf struct {
	sport, dport uint16
	length       int
	epoch        uint64
}

type modelService struct {
	table    []netip.AddrPort // by slot; the zero one: none
	affinity bool
	live     map[netip.AddrPort]bool
}

const (
	fInbound  = byte(datapathFlowFlagFLOW_INBOUND)
	fAnswered = byte(datapathFlowFlagFLOW_ANSWERED)
	fClosing  = byte(datapathFlowFlagFLOW_CLOSING)
	fReset    = byte(datapathFlowFlagFLOW_RESET)
	fService  = byte(datapathFlowFlagFLOW_SERVICE)
	fBackend  = byte(datapathFlowFlagFLOW_BACKEND)
)

func (j *judged) key(p *modelPort, inbound bool) modelKey {
	if inbound {
		return modelKey{p.id, j.proto, j.dst, j.src, j.dport, j.sport}
	}
	return modelKey{p.id, j.proto, j.src, j.dst, j.sport, j.dport}
}

// judge is what a port says of a packet out or in: by its rate, by its fragment, by
// its flow, or as the first of one.
func (m *model) judge(j *judged, p *modelPort, inbound bool) string {
	natted := j.natted
	if !inbound && !m.keepsFrom(j, p) {
		return "rate_from"
	}
	if why := m.matchFragment(j, p, inbound); why != "" {
		return why
	}
	if why := m.judgeFlow(j, p, inbound); why != "" {
		return why
	}
	if natted != 0 && j.natted != natted {
		return "service_clash"
	}
	if inbound && !m.keepsTo(j, p) {
		return "rate_to"
	}
	if j.fragment == firstPiece {
		m.fragments[j.fragmentOf(p, inbound)] = firstPieceOf{j.sport, j.dport, j.payload, p.Epoch}
	}
	return ""
}

func (j *judged) fragmentOf(p *modelPort, inbound bool) modelFragment {
	return modelFragment{p.id, j.src, j.dst, j.fragmentID, j.proto, inbound}
}

func (m *model) matchFragment(j *judged, p *modelPort, inbound bool) string {
	if j.fragment != unbroken && j.offset+j.payload > 0xffff {
		return "bad_ip"
	}
	if j.fragment != laterFragment {
		return ""
	}
	first, ok := m.fragments[j.fragmentOf(p, inbound)]
	switch {
	case !ok || first.epoch != p.Epoch:
		return "fragment_lost"
	case j.offset < first.length:
		return "fragment_overlap"
	}
	j.sport, j.dport = first.sport, first.dport
	return ""
}

func (m *model) judgeFlow(j *judged, p *modelPort, inbound bool) string {
	k := j.key(p, inbound)
	f := m.flows[k]
	if j.isICMP() && !j.isEcho() && j.fragment != laterFragment || f != nil && j.isEchoRequest() && inbound != (f.flags&fInbound != 0) {
		f = nil // of ICMP only echoes are flows, and each end asks by its own
	}
	if f == nil || f.epoch != p.Epoch || j.tcpFlags&(flagSYN|flagACK) == flagSYN && f.flags&(fClosing|fReset) != 0 {
		return m.begin(j, p, k, inbound)
	}
	if f.generation != p.generation {
		if why := m.judgeAgain(j, p, k, f); why != "" {
			return why
		}
	}
	if why := m.follow(j, k, f, inbound); why != "" {
		return why
	}
	if why := m.wayOf(j, p, inbound); why != "" {
		return why
	}
	m.touch(j, k, f, inbound)
	return ""
}

// wayOf finds the way out, or checks the one that the frame came by.
func (m *model) wayOf(j *judged, p *modelPort, inbound bool) (why string) {
	if !inbound {
		to := j.dst
		if j.natted != 0 {
			to = j.nat.Addr()
		}
		j.route, why = m.findWay(p, to)
		return why
	}
	if j.from != nil && j.from != p && j.from.VNI == p.VNI && j.from.has(j.src) {
		return ""
	}
	w, unknown := m.findWay(p, j.src)
	vouched := j.from != nil || m.registered(j.outerSrc)
	switch {
	case j.src == p.gatewayOf(j.v6) || p.has(j.src) || isMetadata(j.src):
		return "wrong_source"
	case unknown == "" && (w.pa != j.outerSrc || vouched && w.mac != j.srcMAC() && j.srcMAC() != gatewayMAC):
		return "wrong_source"
	case unknown != "" && !vouched:
		return "unknown_source"
	case unknown != "" && !m.spend(p, bucketUnresolved, 1):
		return "unresolved_rate"
	}
	if unknown == "" {
		j.route = w
	}
	return ""
}

// srcMAC is of the port that sent the frame, on this host or by its host's word.
func (j *judged) srcMAC() [6]byte { return [6]byte(j.frame[6:]) }

func (m *model) registered(pa netip.Addr) bool {
	for _, h := range m.hosts {
		if h.Contains(pa) {
			return true
		}
	}
	return false
}

func (m *model) begin(j *judged, p *modelPort, k modelKey, inbound bool) string {
	if inbound {
		if why := m.wayOf(j, p, true); why != "" {
			return why
		}
	}
	j.climbs = j.gso != 0
	if about := m.related(j, p, inbound); about != nil {
		j.followError(about, inbound)
		if inbound {
			return ""
		}
		return m.wayOf(j, p, false)
	}
	if j.proto == protoTCP && j.tcpFlags&flagSYN == 0 && p.is(Strict) {
		j.reset = p.is(Reset) && j.takesReset()
		return "midstream"
	}
	if p.is(Draining) {
		return "draining"
	}
	if why := m.classify(p, k, inbound, j.icmpType); why != "" {
		return why
	}
	if !inbound {
		if why := m.choose(j, p); why != "" {
			return why
		}
		if why := m.wayOf(j, p, false); why != "" {
			return why
		}
	}
	if !j.isICMP() || j.isEchoRequest() { // an error is of the flow that it is about, and nothing else has a number
		return m.remember(j, p, k, inbound)
	}
	return ""
}

// takesReset: the answer is written over the segment, so it must be unbroken, right
// behind its IP header, and no reset itself.
func (j *judged) takesReset() bool {
	return j.proto == protoTCP && j.tcpFlags&flagRST == 0 && j.fragment == unbroken && j.header <= 40
}

// related is the flow of the port that an error is about: it goes to whoever sent
// what it quotes.
func (m *model) related(j *judged, p *modelPort, inbound bool) *modelFlow {
	if j.quoted == nil || j.quoted.local != j.dst {
		return nil
	}
	k := *j.quoted
	k.port = p.id
	if !inbound { // what it quotes came in
		k.local, k.remote, k.lport, k.rport = k.remote, k.local, k.rport, k.lport
	}
	if f := m.flows[k]; f != nil && f.epoch == p.Epoch {
		return f
	}
	return nil
}

// followError: about a service's flow it goes to the backend, or comes as if from the service.
func (j *judged) followError(about *modelFlow, inbound bool) {
	natted := about.flags & fService
	if inbound {
		natted = about.flags & fBackend
	}
	if natted == 0 {
		return
	}
	j.natted, j.nat = natted, about.nat
	if !inbound {
		j.quoted.local, j.quoted.lport = about.nat.Addr(), about.nat.Port()
	}
}

func (m *model) remember(j *judged, p *modelPort, k modelKey, inbound bool) string {
	if !m.afford(j, p, inbound) {
		return "flow_quota"
	}
	f := &modelFlow{epoch: p.Epoch, generation: p.generation}
	if inbound {
		f.flags = fInbound
	}
	m.flows[k] = f
	if j.natted == fService && !inbound {
		f.flags, f.nat = fService, j.nat
		back := *f
		back.flags, back.nat = fBackend, netip.AddrPortFrom(j.dst, j.dport)
		m.flows[k.to(j.nat)] = &back
	}
	m.touch(j, k, f, inbound)
	return ""
}

// to is the key with another far end.
func (k modelKey) to(far netip.AddrPort) modelKey {
	k.remote, k.rport = far.Addr(), far.Port()
	return k
}

func (m *model) touch(j *judged, k modelKey, f *modelFlow, inbound bool) {
	if inbound != (f.flags&fInbound != 0) {
		f.flags |= fAnswered
	}
	if j.proto == protoTCP && j.tcpFlags&flagFIN != 0 {
		f.flags |= fClosing
	}
	if j.proto == protoTCP && j.tcpFlags&flagRST != 0 {
		f.flags |= fReset
	}
	if f.flags&(fService|fBackend) != 0 {
		if twin := m.flows[k.to(f.nat)]; twin != nil && twin.epoch == f.epoch {
			twin.flags |= f.flags & (fAnswered | fClosing | fReset)
		}
	}
	if inbound { // an aggregated flow keeps to that way: see flow.h
		f.climbs = f.climbs || j.gso != 0
		j.climbs = f.climbs
	}
}

func (m *model) judgeAgain(j *judged, p *modelPort, k modelKey, f *modelFlow) string {
	asked := k
	if f.flags&fBackend != 0 {
		asked = k.to(f.nat)
	}
	echo := byte(8)
	if j.v6 {
		echo = 128
	}
	if why := m.classify(p, asked, f.flags&fInbound != 0, echo); why != "" {
		delete(m.flows, k)
		return why
	}
	f.generation = p.generation
	return ""
}

// follow takes over what the flow's row says of services.
func (m *model) follow(j *judged, k modelKey, f *modelFlow, inbound bool) string {
	switch {
	case f.flags&fService != 0 && !inbound:
		if !m.backendLives(f.nat) {
			j.reset = j.takesReset()
			delete(m.flows, k)
			return "dead_backend"
		}
	case f.flags&fBackend != 0:
		if !inbound {
			return "service_clash"
		}
	default:
		return ""
	}
	j.natted, j.nat = f.flags&(fService|fBackend), f.nat
	return ""
}

func (m *model) backendLives(b netip.AddrPort) bool {
	for _, s := range m.services {
		if s.live[b] {
			return true
		}
	}
	return false
}
