package bpf

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// The verdicts of enum xdp_action in linux/bpf.h.
const (
	xdpDrop     = uint32(1)
	xdpPass     = uint32(2)
	xdpRedirect = uint32(4)
)

// fromNIC is a frame from the underlay, before the kernel has made anything of it.
func (h *host) fromNIC(frame []byte) (uint32, []byte) {
	h.t.Helper()
	opts := ebpf.RunOptions{Data: h.arriving(frame), DataOut: make([]byte, len(frame)+256)}
	v, err := h.dp.objs.FromNic.Run(&opts)
	h.must(err)
	return v, opts.DataOut
}

// The driver's hook takes what it may: packets of a known flow that GRO doesn't
// merge, for a tap. All else goes on, uncounted, to from_wire, which judges it.
func TestFromNIC(t *testing.T) {
	b := newB(t)
	nicUnderlay(t, b, "IPv4", redA, redB)
	_, b = newWorld6(t)
	nicUnderlay(t, b, "IPv6", redA.over6(), redB.over6())
}

func nicUnderlay(t *testing.T, b *host, under string, from, to member) {
	b.must(b.dp.SetPortFlags(to.id, XDP, 0))
	for family, name := range []string{"IPv4", "IPv6"} {
		n := nicCase{t: t, h: b, from: from, to: to, family: family, name: fmt.Sprintf("%s over %s", name, under)}
		n.known()
		n.waits()
		n.goesOn()
		n.refused()
	}
}

type nicCase struct {
	t        *testing.T
	h        *host
	from, to member
	family   int
	name     string
}

func (n nicCase) udp(sport uint16) []byte {
	return udpOf(n.from.cas()[n.family], n.to.cas()[n.family], sport, 7946, text(37))
}

// begin lets the flow of a packet begin, in the hook that does that.
func (n nicCase) begin(packet []byte) {
	n.t.Helper()
	if v, _ := n.h.receive(n.from.wire(n.to, packet)); v != actRedirect {
		n.t.Fatalf("%s: a first packet: verdict %d; %v", n.name, int32(v), n.h.drops())
	}
	n.h.arrive()
}

// arrive stands for the kernel, which carries what from_nic has numbered to from_wire.
func (h *host) arrive() {
	h.t.Helper()
	h.must(h.dp.eachFlow(func(k datapathFlowKey, row datapathFlow) error {
		if row.Arrived == row.Passed {
			return nil
		}
		row.Arrived = row.Passed
		return h.dp.putFlow(k, row, ebpf.UpdateExist)
	}))
}

// known: the outer headers go, what is left is what from_wire would deliver.
func (n nicCase) known() {
	for name, packet := range map[string][]byte{
		"UDP":  n.udp(5353),
		"ping": ping(n.from.cas()[n.family], n.to.cas()[n.family], text(29)),
		"SCTP": sctpOf(n.from.cas()[n.family], n.to.cas()[n.family], 5355, 7946),
	} {
		n.begin(packet)
		before := n.h.drops()
		c, err := n.h.dp.PortCounters(n.to.id)
		n.h.must(err)
		v, got := n.h.fromNIC(n.from.wire(n.to, packet))
		if want := eth(n.to.mac, gatewayMAC, etherOf(packet), packet); v != xdpRedirect || !bytes.Equal(got, want) {
			n.t.Errorf("%s of %s: verdict %d, got\n%swant\n%s", name, n.name, v, dump(got), dump(want))
		}
		n.h.counted(name+" of "+n.name, before, "none")
		after, err := n.h.dp.PortCounters(n.to.id)
		if err != nil || after.ToPackets != c.ToPackets+1 || after.ToBytes != c.ToBytes+14+uint64(len(packet)) {
			n.t.Errorf("%s of %s: counted %+v after %+v, %v", name, n.name, after, c, err)
		}
	}
}

// waits: a frame that has gone on may still be held by GRO when the next ones come,
// which follow it until from_wire has seen the last of them (invariant 13).
func (n nicCase) waits() {
	small, large := n.from.wire(n.to, n.udp(5365)), n.from.wire(n.to, udpOf(n.from.cas()[n.family], n.to.cas()[n.family], 5365, 7946, text(5000)))
	if v, _ := n.h.receive(small); v != actRedirect {
		n.t.Fatalf("%s: a first packet: verdict %d; %v", n.name, int32(v), n.h.drops())
	}
	n.passesOn("behind the first frame of its flow", small, true)
	n.passesOn("behind the second", small, true)
	n.h.arrive()
	if v, _ := n.h.fromNIC(small); v != xdpRedirect {
		n.t.Errorf("%s: all have arrived: verdict %d, want a redirect", n.name, v)
	}
	n.passesOn("a frame of several buffers", large, true)
	n.passesOn("behind a frame of several buffers", small, true)
	n.h.arrive()
	if v, _ := n.h.fromNIC(small); v != xdpRedirect {
		n.t.Errorf("%s: all have arrived again: verdict %d, want a redirect", n.name, v)
	}
}

// goesOn: each alone is a reason not to take it here.
func (n nicCase) goesOn() {
	src, dst := n.from.cas()[n.family], n.to.cas()[n.family]
	known := n.udp(5357)
	n.begin(known)
	tcp := segment{sport: 5359, dport: 7946, flags: flagSYN}.of(src, dst)
	n.begin(tcp)
	n.begin(fragment(src, dst, protoUDP, 0x4d31, 0, true, known[len(known)-45:][:24]))
	wire := n.from.wire(n.to, known)
	congested := append([]byte(nil), wire...)
	if n.from.pa.Is4() {
		congested[15] |= 3
		sumTo(congested[14:34])
	} else {
		congested[15] |= 3 << 4
	}
	other := append([]byte(nil), n.h.arriving(wire)...)
	other[5] ^= 0x11
	numbered := []string{"a first fragment", "congestion"} // of a known flow, and what comes behind must wait for it
	for name, frame := range map[string][]byte{
		"a new flow":                  n.from.wire(n.to, n.udp(5361)),
		"TCP":                         n.from.wire(n.to, tcp),
		"a first fragment":            n.from.wire(n.to, fragment(src, dst, protoUDP, 0x4d31, 0, true, known[len(known)-45:][:24])),
		"a later fragment":            n.from.wire(n.to, fragment(src, dst, protoUDP, 0x4d31, 24, false, text(16))),
		"an ICMP error":               n.from.wire(n.to, unreachable(src, dst, udpOf(dst, src, 7946, 5357, text(37)))),
		"congestion":                  congested,
		"no port here":                tunnel{src: n.from.pa, dst: n.to.pa, vni: red}.with(n.from.inner(redA2, known)),
		"a truncated inner header":    n.from.wire(n.to, known)[:len(wire)-len(known)+15],
		"what isn't VXLAN":            n.from.frame(known),
		"another UDP port's datagram": tunnel{src: n.from.pa, dst: n.to.pa, vni: red, dport: 4791}.with(n.from.inner(n.to, known)),
	} {
		n.passesOn(name, frame, slices.Contains(numbered, name))
	}
	before := n.h.drops()
	if v, err := n.h.dp.objs.FromNic.Run(&ebpf.RunOptions{Data: other}); err != nil || v != xdpPass {
		n.t.Errorf("another machine's frame, %s: verdict %d, %v", n.name, v, err)
	}
	for set, name := range map[PortFlags]string{Captured: "a captured port", Isolated: "an isolated port"} {
		n.h.must(n.h.dp.SetPortFlags(n.to.id, set, 0))
		n.passesOn(name, wire, true)
		n.h.must(n.h.dp.SetPortFlags(n.to.id, 0, set))
	}
	n.h.must(n.h.dp.SetPortFlags(n.to.id, 0, XDP))
	n.passesOn("a device that takes no redirected frames", wire, false)
	n.h.must(n.h.dp.SetPortFlags(n.to.id, XDP, 0))
	if after := n.h.drops(); len(after) != len(before) || after["none"] != before["none"] {
		n.t.Errorf("%s: counted %v, was %v", n.name, after, before)
	}
	n.states(known)
}

// states: a flow that may no longer go on unseen is from_wire's to judge.
func (n nicCase) states(known []byte) {
	wire := n.from.wire(n.to, known)
	n.h.must(n.h.dp.SetRules(n.to.id, &RuleSet{In: []Rule{{ID: 91}}}))
	n.passesOn("a flow that other rules have judged", wire, true)
	n.begin(known)
	if v, _ := n.h.fromNIC(wire); v != xdpRedirect {
		n.t.Errorf("a flow that these rules have judged, %s: verdict %d, want a redirect", n.name, v)
	}
	n.h.must(n.h.dp.SetRules(n.to.id, nil))
	n.begin(known)
	gro := skb{Ifindex: uint32(n.h.uplink.Attrs().Index), GSOSize: 17, GSOSegs: 3}
	if v, _, _ := n.h.run(n.h.dp.objs.FromWire, gro, n.h.arriving(wire)); v != actNext {
		n.t.Fatalf("an aggregated frame, %s: verdict %d, want it sent up", n.name, int32(v))
	}
	n.passesOn("a flow that climbs", wire, false) // the kernel merges no frames with different numbers
	n.h.age(7946, 70*time.Second)
	n.passesOn("a flow that has ended", wire, false)
	n.begin(known)
	small := n.to.port(n.h.taps[n.to.id])
	small.MTU, small.Flags = 76, Open|XDP
	big := udpOf(n.from.cas()[n.family], n.to.cas()[n.family], 5357, 7946, text(57-20*n.family))
	n.begin2(small, big)
	n.passesOn("larger than its port's MTU: its sender is to be told", n.from.wire(n.to, big), true)
	small.MTU = 1500
	n.h.must(n.h.dp.SetPort(n.to.id, small))
	n.begin(known)
}

// passesOn: with a number in front if frames behind it might be redirected.
func (n nicCase) passesOn(name string, frame []byte, numbered bool) {
	n.t.Helper()
	before := n.h.drops()
	v, got := n.h.fromNIC(frame)
	if numbered && len(got) > 4 {
		got = got[4:]
	}
	if v != xdpPass || !bytes.Equal(got, n.h.arriving(frame)) {
		n.t.Errorf("%s, %s: verdict %d, want it to go on as it is, numbered: %v", name, n.name, v, numbered)
	}
	if after := n.h.drops(); after["none"] != before["none"] || len(after) != len(before) {
		n.t.Errorf("%s, %s: counted %v, was %v", name, n.name, after, before)
	}
}

// refused: what it takes it judges, and counts as from_wire does.
func (n nicCase) refused() {
	known := n.udp(5363)
	n.begin(known)
	wire := n.from.wire(n.to, known)
	try := func(name, reason string, frame []byte) {
		n.t.Helper()
		before := n.h.drops()
		if v, _ := n.h.fromNIC(frame); v != xdpDrop {
			n.t.Errorf("%s, %s: verdict %d, want a drop", name, n.name, v)
		}
		n.h.counted(name+", "+n.name, before, reason)
	}
	right := tunnel{src: n.from.pa, dst: n.to.pa, vni: red}
	away := right
	away.src = redA2.pa
	if n.from.pa.Is6() {
		away.src = redA2.over6().pa
	}
	try("from another PA", "wrong_source", away.with(n.from.inner(n.to, known)))
	other := right
	other.dst = blueB.pa
	if n.from.pa.Is6() {
		other.dst = blueB.over6().pa
	}
	try("to another port's PA", "wrong_pa", other.with(n.from.inner(n.to, known)))
	n.h.must(n.h.dp.SetPortFlags(n.to.id, 0, Open))
	try("to a closed port", "to_closed", wire)
	n.h.must(n.h.dp.SetPortFlags(n.to.id, Open, 0))
	n.h.must(n.h.dp.SetLimits(n.to.id, Limits{To: Rate{Packets: 9000}}))
	n.h.drain(n.to.id, bucketToPackets)
	try("above its limit", "rate_to", wire)
	n.h.must(n.h.dp.SetLimits(n.to.id, Limits{}))
}

// begin2 judges the flow of a packet by the rules' new generation, with an MTU that takes it.
func (n nicCase) begin2(small Port, packet []byte) {
	n.t.Helper()
	wide := small
	wide.MTU = 1500
	n.h.must(n.h.dp.SetPort(n.to.id, wide))
	n.begin(packet)
	var slot datapathPortSlot
	n.h.must(n.h.dp.objs.Ports.Lookup(uint32(n.to.id), &slot))
	slot.Row[slot.Active&1].Mtu = uint16(small.MTU)
	n.h.must(n.h.dp.objs.Ports.Put(uint32(n.to.id), slot))
}
