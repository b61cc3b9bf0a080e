package bpf

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// A traced frame changes nothing: whatever becomes of it, every map that is
// pinned holds what it held, and nobody reads of it in a ring. The same frame in
// earnest does leave a mark, so that the comparison is seen to see.
func TestTraceLeavesNoMark(t *testing.T) {
	a, b := newWorld(t)
	for _, h := range []*host{a, b} {
		id, peer := redA.id, redA2.id
		if h == b {
			id, peer = redB.id, blueB.id
		}
		h.must(h.dp.SetRules(id, &RuleSet{In: []Rule{{ID: 91, Protocol: protoUDP}, {ID: 92, Protocol: protoTCP}}}))
		h.must(h.dp.SetLimits(id, Limits{From: Rate{Packets: 9000, Bits: 9_000_000}, To: Rate{Packets: 7000, Bits: 7_000_000}}))
		h.must(h.dp.SetPortFlags(id, Captured|FlowLog|Timed, 0))
		h.must(h.dp.SetLimits(peer, Limits{To: Rate{Packets: 7000}}))
	}
	a.must(a.dp.SetService(serviceOf(0, protoTCP, Backend{CA: caB, Port: 7951, Weight: 3})))
	gateway6 := redA.gateways()[1]
	for name, packet := range map[string][]byte{
		"a new flow to the wire": udpOf(caA, caB, 21001, 7946, text(37)),
		"a new flow on the host": udpOf(caA6, caA26, 21002, 7946, text(37)),
		"a first fragment":       fragment(caA6, caB6, protoUDP, 0x5a31, 0, true, udp(caA6, caB6, 21003, 7946, text(40))),
		"a service":              segment{sport: 21004, dport: 8453, flags: flagSYN}.of(caA, vips[0]),
		"DHCP":                   udpOf(caA, gateway, 68, 67, text(251)),
		"a router solicitation":  nd(redA.linkLocal(), addr("ff02::2"), ndRS, make([]byte, 4)),
		"a ping to the gateway":  ping(caA6, gateway6, text(29)),
		"a solicitation":         solicit(caA6, gateway6, gateway6, redA.mac),
		"metadata":               tcpOf(caA, imds, 40321, 80, text(31)),
		"a refused one":          udpOf(caA26, caB6, 21005, 7946, text(37)),
		"one without a mapping":  udpOf(caA, caNobody, 21006, 7946, text(37)),
		"one too big":            udpOf(caA6, caB6, 21007, 7946, text(1480)),
	} {
		quiet(t, a, "from the VM: "+name, func(mark uint32) {
			a.run(a.dp.objs.FromVm, skb{Ifindex: uint32(a.taps[redA.id]), Mark: mark}, redA.frame(packet))
		})
	}
	unknown := tunnel{src: addr("100.64.18.211"), dst: redB.pa, vni: red}.with(redA.inner(redB, udpOf(caNobody, caB, 21008, 7946, text(37))))
	for name, frame := range map[string][]byte{
		"a new flow":           redA.wire(redB, udpOf(caA, caB, 21001, 7946, text(37))),
		"TCP":                  redA.wire(redB, segment{sport: 21009, dport: 7946, flags: flagSYN}.of(caA6, caB6)),
		"a source that is new": unknown,
		"a refused one":        redA.wire(redB, ping(caA, caB, text(29))),
		"one for another CA":   redA.wire(redB, udpOf(caA, caNobody, 21001, 7946, text(37))),
	} {
		quiet(t, b, "from the wire: "+name, func(mark uint32) {
			b.run(b.dp.objs.FromWire, skb{Ifindex: uint32(b.uplink.Attrs().Index), Mark: mark}, b.arriving(frame))
		})
	}
	quietFlows(t, a)
}

// quietFlows: what a known flow's packet would change, and what changed rules
// and a dead backend would end.
func quietFlows(t *testing.T, a *host) {
	send := func(packet []byte) func(uint32) {
		return func(mark uint32) {
			a.run(a.dp.objs.FromVm, skb{Ifindex: uint32(a.taps[redA.id]), Mark: mark}, redA.frame(packet))
		}
	}
	known := segment{sport: 21010, dport: 7946, flags: flagSYN}
	send(known.of(caA, caB))(0)
	known.flags = flagACK | flagFIN
	a.must(a.dp.PutMappings(redB.mapping(7))) // whose way must be found again
	quiet(t, a, "a known flow ends", send(known.of(caA, caB)))
	service := segment{sport: 21011, dport: 8453, flags: flagSYN}
	send(service.of(caA, vips[0]))(0)
	a.must(a.dp.SetService(serviceOf(0, protoTCP, Backend{CA: caB, Port: 7951, Weight: 3, Dead: true})))
	quiet(t, a, "a flow whose backend is dead", send(service.of(caA, vips[0])))
	udp := udpOf(caA, caB, 21012, 7946, text(37))
	send(udp)(0)
	a.must(a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{{Deny: true}}}))
	quiet(t, a, "a flow that the rules now forbid", send(udp))
}

// quiet runs try traced, which must change nothing, and in earnest, which must.
func quiet(t *testing.T, h *host, name string, try func(mark uint32)) {
	t.Helper()
	before := contents(h)
	try(h.dp.trace)
	for m, is := range contents(h) {
		if was := before[m]; !reflect.DeepEqual(is, was) {
			t.Errorf("%s: a trace changes %s: %v, was %v", name, m, is, was)
		}
	}
	try(0)
	if reflect.DeepEqual(contents(h), before) {
		t.Errorf("%s: in earnest nothing changes: the comparison sees nothing", name)
	}
}

// contents are the rows that frames of the tests' ports write, and what is in
// the rings. Shortcuts only save time, and a trace may find them, too.
func contents(h *host) map[string]map[string]string {
	h.t.Helper()
	all := map[string]map[string]string{"drops": {}, "lost": {}, "port": {}, "flows": {}, "fragments": {}}
	for r, n := range h.drops() {
		all["drops"][r] = fmt.Sprint(n)
	}
	lost, err := h.dp.losses()
	h.must(err)
	all["lost"]["all"] = fmt.Sprint(lost)
	for _, m := range []member{redA, redA2, blueA, redB, blueB} {
		n, err := h.dp.PortCounters(m.id)
		h.must(err)
		from, to, err := h.dp.Times(m.id)
		h.must(err)
		var b datapathFlowBudget
		h.must(h.dp.objs.FlowBudgets.Lookup(uint32(m.id), &b))
		all["port"][fmt.Sprint(m.id)] = fmt.Sprintf("%+v %+v %+v %+v", n, from, to, b)
		for kind := range bucketsOfPort {
			all["port"][fmt.Sprintf("bucket %d of %d", kind, m.id)] = fmt.Sprint(h.due(m.id, kind))
		}
	}
	h.must(h.dp.eachFlow(func(k datapathFlowKey, v datapathFlow) error {
		all["flows"][fmt.Sprint(k)] = fmt.Sprint(v)
		return nil
	}))
	h.must(each(h.dp.objs.Fragments, func(k datapathFragmentKey, v datapathFragment) error {
		all["fragments"][fmt.Sprint(k)] = fmt.Sprint(v)
		return nil
	}))
	all["rings"] = map[string]string{}
	for name, m := range map[string]*ebpf.Map{"traps": h.dp.objs.Traps, "captures": h.dp.objs.Captures, "flow_events": h.dp.objs.FlowEvents} {
		ring, err := ringbuf.NewReader(m)
		h.must(err)
		all["rings"][name] = fmt.Sprint(ring.AvailableBytes())
		h.must(ring.Close())
	}
	return all
}
