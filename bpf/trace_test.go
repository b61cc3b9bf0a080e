package bpf

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// A trace says what the program would do, and leaves no mark: no counter, no flow.
func TestTrace(t *testing.T) {
	a, b := newWorld(t)
	b.must(b.dp.SetRules(redB.id, &RuleSet{In: []Rule{{ID: 91, Protocol: protoUDP, MinPort: 7946, MaxPort: 7946}}}))
	frame := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))
	sent, err := a.dp.TraceFromVM(redA.id, frame)
	if err != nil || sent.Drop != 0 || sent.Way != ToWire || sent.PA != redB.pa || sent.VNI != red || sent.RuleOut != RuleNone || sent.FlowOut != FlowNew {
		t.Fatalf("from the VM: %+v, %v", sent, err)
	}
	golden(t, "vxlan_ipv4", sent.Frame)
	got, err := b.dp.TraceFromWire(b.arriving(sent.Frame))
	want := netip.AddrPortFrom(caB, 7946)
	if err != nil || got.Drop != 0 || got.Way != ToItsVM || got.Port != redB.id || got.RuleIn != 91 || got.Dst != want || !got.Known {
		t.Errorf("from the wire: %+v, %v", got, err)
	}
	other, err := b.dp.TraceFromWire(b.arriving(tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7947, text(37))))))
	if err != nil || other.Drop.String() != "no_rule_in" || other.RuleIn != RuleDefault || other.Frame != nil {
		t.Errorf("to another port: %+v, %v", other, err)
	}
	if foreign, err := b.dp.TraceFromWire(frame); err != nil || foreign.Way != NotOurs {
		t.Errorf("not VXLAN: %+v, %v", foreign, err)
	}
	for _, h := range []*host{a, b} {
		if n := h.drops(); len(n) != 0 {
			t.Errorf("a trace has counted %v", n)
		}
		h.must(h.dp.EachFlow(func(f Flow) { t.Errorf("a trace has left the flow %+v", f) }))
	}
	before := b.drops()
	b.receive(sent.Frame)
	b.counted("the same frame, in earnest", before, "none")
}

// A refused frame has no way that a former one has found.
func TestTraceForgets(t *testing.T) {
	a := newA(t)
	for _, c := range []struct {
		what, drop string
		dst        netip.Addr
		rules      *RuleSet
		next       netip.Addr
	}{
		{"refused before it has a way", "rule_out", caB, &RuleSet{Out: []Rule{{ID: 91, Deny: true}}}, netip.Addr{}},
		{"no route", "no_route", netip.MustParseAddr("203.0.113.77"), nil, netip.Addr{}},
		{"no mapping", "no_mapping", caNobody, nil, caNobody},
	} {
		a.must(a.dp.SetRules(redA.id, nil))
		passes, err := a.dp.TraceFromVM(redA.id, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
		if err != nil || passes.PA != redB.pa || passes.NextHop != caB || passes.MAC != redB.mac {
			t.Fatalf("a frame that passes: %+v, %v", passes, err)
		}
		a.must(a.dp.SetRules(redA.id, c.rules))
		got, err := a.dp.TraceFromVM(redA.id, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, c.dst, 5353, 7946, text(37))))
		if err != nil || got.Drop.String() != c.drop || got.PA.IsValid() || got.MAC != [6]byte{} || got.NextHop != c.next {
			t.Errorf("%s: %+v, %v", c.what, got, err)
		}
	}
}

// What a capture and a flow log see of a frame that passes and of one that doesn't.
func TestCaptureAndFlowEvents(t *testing.T) {
	b := newB(t)
	captures, err := b.dp.Captures()
	b.must(err)
	defer captures.Close()
	events, err := b.dp.FlowEvents()
	b.must(err)
	defer events.Close()
	b.must(b.dp.SetRules(redB.id, &RuleSet{In: []Rule{{ID: 91, Protocol: protoUDP, MinPort: 7946, MaxPort: 7946}}}))
	send := func(port uint16) {
		b.receive(tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, port, text(37)))))
	}
	send(7946) // nobody looks yet
	b.must(b.dp.SetPortFlags(redB.id, Captured|FlowLog, 0))
	send(7946)
	send(7947)
	for _, want := range []Capture{{Point: AtFromWire, Len: 129}, {Point: AtToVM, Len: 79}, {Point: AtFromWire, Len: 129}, {Point: AtDrop, Len: 129, Drop: DropReason(datapathDropReasonDROP_NO_RULE_IN)}} {
		got, err := captures.Read()
		if err != nil || got.Port != redB.id || got.Point != want.Point || got.Len != want.Len || got.Drop != want.Drop || len(got.Frame) != got.Len || got.Time == 0 {
			t.Errorf("captured %+v, %v, want %+v", got, err, want)
		}
	}
	e, err := events.Read()
	if err != nil || e.Kind != FlowDenied || e.Rule != RuleDefault || !e.Inbound || e.Protocol != protoUDP || e.Local != netip.AddrPortFrom(caB, 7947) || e.Remote != netip.AddrPortFrom(caA, 5353) || e.Drop.String() != "no_rule_in" {
		t.Errorf("flow event %+v, %v", e, err)
	}
	if lost, err := b.dp.CapturesLost(); err != nil || lost != 0 {
		t.Errorf("lost %d, %v", lost, err)
	}
}

// The ring of flow events is everybody's: a port that has frames refused without end
// fills no more of it than its share, and what it doesn't tell is counted.
func TestDeniedFlowsAreBounded(t *testing.T) {
	b := newB(t)
	b.must(b.dp.SetRules(redB.id, &RuleSet{}))
	b.must(b.dp.SetPortFlags(redB.id, FlowLog, 0))
	events, err := b.dp.FlowEvents()
	b.must(err)
	defer events.Close()
	const frames = 2500
	begun := Now()
	for port := range uint16(frames) {
		b.receive(redA.wire(redB, udpOf(caA, caB, 20000+port, 7946, nil)))
	}
	share := 1001 + int((Now()-begun)/time.Millisecond) // the burst, and one a millisecond
	b.must(b.dp.SetRules(redB.id, nil))
	b.receive(redA.wire(redB, udpOf(caA, caB, 20000, 7946, nil))) // begins, whatever went before
	denied := 0
	for {
		e, err := events.Read()
		b.must(err)
		if e.Kind != FlowDenied {
			break
		}
		denied++
	}
	lost, err := b.dp.FlowEventsLost()
	if err != nil || denied < 1000 || denied > share || uint64(denied)+lost != frames {
		t.Errorf("told of %d of %d refused flows, want 1,000 to %d, %d lost, %v", denied, frames, share, lost, err)
	}
}

// A frame that the port of the same host refuses is in the capture of either, and
// whoever watches all drops can tell that it is one.
func TestCaptureOfBothEnds(t *testing.T) {
	a := newA(t)
	captures, err := a.dp.Captures()
	a.must(err)
	defer captures.Close()
	a.must(a.dp.SetRules(redA2.id, &RuleSet{In: []Rule{{ID: 91, Protocol: protoUDP, MinPort: 7946, MaxPort: 7946}}}))
	refused := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caA2, 5353, 7947, text(37)))
	noRule := DropReason(datapathDropReasonDROP_NO_RULE_IN)
	a.send(redA, refused) // nobody looks yet
	a.must(a.dp.SetPortFlags(redA2.id, Captured, 0))
	a.send(redA, refused)
	a.must(a.dp.SetPortFlags(redA2.id, 0, Captured))
	a.must(a.dp.WatchDrops(true))
	a.send(redA, refused)
	spoofed := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caB, caA2, 5353, 7947, text(37)))
	a.send(redA, spoofed) // did not come so far
	for i, want := range []Capture{
		{Port: redA2.id, Point: AtDropTo, Drop: noRule, Sender: redA.id}, {Port: redA.id, Point: AtDrop, Drop: noRule}, {Port: redA2.id, Point: AtDropTo, Drop: noRule, Sender: redA.id},
		{Port: redA.id, Point: AtDrop, Drop: DropReason(datapathDropReasonDROP_SPOOFED_CA)},
	} {
		got, err := captures.Read()
		if err != nil || got.Port != want.Port || got.Point != want.Point || got.Drop != want.Drop || got.Sender != want.Sender || got.Len != len(refused) {
			t.Errorf("copy %d: %+v, %v, want %+v", i, got, err, want)
		}
	}
}

// What the driver's hook drops is seen by whoever watches, too.
func TestWatchDropsOfNIC(t *testing.T) {
	b := newB(t)
	b.must(b.dp.SetPortFlags(redB.id, XDP, 0))
	n := nicCase{t: t, h: b, from: redA, to: redB, name: "IPv4 over IPv4"}
	known := n.udp(5363)
	n.begin(known)
	forged := tunnel{src: redA2.pa, dst: redB.pa, vni: red}.with(redA.inner(redB, known))
	captures, err := b.dp.Captures()
	b.must(err)
	defer captures.Close()
	drop := func() {
		if v, _ := b.fromNIC(forged); v != xdpDrop {
			t.Fatalf("verdict %d, want a drop", v)
		}
	}
	drop() // nobody looks yet
	b.must(b.dp.WatchDrops(true))
	drop()
	got, err := captures.Read()
	if err != nil || got.Port != redB.id || got.Point != AtDrop || got.Drop.String() != "wrong_source" || !bytes.Equal(got.Frame, b.arriving(forged)) {
		t.Errorf("copied %+v, %v", got, err)
	}
}

// A reply of the metadata service that has nowhere to go is seen by whoever watches.
func TestWatchDropsOfMetadata(t *testing.T) {
	a := newA(t)
	p, err := a.dp.Port(redA.id)
	a.must(err)
	captures, err := a.dp.Captures()
	a.must(err)
	defer captures.Close()
	reply := func(epoch uint64) []byte {
		packet := segment{sport: 80, dport: 40321, flags: flagACK, payload: text(37)}.of(imds, callerOf(redA.id, epoch))
		return eth([6]byte{}, imdsMAC, etherIPv4, packet)
	}
	stale := reply(p.Epoch + 1)
	drop := func() { a.run(a.dp.objs.FromHost, skb{Ifindex: 1}, stale) }
	drop() // nobody looks yet
	a.must(a.dp.WatchDrops(true))
	a.run(a.dp.objs.FromHost, skb{Ifindex: 1}, reply(p.Epoch)) // is delivered
	drop()
	got, err := captures.Read()
	if err != nil || got.Port != redA.id || got.Point != AtDrop || got.Drop.String() != "stale_epoch" || !bytes.Equal(got.Frame, stale) {
		t.Errorf("copied %+v, %v", got, err)
	}
}

// A trace tells the two ends of a service's translation, and which of them the VM is.
func TestTraceOfService(t *testing.T) {
	a := newA(t)
	vip := netip.MustParseAddrPort("10.17.34.99:8443")
	backend := netip.AddrPortFrom(caA2, 7946)
	a.must(a.dp.SetService(Service{ServiceKey: ServiceKey{VNI: red, VIP: vip.Addr(), Port: vip.Port(), Protocol: protoUDP},
		Backends: []Backend{{CA: caA2, Port: 7946, Weight: 100}}}))
	asks := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, vip.Addr(), 5353, vip.Port(), text(37)))
	got, err := a.dp.TraceFromVM(redA.id, asks)
	if err != nil || got.Way != ToPort || got.ToPort != redA2.id || got.Translated != backend || got.Answers || got.NextHop != caA2 {
		t.Errorf("to the service: %+v, %v", got, err)
	}
	a.send(redA, asks) // in earnest: now the answer has a flow
	answers := eth(gatewayMAC, redA2.mac, etherIPv4, udp4(caA2, caA, 7946, 5353, text(37)))
	got, err = a.dp.TraceFromVM(redA2.id, answers)
	if err != nil || got.Way != ToPort || got.ToPort != redA.id || got.Translated != vip || !got.Answers {
		t.Errorf("the backend's answer: %+v, %v", got, err)
	}
}
