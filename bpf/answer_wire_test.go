package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// A packet that is too big for its port is answered over the wire: the sender's
// host takes that for what the port itself says, and its VM gets it. Who isn't
// where its source is is told nothing, and nobody is told too often.
func TestTooBigForAPortElsewhere(t *testing.T) {
	a, b := newWorld(t)
	tooBigElsewhere(t, "IPv4", a, b, redA, redB, redA2)
	a, b = newWorld6(t)
	tooBigElsewhere(t, "IPv6", a, b, redA.over6(), redB.over6(), redA2.over6())
}

func tooBigElsewhere(t *testing.T, under string, a, b *host, from, to, other member) {
	t.Helper()
	small := to.port(b.taps[to.id])
	small.MTU = 1337
	b.must(b.dp.SetPort(to.id, small))
	for family, inner := range []string{"IPv4", "IPv6"} {
		name := fmt.Sprintf("%s over %s", inner, under)
		big := udpOf(from.cas()[family], to.cas()[family], 5353, 7946, text(1338-28-20*family))
		if family == 0 {
			big[6] |= 0x40
			sumTo(big[:20])
		}
		try := func(what string, sender member, want uint32) (answer []byte) {
			t.Helper()
			before := b.drops()
			v, out := b.receive(sender.wire(to, big))
			b.counted(what+", "+name, before, "to_too_big")
			if v != want {
				t.Fatalf("%s, %s: verdict %d, want %d", what, name, int32(v), int32(want))
			}
			return out
		}
		answer := try("a byte too many", from, actRedirect)
		before := a.drops()
		v, told := a.receive(answer)
		a.counted("the answer, "+name, before, "none")
		if v != actRedirect || [6]byte(told) != from.mac || rightSums(told) != "" || tellsMTU(told) != 1337 {
			t.Errorf("%s: verdict %d, told an MTU of %d, %q:\n%s", name, int32(v), tellsMTU(told), rightSums(told), dump(told))
		}
		liar := from
		liar.pa = other.pa
		try("from another PA than its source's", liar, actShot)
		b.drain(to.id, bucketTooBig)
		try("too often", from, actShot)
		b.must(b.resetBuckets(to.id))
		try("later", from, actRedirect)
	}
}

// tellsMTU reads a frame that says "fragmentation needed" or "packet too big".
func tellsMTU(frame []byte) int {
	if l4 := frame[34:]; frame[14]>>4 == 4 && l4[0] == 3 && l4[1] == 4 {
		return int(binary.BigEndian.Uint16(l4[6:]))
	}
	if l4 := frame[54:]; frame[14]>>4 == 6 && l4[0] == 2 {
		return int(binary.BigEndian.Uint32(l4[4:]))
	}
	return 0
}

// The other end of a connection whose VM has left is told so at once, over a wire
// that carries a tunnel's frames as such and over one that carries bytes.
func TestResetOverTheWire(t *testing.T) {
	for name, lay := range map[string]wiring{"uncut": uncut, "copied": copied} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, fabric4(1550), lay)
			hosts := []*machine{b.host(0), b.host(1)}
			from, to := b.guest(hosts[0], redA, 1500, 1500, hosts...), b.guest(hosts[1], redB, 1500, 1500, hosts...)
			for family := range 2 {
				c := connect(t, from, to, family)
				p, err := to.host.dp.Port(to.id)
				if err != nil {
					t.Fatal(err)
				}
				p.Epoch++
				p.Flags |= Strict | Reset
				if err := to.host.dp.SetPort(to.id, p); err != nil {
					t.Fatal(err)
				}
				err = inMessages(c.from, noise(30000, 3))
				if !errors.Is(err, syscall.ECONNRESET) {
					if err := c.from.SetReadDeadline(time.Now().Add(patience)); err != nil {
						t.Fatal(err)
					}
					_, err = c.from.Read(make([]byte, 1))
				}
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("family %d: %v, want a reset; drops %v and %v", family, err, from.host.reasons(), to.host.reasons())
				}
			}
		})
	}
}
