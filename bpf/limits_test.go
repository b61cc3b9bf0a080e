package bpf

import (
	"errors"
	"testing"
	"time"
)

// Limits of packets and of bytes, both directions: what a bucket holds passes,
// what it doesn't is refused, and as much as time has brought passes again. A
// test can't stop the clock, so it moves the bucket.
func TestLimits(t *testing.T) {
	a, b := newWorld(t)
	// Each segment but the first has headers that the superpacket hasn't: Ethernet, IPv6, TCP.
	onWire := func(f []byte, segments int) time.Duration { return time.Duration(len(f) + (segments-1)*(14+40+20)) }
	frame := func(size int) []byte { return redA.frame(udpOf(caA6, caA26, 5353, 7946, text(size-62))) }
	passes := func(gso uint32, frame []byte) bool {
		t.Helper()
		v, _, _ := a.run(a.dp.objs.FromVm, skb{Ifindex: uint32(a.taps[redA.id]), GSOSize: gso, GSOSegs: 2}, frame)
		return v == actRedirect
	}
	for _, c := range []struct {
		name   string
		from   Limits
		id     uint16
		kind   uint32
		reason string
		cost   func(frame []byte, segments int) time.Duration
	}{
		{"packets from", Limits{From: Rate{Packets: 2000}}, redA.id, bucketFromPackets, "rate_from", func(_ []byte, n int) time.Duration { return time.Duration(n) * time.Second / 2000 }},
		{"packets to", Limits{To: Rate{Packets: 3000}}, redA2.id, bucketToPackets, "rate_to", func(_ []byte, n int) time.Duration { return time.Duration(n) * time.Second / 3000 }},
		{"bytes from", Limits{From: Rate{Bits: 7_000_000}}, redA.id, bucketFromBytes, "rate_from", func(f []byte, n int) time.Duration { return onWire(f, n) * 8 * time.Second / 7_000_000 }},
		{"bytes to", Limits{To: Rate{Bits: 5_000_000}}, redA2.id, bucketToBytes, "rate_to", func(f []byte, n int) time.Duration { return onWire(f, n) * 8 * time.Second / 5_000_000 }},
	} {
		a.must(a.dp.SetLimits(c.id, c.from))
		if got, err := a.dp.Limits(c.id); err != nil || got != c.from {
			t.Errorf("%s: read back %+v, %v, want %+v", c.name, got, err, c.from)
		}
		small := frame(117)
		super := redA.frame(tcpOf(caA6, caA26, 5353, 7946, text(2*1187)))
		for _, f := range []struct {
			frame []byte
			gso   uint32
			n     int
		}{{small, 0, 1}, {frame(1217), 0, 1}, {super, 1187, 2}, {redA.frame(tcpOf(caA6, caA26, 5353, 7946, text(2*1187+1))), 1187, 3}} {
			now := Now()
			a.setDue(c.id, c.kind, now)
			if !passes(f.gso, f.frame) {
				t.Errorf("%s: %d bytes within the limit: %v", c.name, len(f.frame), a.drops())
			}
			// The bucket owes what the frame has cost, from when it passed.
			due, want := a.due(c.id, c.kind), c.cost(f.frame, f.n)
			if due < now+want-time.Microsecond || due > Now()+want {
				t.Errorf("%s: %d bytes in %d segments cost %v, want %v", c.name, len(f.frame), f.n, due-now, want)
			}
		}
		a.drain(c.id, c.kind)
		before := a.drops()
		if passes(0, small) {
			t.Errorf("%s: passed above the limit", c.name)
		}
		a.counted(c.name+", above the limit", before, c.reason)
		survivesSetPort(t, a, c.name, c.id, func() bool { return passes(0, small) })
		a.must(a.dp.SetLimits(c.id, Limits{}))
		if !passes(0, small) {
			t.Errorf("%s: refused without a limit", c.name)
		}
		if got, err := a.dp.Limits(c.id); err != nil || got != (Limits{}) {
			t.Errorf("%s: cleared, but %+v, %v", c.name, got, err)
		}
	}
	burst(t, b)
	lifted(t, b)
	if err := a.dp.SetLimits(77, Limits{From: Rate{Bits: 1}}); !errors.Is(err, ErrNoPort) {
		t.Errorf("limits of no port: got %v, want ErrNoPort", err)
	}
}

// survivesSetPort: a limit stays with its port through a change of place and of
// flags, and doesn't come back with a new port of its number.
func survivesSetPort(t *testing.T, h *host, name string, id uint16, passes func() bool) {
	t.Helper()
	p, err := h.dp.Port(id)
	h.must(err)
	h.must(h.dp.SetPort(id, p))
	if passes() {
		t.Errorf("%s: the limit is gone after SetPort", name)
	}
	h.must(errors.Join(h.dp.SetPortFlags(id, Timed, 0), h.dp.SetPortFlags(id, 0, Timed|limited)))
	if passes() {
		t.Errorf("%s: the limit is gone after SetPortFlags", name)
	}
	for kind := range bucketsOfPort {
		h.drain(id, kind)
	}
	h.must(h.dp.objs.DeniedBuckets.Put(uint32(id), uint64(Now()+time.Hour)))
	h.must(errors.Join(h.dp.DeletePort(id), h.dp.SetPort(id, p)))
	var denied uint64
	h.must(h.dp.objs.DeniedBuckets.Lookup(uint32(id), &denied))
	for kind := range bucketsOfPort {
		if due := h.due(id, kind); due != 0 || denied != 0 {
			t.Fatalf("%s: a new port owes what the old one spent: bucket %d %v, of refused flows %d", name, kind, due, denied)
		}
	}
	if !passes() {
		t.Errorf("%s: a new port has the limit of the old one; %v", name, h.drops())
	}
}

// burst: a bucket that is full takes a superpacket of 64 KiB at any rate, and
// what came in a row before it is full again is refused.
func burst(t *testing.T, h *host) {
	h.must(h.dp.SetLimits(redB.id, Limits{From: Rate{Bits: 64_000, Packets: 2}}))
	frame := redB.frame(udpOf(caB, caA, 5353, 7946, text(1400)))
	passed := 0
	for range 200 {
		if v, _ := h.send(redB, frame); v == actRedirect {
			passed++
		}
	}
	// 64 packets ahead at 2 a second, the one that is due, and what some seconds bring at most.
	if passed < 65 || passed > 75 {
		t.Errorf("%d of 200 packets passed at once, want 65", passed)
	}
}

// lifted: who has spent all that a low rate lends owes nothing of it to another rate:
// at that one's burst it would be silent for as long as the debt takes, 16 s after 64
// kbit/s (here an hour, so that no machine is too slow). The same rate again, as after
// a restart of the agent, forgives nothing, nor does a change of the other direction.
func lifted(t *testing.T, h *host) {
	low, high := Rate{Bits: 64_000}, Rate{Bits: 1_000_000_000}
	for _, c := range []struct {
		name   string
		to     []Limits
		silent bool
	}{
		{"lifted", []Limits{{From: high}}, false},
		{"lowered", []Limits{{From: Rate{Bits: 63_000}}}, false},
		{"taken off and set again", []Limits{{}, {From: low}}, false},
		{"set again", []Limits{{From: low}}, true},
		{"kept while the other direction's is set", []Limits{{From: low, To: high}}, true},
	} {
		h.must(errors.Join(h.dp.SetLimits(redB.id, Limits{}), h.dp.SetLimits(redB.id, Limits{From: low})))
		h.drain(redB.id, bucketFromBytes)
		for _, l := range c.to {
			h.must(h.dp.SetLimits(redB.id, l))
		}
		if v, _ := h.send(redB, redB.frame(udpOf(caB, caA, 5353, 7946, text(1400)))); (v != actRedirect) != c.silent {
			t.Errorf("limit %s: the next frame has verdict %d, refused should be %v; %v owed", c.name, int32(v), c.silent, h.due(redB.id, bucketFromBytes)-Now())
		}
	}
}

func (h *host) setDue(id uint16, kind uint32, at time.Duration) {
	h.t.Helper()
	h.must(h.dp.objs.Buckets.Put(uint32(id)*bucketsOfPort+kind, uint64(at)))
}

func (h *host) due(id uint16, kind uint32) time.Duration {
	h.t.Helper()
	var due uint64
	h.must(h.dp.objs.Buckets.Lookup(uint32(id)*bucketsOfPort+kind, &due))
	return time.Duration(due)
}
