package bpf

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// What rules, quotas, draining, a swap, limits and services refuse, for both
// families, from a VM and to one: by the wire and on the same host.
func dropsOfPolicy(t *testing.T, seen covered, a, b *host) {
	for family := range 2 {
		name := []string{"IPv4", "IPv6"}[family]
		p := &policyCase{t: t, seen: seen, a: a, b: b, family: family, name: name, port: uint16(20000 + 3000*family)}
		p.rules()
		p.midstream()
		p.draining()
		p.quota()
		p.limits()
		p.services()
	}
}

// A policyCase sends flows that nobody has seen before: each has a source port of its own.
type policyCase struct {
	t      *testing.T
	seen   covered
	a, b   *host
	family int
	name   string
	port   uint16
}

func (p *policyCase) fresh() uint16 { p.port++; return p.port }

// udp sends a datagram of a new flow from a's VM to b's, and returns both hosts' verdicts.
func (p *policyCase) udp(sport uint16) []byte {
	return udpOf(redA.cas()[p.family], redB.cas()[p.family], sport, 7946, text(37))
}

func (p *policyCase) sends(packet []byte) func() uint32 {
	return func() uint32 { v, _ := p.a.send(redA, redA.frame(packet)); return v }
}

func (p *policyCase) gets(packet []byte) func() uint32 {
	return func() uint32 { v, _ := p.b.receive(redA.wire(redB, packet)); return v }
}

// local is a datagram of a new flow to a VM of the same host.
func (p *policyCase) local() func() uint32 { return p.sends(p.near(p.fresh())) }

func (p *policyCase) near(sport uint16) []byte {
	return udpOf(redA.cas()[p.family], redA2.cas()[p.family], sport, 7946, text(37))
}

func (p *policyCase) passes(h *host, what string, try func() uint32) {
	p.t.Helper()
	before := h.drops()
	if v := try(); v != actRedirect {
		p.t.Errorf("%s, %s: verdict %d, want it to pass", what, p.name, int32(v))
	}
	h.counted(what+", "+p.name, before, "none")
}

func (p *policyCase) refused(h *host, what, reason string, try func() uint32) {
	p.t.Helper()
	p.seen.refused(h, what+", "+p.name, reason, try)
}

func (p *policyCase) rules() {
	some := RuleSet{In: []Rule{{ID: 71, Deny: true, Protocol: protoUDP}}, Out: []Rule{{ID: 72, Deny: true, Protocol: protoUDP}}}
	p.a.must(p.a.dp.SetRules(redA.id, &RuleSet{Out: some.Out}))
	p.refused(p.a, "a rule denies it out", "rule_out", p.sends(p.udp(p.fresh())))
	p.a.must(errors.Join(p.a.dp.SetRules(redA.id, nil), p.a.dp.SetRules(redA2.id, &RuleSet{In: some.In}), p.b.dp.SetRules(redB.id, &RuleSet{In: some.In})))
	p.passes(p.a, "no rules out", p.sends(p.udp(p.fresh())))
	p.refused(p.b, "a rule denies it in, from the wire", "rule_in", p.gets(p.udp(p.fresh())))
	p.refused(p.a, "a rule denies it in, on the same host", "rule_in", p.local())
	p.a.must(errors.Join(p.a.dp.SetRules(redA2.id, &RuleSet{}), p.b.dp.SetRules(redB.id, &RuleSet{})))
	p.refused(p.b, "no rule allows it in, from the wire", "no_rule_in", p.gets(p.udp(p.fresh())))
	p.refused(p.a, "no rule allows it in, on the same host", "no_rule_in", p.local())
	p.a.must(errors.Join(p.a.dp.SetRules(redA2.id, nil), p.b.dp.SetRules(redB.id, nil)))
	p.passes(p.b, "no rules in, from the wire", p.gets(p.udp(p.fresh())))
	p.passes(p.a, "no rules in, on the same host", p.local())
}

// A TCP segment of a connection that began elsewhere: refused once the port is
// strict, and answered by a reset if it is to be.
func (p *policyCase) midstream() {
	seg := func(flags byte) []byte {
		return segment{sport: p.fresh(), dport: 7946, flags: flags, payload: text(19)}.of(redA.cas()[p.family], redB.cas()[p.family])
	}
	p.passes(p.a, "mid-stream to a port that isn't strict", p.sends(seg(flagACK)))
	p.a.must(errors.Join(p.a.dp.SetPortFlags(redA.id, Strict, 0), p.b.dp.SetPortFlags(redB.id, Strict, 0)))
	p.refused(p.a, "mid-stream out", "midstream", p.sends(seg(flagACK)))
	p.refused(p.b, "mid-stream in", "midstream", p.gets(seg(flagACK)))
	p.passes(p.a, "a SYN out", p.sends(seg(flagSYN)))
	p.passes(p.b, "a SYN in", p.gets(seg(flagSYN)))

	p.a.must(errors.Join(p.a.dp.SetPortFlags(redA.id, Reset, 0), p.b.dp.SetPortFlags(redB.id, Reset, 0)))
	p.refused(p.a, "a reset in mid-stream, which nobody answers", "midstream", p.sends(seg(flagRST)))
	p.answered(p.a, "mid-stream out", "reset_to_vm", func() (uint32, []byte) { return p.a.send(redA, redA.frame(p.ending(flagACK))) })
	p.answered(p.b, "mid-stream in", "reset_by_wire", func() (uint32, []byte) { return p.b.receive(redA.wire(redB, p.ending(flagACK))) })
	p.answered(p.a, "a FIN without an ACK", "reset_of_fin", func() (uint32, []byte) { return p.a.send(redA, redA.frame(p.ending(flagFIN))) })
	p.a.must(errors.Join(p.a.dp.SetPortFlags(redA.id, 0, Strict|Reset), p.b.dp.SetPortFlags(redB.id, 0, Strict|Reset)))
	p.midstreamNear()
}

// midstreamNear: the same of a receiver on the sender's host.
func (p *policyCase) midstreamNear() {
	seg := func(flags byte) []byte {
		return segment{sport: p.fresh(), dport: 7946, flags: flags, payload: text(19)}.of(redA.cas()[p.family], redA2.cas()[p.family])
	}
	p.passes(p.a, "mid-stream to a port of this host that isn't strict", p.sends(seg(flagACK)))
	p.a.must(p.a.dp.SetPortFlags(redA2.id, Strict, 0))
	p.refused(p.a, "mid-stream in, on the same host", "midstream", p.sends(seg(flagACK)))
	p.passes(p.a, "a SYN in, on the same host", p.sends(seg(flagSYN)))
	p.a.must(p.a.dp.SetPortFlags(redA2.id, Reset, 0))
	before := p.a.drops()
	v, out := p.a.send(redA, redA.frame(seg(flagACK)))
	p.a.counted("mid-stream in, on the same host, answered, "+p.name, before, "midstream")
	if v != actRedirect || !isReset(out) || rightSums(out) != "" || [6]byte(out[:6]) != redA.mac {
		p.t.Errorf("mid-stream in, on the same host, %s: verdict %d, want a reset to the sender\n%s", p.name, int32(v), dump(out))
	}
	p.a.must(p.a.dp.SetPortFlags(redA2.id, 0, Strict|Reset))
}

// ending is a segment whose reset is compared with a golden frame: with a
// timestamp and data.
func (p *policyCase) ending(flags byte) []byte {
	options := []byte{1, 1, 8, 10, 0x5a, 0x6b, 0x7c, 0x8d, 0x9e, 0xaf, 0xb1, 0xc2}
	return segment{sport: 40327, dport: 7949, flags: flags, options: options, payload: text(71)}.of(redA.cas()[p.family], redB.cas()[p.family])
}

// answered fails unless try is refused as mid-stream and turned into the golden reset.
func (p *policyCase) answered(h *host, what, file string, try func() (uint32, []byte)) {
	p.t.Helper()
	before := h.drops()
	v, out := try()
	h.counted(what+", answered, "+p.name, before, "midstream")
	if v != actRedirect {
		p.t.Fatalf("%s, %s: verdict %d, want the answer", what, p.name, int32(v))
	}
	golden(p.t, fmt.Sprintf("%s_ipv%d", file, 4+2*p.family), out)
	inner := out
	if file == "reset_by_wire" {
		inner = out[50:]
	}
	if wrong := rightSums(inner); wrong != "" {
		p.t.Errorf("%s, %s: %s is wrong", what, p.name, wrong)
	}
}

func (p *policyCase) draining() {
	old := p.udp(p.fresh())
	p.passes(p.a, "a flow before the port drains", p.sends(old))
	p.passes(p.b, "a flow before the port drains", p.gets(old))
	p.a.must(errors.Join(p.a.dp.SetPortFlags(redA.id, Draining, 0), p.b.dp.SetPortFlags(redB.id, Draining, 0)))
	p.refused(p.a, "a new flow of a draining port", "draining", p.sends(p.udp(p.fresh())))
	p.refused(p.b, "a new flow to a draining port", "draining", p.gets(p.udp(p.fresh())))
	p.passes(p.a, "an old flow of a draining port", p.sends(old))
	p.passes(p.b, "an old flow to a draining port", p.gets(old))
	p.a.must(errors.Join(p.a.dp.SetPortFlags(redA.id, 0, Draining), p.b.dp.SetPortFlags(redB.id, 0, Draining)))
	p.passes(p.a, "a new flow once it drains no more", p.sends(p.udp(p.fresh())))

	near := p.sends(p.near(p.fresh()))
	p.passes(p.a, "a flow on the same host before its receiver drains", near)
	p.a.must(p.a.dp.SetPortFlags(redA2.id, Draining, 0))
	p.refused(p.a, "a new flow to a draining port of this host", "draining", p.local())
	p.passes(p.a, "an old flow to a draining port of this host", near)
	p.a.must(p.a.dp.SetPortFlags(redA2.id, 0, Draining))
}

func (p *policyCase) quota() {
	sweep := func(room uint32) {
		_, err := p.a.dp.Sweep(func(_ uint16, rows uint32) uint32 { return rows + room }, nil)
		p.a.must(err)
	}
	near := func(room uint32) { // room for the receiver alone
		_, err := p.a.dp.Sweep(func(id uint16, rows uint32) uint32 {
			if id == redA2.id {
				return rows + room
			}
			return rows + 1000
		}, nil)
		p.a.must(err)
	}
	near(1)
	first := p.sends(p.near(p.fresh()))
	p.passes(p.a, "the last flow to a port of this host", first)
	p.refused(p.a, "one flow too many to a port of this host", "flow_quota", p.local())
	p.passes(p.a, "a flow to a port of this host that is there", first)
	sweep(2)
	old := p.udp(p.fresh())
	p.passes(p.a, "the last flow but one", p.sends(old))
	p.passes(p.a, "the last flow", p.sends(p.udp(p.fresh())))
	p.refused(p.a, "one flow too many", "flow_quota", p.sends(p.udp(p.fresh())))
	p.passes(p.a, "a flow that is there", p.sends(old))
	sweep(1000)
	p.passes(p.a, "a flow within the new quota", p.sends(p.udp(p.fresh())))
}

func (p *policyCase) limits() {
	rate := Rate{Packets: 9000}
	p.a.must(errors.Join(p.a.dp.SetLimits(redA.id, Limits{From: rate}), p.b.dp.SetLimits(redB.id, Limits{To: rate})))
	out, in := p.sends(p.udp(p.fresh())), p.gets(p.udp(p.fresh()))
	p.passes(p.a, "within the limit from", out)
	p.passes(p.b, "within the limit to", in)
	p.a.drain(redA.id, bucketFromPackets)
	p.b.drain(redB.id, bucketToPackets)
	p.refused(p.a, "above the limit from", "rate_from", out)
	p.refused(p.b, "above the limit to", "rate_to", in)
	p.a.must(errors.Join(p.a.dp.SetLimits(redA.id, Limits{}), p.b.dp.SetLimits(redB.id, Limits{})))
	p.passes(p.a, "without a limit from", out)
	p.passes(p.b, "without a limit to", in)
	p.a.must(p.a.dp.SetLimits(redA2.id, Limits{To: rate}))
	near := p.local()
	p.passes(p.a, "within the limit to a port of this host", near)
	p.a.drain(redA2.id, bucketToPackets)
	p.refused(p.a, "above the limit to a port of this host", "rate_to", near)
	p.a.must(p.a.dp.SetLimits(redA2.id, Limits{}))
}

func (p *policyCase) services() {
	vip := []string{"10.17.34.203", "fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b7cb"}[p.family]
	key := ServiceKey{VNI: red, VIP: addr(vip), Port: 8453, Protocol: protoTCP}
	seg := func(sport uint16, flags byte) []byte {
		return segment{sport: sport, dport: 8453, flags: flags, payload: text(19)}.of(redA.cas()[p.family], key.VIP)
	}
	backend := Backend{CA: redB.cas()[p.family], Port: 7951, Weight: 3}
	p.a.must(p.a.dp.SetService(Service{ServiceKey: key}))
	p.refused(p.a, "a service without backends", "no_backend", p.sends(seg(p.fresh(), flagSYN)))
	p.a.must(p.a.dp.SetService(Service{ServiceKey: key, Backends: []Backend{backend}}))
	flow := p.fresh()
	p.passes(p.a, "a service with a backend", p.sends(seg(flow, flagSYN)))
	p.passes(p.a, "its flow goes on", p.sends(seg(flow, flagACK)))

	direct := segment{sport: flow, dport: 7951, flags: flagACK}.of(redA.cas()[p.family], backend.CA)
	p.refused(p.a, "straight to the backend by the same ports", "service_clash", p.sends(direct))
	other := segment{sport: p.fresh(), dport: 7951, flags: flagSYN}.of(redA.cas()[p.family], backend.CA)
	p.passes(p.a, "straight to the backend by other ports", p.sends(other))

	dead := backend
	dead.Dead = true
	p.a.must(p.a.dp.SetService(Service{ServiceKey: key, Backends: []Backend{dead}}))
	p.refused(p.a, "a reset to a dead backend", "dead_backend", p.sends(seg(flow, flagRST)))
	p.a.must(p.a.dp.SetService(Service{ServiceKey: key, Backends: []Backend{backend}}))
	flow = p.fresh()
	p.passes(p.a, "the backend is back", p.sends(seg(flow, flagSYN)))
	p.a.must(p.a.dp.DeleteService(key))
	before := p.a.drops()
	v, out := p.a.send(redA, redA.frame(seg(flow, flagACK)))
	p.a.counted("the service has gone, "+p.name, before, "dead_backend")
	if v != actRedirect || !isReset(out) {
		p.t.Errorf("the service has gone, %s: verdict %d, want a reset; got\n%s", p.name, int32(v), dump(out))
	}
}

// isReset says whether a frame is a TCP reset with right checksums.
func isReset(frame []byte) bool {
	header := 20
	if frame[14]>>4 == 6 {
		header = 40
	}
	return len(frame) == 14+header+20 && frame[14+header+13]&flagRST != 0 && rightSums(frame) == ""
}

// The buckets of a port.
const (
	bucketTrap        = uint32(datapathBucketBUCKET_TRAP)
	bucketUnresolved  = uint32(datapathBucketBUCKET_UNRESOLVED)
	bucketAnswer      = uint32(datapathBucketBUCKET_ANSWER)
	bucketFromBytes   = uint32(datapathBucketBUCKET_FROM_BYTES)
	bucketFromPackets = uint32(datapathBucketBUCKET_FROM_PACKETS)
	bucketToBytes     = uint32(datapathBucketBUCKET_TO_BYTES)
	bucketToPackets   = uint32(datapathBucketBUCKET_TO_PACKETS)
	bucketTooBig      = uint32(datapathBucketBUCKET_TOO_BIG)
	bucketsOfPort     = uint32(datapathBucketBUCKETS)
)

// drain takes what a bucket holds, and what it gets in the next hour.
func (h *host) drain(id uint16, kind uint32) {
	h.t.Helper()
	h.must(h.dp.objs.Buckets.Put(uint32(id)*bucketsOfPort+kind, uint64(Now()+time.Hour)))
}

// resetBuckets fills the buckets of a port again.
func (h *host) resetBuckets(id uint16) error {
	var errs []error
	for kind := range bucketsOfPort {
		errs = append(errs, h.dp.objs.Buckets.Put(uint32(id)*bucketsOfPort+kind, uint64(0)))
	}
	return errors.Join(errs...)
}
