package bpf

import "testing"

// A flow remembers its way until the directory changes: then the next packet
// goes the new one, and one from where its source was before is refused.
func TestWayFollowsTheDirectory(t *testing.T) {
	a, b := newWorld(t)
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))
	to := func() string { // the outer destination's last byte says which PA
		_, wire := a.send(redA, sent)
		return addr4([4]byte(wire[30:34])).String()
	}
	for range 2 {
		if got := to(); got != redB.pa.String() {
			t.Fatalf("sent to %s, want %s", got, redB.pa)
		}
	}
	moved := redB.mapping(7)
	moved.PA = blueB.pa
	a.must(a.dp.PutMappings(moved))
	if got := to(); got != blueB.pa.String() {
		t.Errorf("after the peer has moved: sent to %s, want %s", got, blueB.pa)
	}
	a.must(a.dp.DeleteMappings(moved.MappingKey))
	before := a.drops()
	a.send(redA, sent)
	a.counted("after the peer has gone", before, "no_mapping")

	wire := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	for range 2 {
		before = b.drops()
		b.receive(wire)
		b.counted("from where its source is", before, "none")
	}
	moved = redA.mapping(7)
	moved.PA = redA2.pa
	b.must(b.dp.PutMappings(moved))
	before = b.drops()
	b.receive(wire)
	b.counted("from where its source was", before, "wrong_source")
}
