package bpf

import (
	"maps"
	"slices"
	"testing"
)

// The kernel takes the outer VLAN tag out of a frame, which then looks like plain
// IPv4, or like a frame with one tag if it had two. None of them must get out,
// neither with their tags nor without.
func TestVLANEscape(t *testing.T) {
	a, b := newMachines(t)
	_, tap := a.add(redA, a, b)
	packet := udp4(caA, caB, 5353, 7946, text(37))
	for _, c := range []struct {
		name, reason string
		tags         []uint16
	}{
		{"802.1Q", "vlan", []uint16{etherVLAN}},
		{"802.1ad", "vlan", []uint16{etherQinQ}},
		{"QinQ", "vlan", []uint16{etherQinQ, etherVLAN}},
		{"two tags of 802.1Q", "vlan", []uint16{etherVLAN, etherVLAN}},
		{"two tags of 802.1ad", "vlan", []uint16{etherQinQ, etherQinQ}},
		{"no tag", "no_mapping", nil},
	} {
		before := a.reasons()
		// Ten bytes of virtio-net header: no offload.
		if _, err := tap.Write(append(make([]byte, 10), tagged(packet, c.tags...)...)); err != nil {
			t.Fatal(err)
		}
		before[c.reason]++
		if !within(func() bool { return maps.Equal(a.reasons(), before) }) {
			t.Fatalf("%s: want one %s: %v; got %v", c.name, c.reason, before, a.reasons())
		}
	}
}

// tagged is redA's frame around an IPv4 packet, with VLAN tags from the outside in.
func tagged(packet []byte, tags ...uint16) []byte {
	behind := uint16(etherIPv4)
	for i, tag := range slices.Backward(tags) {
		packet = append([]byte{0x2f, byte(0x07 + i), byte(behind >> 8), byte(behind)}, packet...)
		behind = tag
	}
	return eth(gatewayMAC, redA.mac, behind, packet)
}
