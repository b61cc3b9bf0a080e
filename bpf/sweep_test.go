package bpf

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// What a sweep finds, deletes and counts.
func TestSweep(t *testing.T) {
	a, b := newWorld(t)
	endings(t, a, b)
	staleEpochs(t, a)
	faster(t, a)
	meanwhile(t, a)
	budgets(t, a)
}

// endings: how long a flow lives depends on what has passed (RFC 5382, RFC 4787).
func endings(t *testing.T, a, b *host) {
	type step struct {
		back  bool // from the other end
		flags byte
	}
	syn, synAck, ack := step{false, flagSYN}, step{true, flagSYN | flagACK}, step{false, flagACK}
	port := uint16(23000)
	for _, c := range []struct {
		name  string
		proto byte
		steps []step
		lives time.Duration
	}{
		{"a SYN", protoTCP, []step{syn}, time.Minute},
		{"an open connection", protoTCP, []step{syn, synAck, ack}, 7440 * time.Second},
		{"one that the VM ends", protoTCP, []step{syn, synAck, ack, {false, flagFIN | flagACK}}, 2 * time.Minute},
		{"one that the other end ends", protoTCP, []step{syn, synAck, ack, {true, flagFIN | flagACK}}, 2 * time.Minute},
		{"one that is reset", protoTCP, []step{syn, synAck, ack, {true, flagRST}}, 10 * time.Second},
		{"a datagram", protoUDP, []step{{}}, time.Minute},
		{"a datagram and its answer", protoUDP, []step{{}, {back: true}}, 5 * time.Minute},
		{"two datagrams", protoUDP, []step{{}, {}}, time.Minute},
	} {
		for family, name := range []string{"IPv4", "IPv6"} {
			name = c.name + ", " + name
			say := func(s step) {
				src, dst, sport, dport := redA.cas()[family], redB.cas()[family], port, uint16(7946)
				if s.back {
					src, dst, sport, dport = dst, src, dport, sport
				}
				p := udpOf(src, dst, sport, dport, text(37))
				if c.proto == protoTCP {
					p = segment{sport: sport, dport: dport, flags: s.flags}.of(src, dst)
				}
				if s.back {
					a.receive(redB.wire(redA, p))
				} else {
					a.send(redA, redA.frame(p))
				}
			}
			talk := func() {
				port++
				for _, s := range c.steps {
					say(s)
				}
			}
			talk()
			forgotten(t, a, name, port, c.lives, func() { say(ack) })
			talk()
			a.age(port, c.lives-5*time.Second)
			if ended := a.sweptPorts(); ended[port] != 0 {
				t.Errorf("%s: ended 5 s before %v", name, c.lives)
			}
			if f, ok := a.flowFrom(redA.id, port); !ok || f.Idle < c.lives-5*time.Second || f.Idle > c.lives {
				t.Errorf("%s: flow %+v, %v, want it idle for %v", name, f, ok, c.lives-5*time.Second)
			}
			a.age(port, 7*time.Second)
			if ended := a.sweptPorts(); ended[port] != 1 {
				t.Errorf("%s: not ended 2 s after %v", name, c.lives)
			}
			if _, ok := a.flowFrom(redA.id, port); ok {
				t.Errorf("%s: ended, but there", name)
			}
		}
	}
}

// faster: a packet that passes after the clock was looked at, by a sweep or by a
// program on another CPU, makes its flow no older.
func faster(t *testing.T, a *host) {
	for family, name := range []string{"IPv4", "IPv6"} {
		port := uint16(23900 + family)
		say := func(flags byte) {
			a.send(redA, redA.frame(segment{sport: port, dport: 7946, flags: flags}.of(redA.cas()[family], redB.cas()[family])))
		}
		say(flagSYN)
		say(flagACK)
		a.age(port, -20*time.Millisecond)
		if ended := a.sweptPorts(); ended[port] != 0 {
			t.Errorf("%s: swept while it is alive", name)
		}
		begun := Now()
		say(flagACK)
		const ticks = 20 * time.Millisecond // two of the slowest that Linux has
		if f, ok := a.flowFrom(redA.id, port); !ok || f.From.Packets != 3 || f.Idle > Now()-begun+ticks {
			t.Errorf("%s: flow %+v, %v, want it to go on with its third packet", name, f, ok)
		}
	}
}

// meanwhile: what begins again while a sweep goes on isn't ended by it.
func meanwhile(t *testing.T, a *host) {
	ports := [2]uint16{23911, 23912}
	say := func(port uint16) { a.send(redA, redA.frame(udpOf(caA, caB, port, 7946, text(37)))) }
	for _, port := range ports {
		say(port)
		a.age(port, 70*time.Second)
	}
	ended := map[uint16]int{}
	_, err := a.dp.Sweep(nil, func(f Flow) {
		ended[f.Local.Port()]++
		say(ports[0] + ports[1] - f.Local.Port())
	})
	a.must(err)
	if len(ended) != 1 {
		t.Errorf("ended %v, want one of two: the other has begun again", ended)
	}
}

// forgotten: a flow is one and the same until it has been idle for so long; the
// next packet begins another.
func forgotten(t *testing.T, a *host, name string, port uint16, lives time.Duration, more func()) {
	t.Helper()
	sent := func() uint64 { f, _ := a.flowFrom(redA.id, port); return f.From.Packets }
	had := sent()
	a.age(port, lives-5*time.Second)
	more()
	if got := sent(); got != had+1 {
		t.Errorf("%s: %d packets counted 5 s before %v, want %d: it was forgotten", name, got, lives, had+1)
	}
	a.age(port, lives+2*time.Second)
	more()
	if got := sent(); got != 1 {
		t.Errorf("%s: %d packets counted 2 s after %v, want 1: it wasn't forgotten", name, got, lives)
	}
}

// sweptPorts sweeps, and returns how many flows of each local port have ended.
func (h *host) sweptPorts() map[uint16]int {
	h.t.Helper()
	ended := map[uint16]int{}
	s, err := h.dp.Sweep(nil, func(f Flow) { ended[f.Local.Port()]++ })
	h.must(err)
	n := 0
	for _, e := range ended {
		n += e
	}
	if s.Ended != n {
		h.t.Errorf("swept %+v, told of %d", s, n)
	}
	return ended
}

// staleEpochs: the flows of the place that a port has left go, its new ones stay.
func staleEpochs(t *testing.T, a *host) {
	old, now := uint16(24001), uint16(24002)
	a.send(redA, redA.frame(udpOf(caA, caB, old, 7946, text(37))))
	row, err := a.dp.Port(redA.id)
	a.must(err)
	row.Epoch++
	a.must(a.dp.SetPort(redA.id, row))
	a.send(redA, redA.frame(udpOf(caA, caB, now, 7946, text(37))))
	if ended := a.sweptPorts(); ended[old] != 1 || ended[now] != 0 {
		t.Errorf("after a swap: ended %v, want port %d and not %d", ended, old, now)
	}
	if open, err := a.dp.Connections(redA.id, row.Epoch-1); err != nil || len(open) != 0 {
		t.Errorf("connections of the old epoch: %v, %v", open, err)
	}
}

// budgets: a sweep counts what there is, and lets a port have so much; while
// nobody sweeps, nobody is refused.
func budgets(t *testing.T, a *host) {
	port := uint16(25000)
	begin := func() string {
		port++
		before := a.drops()
		a.send(redA2, redA2.frame(udpOf(caA26, caB6, port, 7946, text(37))))
		for r, n := range a.drops() {
			if n == before[r]+1 {
				return r
			}
		}
		return "nothing"
	}
	if got := begin(); got != "none" {
		t.Fatalf("the first flow: %s", got)
	}
	rows := map[uint16]uint32{}
	s, err := a.dp.Sweep(func(id uint16, n uint32) uint32 { rows[id] = n; return 3 }, nil)
	a.must(err)
	if rows[redA2.id] != 1 || s.Ports[redA2.id] != 1 || s.Alive < 1 {
		t.Errorf("swept %+v, asked for %v, want 1 flow of port %d", s, rows, redA2.id)
	}
	for i, want := range []string{"none", "none", "flow_quota", "flow_quota"} {
		if got := begin(); got != want {
			t.Errorf("flow %d of 3: counted %s, want %s", i+2, got, want)
		}
	}
	a.sweptEarlier(50 * time.Second)
	if got := begin(); got != "flow_quota" {
		t.Errorf("50 s after the sweep: counted %s, want flow_quota", got)
	}
	a.sweptEarlier(11 * time.Second)
	if got := begin(); got != "none" {
		t.Errorf("61 s after the sweep: counted %s, want none: the agent may be dead", got)
	}
	a.must(errors.Join(a.dp.DeletePort(redA2.id), a.dp.SetPort(redA2.id, redA2.port(a.taps[redA2.id]))))
	_, err = a.dp.Sweep(nil, nil)
	a.must(err)
	for i := range 10 {
		if got := begin(); got != "none" {
			t.Errorf("flow %d of a new port with the default: counted %s", i, got)
		}
	}
}

// sweptEarlier makes the last sweep that much older.
func (h *host) sweptEarlier(by time.Duration) {
	h.t.Helper()
	var at uint64
	h.must(h.dp.objs.Swept.Lookup(uint32(0), &at))
	h.must(h.dp.objs.Swept.Put(uint32(0), at-ticks(by)))
}

// Connections tells what a reset of both ends needs: who, and where each one's
// sequence stands.
func TestConnections(t *testing.T) {
	a := newA(t)
	want := map[string]bool{}
	for family := range 2 {
		me, peer := redA.cas()[family], redB.cas()[family]
		talk := func(sport uint16, steps ...segment) {
			for i, s := range steps {
				s.sport, s.dport = sport, 7946
				if i%2 == 0 {
					a.send(redA, redA.frame(s.of(me, peer)))
				} else {
					s.sport, s.dport = s.dport, s.sport
					a.receive(redB.wire(redA, s.of(peer, me)))
				}
			}
		}
		syn, synAck := segment{flags: flagSYN, seq: 0x11223344}, segment{flags: flagSYN | flagACK, seq: 0x55667788, ack: 0x11223345}
		talk(26001, syn, synAck, segment{flags: flagACK, seq: 0x11223345, ack: 0x55667789},
			segment{flags: flagACK, seq: 0x55667789, ack: 0x11223399}, segment{flags: flagACK, seq: 0x11223399, ack: 0x556677ab})
		talk(26002, syn)
		talk(26003, syn, synAck, segment{flags: flagACK | flagFIN, ack: 0x55667789})
		talk(26004, syn, segment{flags: flagRST | flagACK, ack: 0x11223345})
		a.send(redA, redA.frame(udpOf(me, peer, 26005, 7946, text(37))))
		want[fmt.Sprintf("%s to %s, %#x and %#x", me, peer, 0x556677ab, 0x11223399)] = true
	}
	open, err := a.dp.Connections(redA.id, redA.epoch)
	a.must(err)
	for _, f := range open {
		got := fmt.Sprintf("%s to %s, %#x and %#x", f.Local.Addr(), f.Remote.Addr(), f.LocalAck, f.RemoteAck)
		if !want[got] || f.Local.Port() != 26001 || f.Remote.Port() != 7946 || f.Inbound || f.From.Packets != 3 || f.To.Packets != 2 {
			t.Errorf("connection %s, %+v", got, f)
		}
		delete(want, got)
	}
	if len(want) != 0 {
		t.Errorf("not found: %v", want)
	}
}
