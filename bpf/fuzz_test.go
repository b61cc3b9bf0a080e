package bpf

import (
	"math/rand/v2"
	"testing"
)

// Invariant 12, for the datapath: whatever comes, each frame ends once, under one
// name. Good frames are cut, and bytes of their headers are changed.
func TestHostileFrames(t *testing.T) {
	a, b := newWorld(t)
	r := rand.New(rand.NewPCG(0x5eb7, 0x9c41))
	fromVM := [][]byte{
		eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))),
		eth(gatewayMAC, redA.mac, etherIPv4, tcp4(caA, caA2, 5353, 7946, text(37))),
		eth(gatewayMAC, redA.mac, etherIPv4, tcp4(caA, imds, 40321, 80, text(37))),
		eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, gateway, 68, 67, text(251))),
		eth(gatewayMAC, redA.mac, etherIPv4, ping4(caA, gateway, 8, text(29))),
		eth(gatewayMAC, redA.mac, etherARP, arp(1, redA.mac, caA, [6]byte{}, caB)),
		eth(gatewayMAC, redA.mac, etherIPv4, ipv4{src: caA, dst: caB, proto: protoUDP, options: text(40)}.with(udp(caA, caB, 5353, 7946, text(37)))),
	}
	var fromWire [][]byte
	for _, src := range fromVM[:2] {
		inner := append([]byte(nil), src...)
		copy(inner, redB.mac[:])
		copy(inner[30:34], []byte{10, 17, 34, 86})
		fromWire = append(fromWire, b.arriving(tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(inner)))
	}
	doneA, doneB := total(a), total(b)
	for range 5_000 {
		frame := spoil(r, fromVM[r.IntN(len(fromVM))], 80)
		a.run(a.dp.objs.FromVm, skb{Ifindex: uint32(a.taps[redA.id]), GSOSize: gso(r), GSOSegs: 2}, frame)
		if doneA++; total(a) != doneA {
			t.Fatalf("from_vm counted %d, want %d:\n%s", total(a), doneA, dump(frame))
		}
		frame = spoil(r, fromWire[r.IntN(len(fromWire))], 120)
		verdict, _, _ := b.run(b.dp.objs.FromWire, skb{Ifindex: uint32(b.uplink.Attrs().Index), GSOSize: gso(r), GSOSegs: 2}, frame)
		if verdict != actNext { // else not ours, or sent up and counted there
			doneB++
		}
		if total(b) != doneB {
			t.Fatalf("from_wire counted %d, want %d, with verdict %d:\n%s", total(b), doneB, int32(verdict), dump(frame))
		}
	}
}

// spoil cuts a frame or changes bytes of its first `headers`. A test run itself
// refuses an IPv4 frame that is shorter than its header.
func spoil(r *rand.Rand, frame []byte, headers int) []byte {
	frame = append([]byte(nil), frame...)
	for range r.IntN(4) {
		frame[12+r.IntN(min(headers, len(frame))-12)] = byte(r.Uint32())
	}
	if r.IntN(3) == 0 {
		frame = frame[:34+r.IntN(len(frame)-34)]
	}
	return frame
}

func gso(r *rand.Rand) uint32 {
	if r.IntN(3) > 0 {
		return 0
	}
	return r.Uint32N(9000)
}

// total is how many frames have ended, one way or the other.
func total(h *host) (n uint64) {
	h.t.Helper()
	for r := range datapathDropReasonDROP_MAX {
		c, err := h.dp.countOf(r)
		h.must(err)
		n += c
	}
	return n
}
