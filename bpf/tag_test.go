package bpf

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fabric that carries priorities (802.1p) tags frames with VLAN 0, which is no VLAN:
// they are ours as without the tag, small ones and merged ones. Of VLAN 7 they are not.
func TestPriorityTags(t *testing.T) {
	b := newBed(t, fabric4(1550), prioritised)
	hosts := []*machine{b.host(0), b.host(1)}
	from, to := b.guest(hosts[0], redA, 1500, 1500, hosts...), b.guest(hosts[1], redB, 1500, 1500, hosts...)
	for family := range 2 {
		c := connect(t, from, to, family)
		if err := c.exchange([2][]byte{noise(1<<18, 3), noise(1<<18, 5)}); err != nil {
			t.Fatalf("family %d: %v; drops %v and %v", family, err, hosts[0].reasons(), hosts[1].reasons())
		}
		once(t, from, to, family)
	}
}

// once fails if a datagram arrives twice.
func once(t *testing.T, from, to talker, family int) {
	t.Helper()
	in, out := datagramPair(t, from, to, family)
	if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	for _, want := range []string{"first", "second", "third"} {
		if _, err := out.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if n, err := in.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("family %d: got %q, %v, want %q", family, b[:n], err, want)
		}
	}
}

// prioritised is a wire whose far ends get each frame with a tag of priority 5 and
// VLAN 0, and before that with one of VLAN 7.
func prioritised(t *testing.T, f fabric, rooms [2]*room) {
	t.Helper()
	copyFrames(t, f, rooms, unix.IFF_NAPI, func(from, to *os.File) {
		b := make([]byte, 1<<17)
		for {
			n, err := from.Read(b[4:])
			if err != nil {
				return
			}
			copy(b, b[4:16])
			for _, vlan := range []byte{7, 0} {
				copy(b[12:], []byte{0x81, 0, 5 << 5, vlan})
				if _, err := to.Write(b[:n+4]); errors.Is(err, os.ErrClosed) {
					return
				}
			}
		}
	})
}
