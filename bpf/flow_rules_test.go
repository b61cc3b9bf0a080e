package bpf

import (
	"errors"
	"testing"
)

// Rules and flows together, for both families, with a peer on another host and
// one on the same: the judgement is one.
func TestStatefulRules(t *testing.T) {
	a, b := newWorld(t)
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, local := range []bool{false, true} {
			s := &stateful{t: t, a: a, b: b, family: family, peer: redB, name: name + " to another host", port: uint16(21000 + family*100)}
			if local {
				s.peer, s.name, s.port = redA2, name+" on the same host", s.port+1000
			}
			s.answers()
			s.judgedAgain()
			s.related()
			s.echoes()
			s.regrouped()
			s.epochs()
		}
	}
}

// regrouped: a flow that was let in by its group ends when its other end leaves that.
func (s *stateful) regrouped() {
	peer := MappingKey{red, s.peer.cas()[s.family]}
	s.a.must(s.a.dp.SetMembers(peer, 1<<17))
	s.rules(&RuleSet{In: []Rule{{ID: 36, Groups: 1 << 17}}})
	p := s.fresh()
	s.want("in by its group", s.answer(p), "none")
	s.a.must(errors.Join(s.a.dp.SetMembers(peer, 1<<18), s.a.dp.Rejudge(redA.id)))
	s.want("in from another group", s.answer(p), "no_rule_in")
	s.a.must(s.a.dp.SetMembers(peer, 0))
	if err := s.a.dp.Rejudge(9999); !errors.Is(err, ErrNoPort) {
		s.t.Errorf("judge again at a port that isn't there: %v", err)
	}
}

// echoes: one that is let in opens nothing else, not even with its identifier.
func (s *stateful) echoes() {
	request, reply, stamp := byte(8), byte(0), byte(13)
	if s.family == 1 {
		request, reply, stamp = 128, 129, 139
	}
	here, there := redA.cas()[s.family], s.peer.cas()[s.family]
	message := func(kind byte, id byte) []byte {
		return icmp(there, here, kind, 0, append([]byte{0, id, 0, 1}, text(29)...))
	}
	s.rules(&RuleSet{In: []Rule{{ID: 61, Protocol: map[int]uint8{0: protoICMP, 1: protoICMPv6}[s.family], ICMPType: &request}}})
	s.want("an echo that is allowed", s.in(message(request, 0)), "none")
	s.want("a message that isn't, without a number", s.in(message(stamp, 0)), "no_rule_in")
	s.want("an answer that nobody asked for", s.in(message(reply, 7)), "no_rule_in")
	s.rules(&RuleSet{})
	s.want("an echo of the VM", s.said(s.a, func() {
		s.a.send(redA, redA.frame(icmp(here, there, request, 0, append([]byte{0, 9, 0, 1}, text(29)...))))
	}), "none")
	s.want("its answer", s.in(message(reply, 9)), "none")
	s.want("a request with its number", s.in(message(request, 9)), "no_rule_in")
	s.want("a message of another kind", s.in(message(stamp, 9)), "no_rule_in")
}

// stateful is redA with rules, and a peer.
type stateful struct {
	t      *testing.T
	a, b   *host
	family int
	peer   member
	name   string
	port   uint16
}

// out is a datagram from redA to its peer; it returns the reason that counts at redA's host.
func (s *stateful) out(sport uint16) string {
	return s.said(s.a, func() {
		s.a.send(redA, redA.frame(udpOf(redA.cas()[s.family], s.peer.cas()[s.family], sport, 7946, text(37))))
	})
}

// in is a packet from the peer to redA.
func (s *stateful) in(packet []byte) string {
	return s.said(s.a, func() {
		if s.peer.id == redA2.id {
			s.a.send(redA2, redA2.frame(packet))
		} else {
			s.a.receive(s.peer.wire(redA, packet))
		}
	})
}

// answer is the peer's datagram back.
func (s *stateful) answer(sport uint16) string {
	return s.in(udpOf(s.peer.cas()[s.family], redA.cas()[s.family], 7946, sport, text(41)))
}

// said returns the one reason that counted.
func (s *stateful) said(h *host, f func()) string {
	s.t.Helper()
	before := h.drops()
	f()
	for r, n := range h.drops() {
		if n == before[r]+1 {
			return r
		}
	}
	return "nothing"
}

func (s *stateful) want(what, got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s, %s: counted %s, want %s", what, s.name, got, want)
	}
}

func (s *stateful) rules(r *RuleSet) {
	s.t.Helper()
	s.a.must(s.a.dp.SetRules(redA.id, r))
}

func (s *stateful) fresh() uint16 { s.port++; return s.port }

// answers pass without a rule, for they belong to a flow that may be; nothing else does.
func (s *stateful) answers() {
	s.rules(&RuleSet{})
	p := s.fresh()
	s.want("unasked", s.answer(p), "no_rule_in")
	s.want("asked", s.out(p), "none")
	s.want("the answer", s.answer(p), "none")
	s.want("another port's answer", s.answer(s.fresh()), "no_rule_in")
	found := 0
	s.a.must(s.a.dp.EachFlow(func(f Flow) {
		if f.Port != redA.id || f.Local.Port() != p {
			return
		}
		found++
		if !f.Answered || f.Inbound || f.Rule != RuleDefault || f.From.Packets != 1 || f.To.Packets != 1 {
			s.t.Errorf("%s: flow %+v, want one answered packet each way by the default", s.name, f)
		}
	}))
	if found != 1 {
		s.t.Errorf("%s: %d flows, want 1", s.name, found)
	}
}

// judgedAgain: what the new rules wouldn't let begin ends, by whichever packet
// comes next; what they would goes on, by its new rule.
func (s *stateful) judgedAgain() {
	s.rules(&RuleSet{In: []Rule{{ID: 31, Protocol: protoUDP}}})
	mine, theirs := s.fresh(), s.fresh()
	s.want("out", s.out(mine), "none")
	s.want("in", s.answer(theirs), "none")

	s.rules(&RuleSet{Out: []Rule{{ID: 32, Deny: true, Protocol: protoUDP}}})
	s.want("in to a flow that is now denied out", s.answer(mine), "rule_out")
	s.want("in, although it began in", s.answer(theirs), "no_rule_in")
	s.want("out, although it was allowed", s.out(mine), "rule_out")

	s.rules(&RuleSet{In: []Rule{{ID: 33, Protocol: protoUDP, MinPort: 1, MaxPort: 65535}}})
	mine, theirs = s.fresh(), s.fresh()
	s.want("out", s.out(mine), "none")
	s.want("in", s.answer(theirs), "none")
	s.rules(&RuleSet{In: []Rule{{ID: 34, Protocol: protoUDP}}, Out: []Rule{{ID: 35}}})
	s.want("out goes on", s.out(mine), "none")
	s.want("in goes on", s.answer(theirs), "none")
	s.a.must(s.a.dp.EachFlow(func(f Flow) {
		if want := map[uint16]int32{mine: 35, theirs: 34}[f.Local.Port()]; f.Port == redA.id && want != 0 && f.Rule != want {
			s.t.Errorf("%s: flow of port %d is by rule %d, want %d", s.name, f.Local.Port(), f.Rule, want)
		}
	}))
}

// related: an error about a flow passes with it, one about nothing doesn't.
func (s *stateful) related() {
	s.rules(&RuleSet{})
	p := s.fresh()
	s.want("out", s.out(p), "none")
	me, peer := redA.cas()[s.family], s.peer.cas()[s.family]
	about := func(sport uint16) []byte {
		return unreachable(peer, me, udpOf(me, peer, sport, 7946, text(37)))
	}
	s.want("an error about the flow", s.in(about(p)), "none")
	s.want("an error about no flow", s.in(about(s.fresh())), "no_rule_in")
	s.want("an error that quotes the answer's direction", s.in(unreachable(peer, me, udpOf(peer, me, 7946, p, text(37)))), "no_rule_in")
	s.want("an error that quotes nothing", s.in(unreachable(peer, me, nil)), "no_rule_in")
	echo := ping(me, peer, text(29))
	s.want("a ping", s.said(s.a, func() { s.a.send(redA, redA.frame(echo)) }), "none")
	s.want("an error about the ping", s.in(unreachable(peer, me, echo)), "none")

	// And the other way: redA's own word about what it was sent.
	s.rules(&RuleSet{In: []Rule{{ID: 36}}, Out: []Rule{{ID: 37, Deny: true}}})
	q := s.fresh()
	s.want("in", s.answer(q), "none")
	mine := unreachable(me, peer, udpOf(peer, me, 7946, q, text(41)))
	s.want("its own error about the flow", s.said(s.a, func() { s.a.send(redA, redA.frame(mine)) }), "none")
	mine = unreachable(me, peer, udpOf(peer, me, 7946, s.fresh(), text(41)))
	s.want("its own error about no flow", s.said(s.a, func() { s.a.send(redA, redA.frame(mine)) }), "rule_out")
}

// epochs: a port that has changed its place has none of its old flows.
func (s *stateful) epochs() {
	s.rules(&RuleSet{})
	p := s.fresh()
	s.want("out", s.out(p), "none")
	s.want("the answer", s.answer(p), "none")
	row, err := s.a.dp.Port(redA.id)
	s.a.must(err)
	row.Epoch++
	s.a.must(s.a.dp.SetPort(redA.id, row))
	s.want("the answer after the swap", s.answer(p), "no_rule_in")
	me, peer := redA.cas()[s.family], s.peer.cas()[s.family]
	s.want("an error about the old flow", s.in(unreachable(peer, me, udpOf(me, peer, p, 7946, text(37)))), "no_rule_in")
	s.want("out again", s.out(p), "none")
	s.want("the answer to that", s.answer(p), "none")
	if err := s.a.dp.SetPort(redA.id, redA.port(s.a.taps[redA.id])); !errors.Is(err, ErrEpoch) {
		s.t.Errorf("%s: the old epoch again: got %v, want ErrEpoch", s.name, err)
	}
}
