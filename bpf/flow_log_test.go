package bpf

import (
	"fmt"
	"testing"
	"time"
)

// told reads the events that wait in the ring: kinds, packets and bytes.
func told(t *testing.T, events *FlowEventReader) (all []FlowEvent) {
	t.Helper()
	events.SetDeadline(time.Unix(1, 0)) // what is there, and no more
	for {
		e, err := events.Read()
		if err != nil {
			return all
		}
		all = append(all, e)
	}
}

// A flow that ends before a sweep finds it is told as the sweep would tell it: the
// new rules end it, its backend has gone, or the same ends begin another one.
func TestFlowsEndInTheLog(t *testing.T) {
	a, b := newWorld(t)
	events, err := a.dp.FlowEvents()
	a.must(err)
	defer events.Close()
	a.must(a.dp.SetPortFlags(redA.id, FlowLog, 0))
	for family, name := range []string{"IPv4", "IPv6"} {
		client, peer := redA.cas()[family], redB.cas()[family]
		udp, tcp := uint16(31000+family), uint16(32000+family)
		svc := &serviceCase{t: t, a: a, b: b, family: family, proto: protoTCP, name: name, port: uint16(33000 + family*100)}

		a.must(a.dp.SetRules(redA.id, &RuleSet{In: []Rule{{ID: 71}}, Out: []Rule{{ID: 72, Protocol: protoUDP}}}))
		out, in := redA.frame(udpOf(client, peer, udp, 7946, text(19))), redB.wire(redA, udpOf(peer, client, 7946, udp, text(31)))
		a.send(redA, out)
		a.receive(in)
		a.must(a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{{ID: 73, Protocol: protoUDP, Deny: true}}}))
		a.receive(in)
		a.must(a.dp.SetRules(redA.id, nil))
		seg := func(flags byte) []byte {
			return redA.frame(segment{sport: tcp, dport: 443, flags: flags, payload: text(7)}.of(client, peer))
		}
		for _, flags := range []byte{flagSYN, flagFIN | flagACK, flagSYN} {
			a.send(redA, seg(flags))
		}
		svc.set(svc.backend(redB))
		call := svc.fresh()
		svc.sends(call, flagSYN)
		svc.set(svc.backend(redA2))
		a.send(redA, redA.frame(svc.packet(client, vips[family], call, 8453, flagACK)))

		inner := len(in) - 50
		var got string
		for _, e := range told(t, events) {
			got += fmt.Sprintf("%d:%d kind %d rule %d %d packets %d bytes %s\n", e.Protocol, e.Local.Port(), e.Kind, e.Rule, e.Packets, e.Bytes, e.Drop)
			if e.Epoch != redA.epoch || e.Inbound || e.Kind == FlowEnded && (e.Began == 0 || e.Began > e.Time+20*time.Millisecond || e.Time > Now()) {
				t.Errorf("%s: event %+v", name, e)
			}
		}
		service := svc.packet(client, vips[family], call, 8453, flagSYN)
		want := fmt.Sprintf("17:%d kind 1 rule 72 1 packets %d bytes none\n", udp, len(out)) +
			fmt.Sprintf("17:%d kind 3 rule 72 2 packets %d bytes none\n", udp, len(out)+inner) +
			fmt.Sprintf("17:%d kind 2 rule 73 1 packets %d bytes rule_out\n", udp, inner) +
			fmt.Sprintf("6:%d kind 1 rule -2 1 packets %d bytes none\n", tcp, len(seg(0))) +
			fmt.Sprintf("6:%d kind 3 rule -2 2 packets %d bytes none\n", tcp, 2*len(seg(0))) +
			fmt.Sprintf("6:%d kind 1 rule -2 1 packets %d bytes none\n", tcp, len(seg(0))) +
			fmt.Sprintf("6:%d kind 1 rule -2 1 packets %d bytes none\n", call, 14+len(service)) +
			fmt.Sprintf("6:%d kind 3 rule -2 1 packets %d bytes none\n", call, 14+len(service))
		if got != want {
			t.Errorf("%s: told\n%swant\n%s", name, got, want)
		}
	}
}

// What the rings have no room for is counted, and the frames go their way.
func TestFullRings(t *testing.T) {
	a := newA(t)
	captures, err := a.dp.Captures()
	a.must(err)
	defer captures.Close()
	events, err := a.dp.FlowEvents()
	a.must(err)
	defer events.Close()
	a.must(a.dp.SetPortFlags(redA.id, FlowLog|Captured, 0))
	const frames = 12000
	before := a.drops()
	for i := range uint16(frames) {
		a.send(redA, redA.frame(udpOf(caA, caB, 20000+i, 7946, text(200))))
	}
	if passed := a.drops()["none"] - before["none"]; passed != frames {
		t.Errorf("%d frames passed, want %d", passed, frames)
	}
	captures.SetDeadline(time.Unix(1, 0))
	copies := 0
	for ; ; copies++ {
		if _, err := captures.Read(); err != nil {
			break
		}
	}
	lostCopies, err1 := a.dp.CapturesLost()
	lostEvents, err2 := a.dp.FlowEventsLost()
	a.must(err1)
	a.must(err2)
	flows := len(told(t, events))
	if flows == 0 || lostEvents == 0 || uint64(flows)+lostEvents != frames {
		t.Errorf("%d flows told and %d lost, want %d together", flows, lostEvents, frames)
	}
	if copies == 0 || lostCopies == 0 || uint64(copies)+lostCopies != 2*frames {
		t.Errorf("%d copies and %d lost, want %d together", copies, lostCopies, 2*frames)
	}
}
