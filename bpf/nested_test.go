package bpf

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// Issue 3, point 3: VXLAN that a VM sends to a peer is the VM's own business, UDP
// like any other. It is carried as it is, in the VM's network and not in the one
// that it names, and nobody on the way takes off more than was put on.
func TestVXLANFromVM(t *testing.T) {
	a, b := newWorld(t)
	theirs := eth(blueB.mac, blueA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))
	packet := tunnel{src: caA, dst: caB, vni: blue}.with(theirs)[14:]
	verdict, carried := a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, packet))
	if verdict != actRedirect {
		t.Fatalf("verdict %d, dropped %v", verdict, a.drops())
	}
	const vniAt, innerAt = 14 + 20 + 8 + 4, 14 + 20 + 8 + 8
	if vni := binary.BigEndian.Uint32(carried[vniAt:]) >> 8; vni != red || !bytes.Equal(carried[innerAt+14:], packet) {
		t.Errorf("carried in network %#x, want %#x, around\n%x, want\n%x", vni, red, carried[innerAt+14:], packet)
	}
	verdict, delivered := b.receive(carried)
	if want := eth(redB.mac, gatewayMAC, etherIPv4, packet); verdict != actRedirect || !bytes.Equal(delivered, want) {
		t.Errorf("verdict %d, delivered\n%x, want\n%x; dropped %v", verdict, delivered, want, b.drops())
	}
}
