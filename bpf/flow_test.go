package bpf

import (
	"testing"
	"time"
)

// Invariant 13: a flow that came aggregated keeps to the VXLAN device until it has
// been idle, so that no small frame overtakes; other flows take the short way.
func TestAggregatedFlowStaysUp(t *testing.T) {
	b := newB(t)
	packet := func(sport uint16, n int) []byte {
		return tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, tcp4(caA, caB, sport, 7946, text(n))))
	}
	in := skb{Ifindex: uint32(b.uplink.Attrs().Index)}
	gro := in
	gro.GSOSize, gro.GSOSegs = 1448, 2
	try := func(name string, in skb, frame []byte, up bool) bool {
		t.Helper()
		verdict, out, after := b.run(b.dp.objs.FromWire, in, b.arriving(frame))
		if !up {
			return verdict == actRedirect
		}
		if verdict == actNext && after.Mark == 0x5eb70000|uint32(redB.id) {
			golden(t, name, out)
			return true
		}
		return false
	}
	if !try("", in, packet(40321, 97), false) {
		t.Errorf("a small frame of a fresh flow didn't take the short way; %v", b.drops())
	}
	before := b.drops()
	if !try("sent_up", gro, packet(40321, 1500), true) {
		t.Errorf("an aggregated frame didn't go up; %v", b.drops())
	}
	if after := b.drops(); after["none"] != before["none"] {
		t.Errorf("a frame that went up was counted before it arrived")
	}
	if !try("sent_up_small", in, packet(40321, 97), true) {
		t.Errorf("a small frame of an aggregated flow overtook it")
	}
	if !try("", in, packet(40323, 97), false) {
		t.Errorf("a small frame of another flow didn't take the short way")
	}
	b.age(7946, 6*time.Second)                                      // silent for longer than FlowIdle
	b.run(b.dp.objs.FromWire, gro, b.arriving(packet(40325, 1500))) // another flow keeps the port busy
	if !try("", in, packet(40321, 97), false) {
		t.Error("an idle flow didn't come back to the short way")
	}
}

// An aggregated flow of the port's last epoch binds nothing of the next.
func TestAggregationDiesWithTheEpoch(t *testing.T) {
	b := newB(t)
	frame := b.arriving(tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, tcp4(caA, caB, 40321, 7946, text(97)))))
	in := skb{Ifindex: uint32(b.uplink.Attrs().Index)}
	gro := in
	gro.GSOSize, gro.GSOSegs = 31, 3
	if v, _, _ := b.run(b.dp.objs.FromWire, gro, frame); v != actNext {
		t.Fatalf("verdict %d, want it sent up", int32(v))
	}
	p, err := b.dp.Port(redB.id)
	b.must(err)
	p.Epoch++
	b.must(b.dp.SetPort(redB.id, p))
	if v, _, _ := b.run(b.dp.objs.FromWire, in, frame); v != actRedirect {
		t.Errorf("verdict %d, want the short way", int32(v))
	}
}
