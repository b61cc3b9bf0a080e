package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// A port moves from red to blue: from the flip on it gets blue's frames, refuses
// red's, sends with blue's VNI, and its old metadata address is dead.
func TestFlip(t *testing.T) {
	a, b := newWorld(t)
	toRed := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	moved := redB
	moved.vni, moved.ca, moved.epoch = blue, addr("10.17.34.142"), redB.epoch+1
	toBlue := tunnel{src: blueA.pa, dst: moved.pa, vni: blue}.with(eth(moved.mac, blueA.mac, etherIPv4, udp4(caA, moved.ca, 5353, 7946, text(37))))
	oldReply := eth([6]byte{}, imdsMAC, etherIPv4, tcp4(imds, callerOf(redB.id, redB.epoch), 80, 40321, text(53)))

	before := b.drops()
	b.receive(toRed)
	b.counted("red, before", before, "none")
	before = b.drops()
	b.receive(toBlue)
	b.counted("blue, before", before, "not_local")

	b.must(b.dp.SetPort(moved.id, moved.port(b.taps[moved.id])))

	before = b.drops()
	b.receive(toRed)
	b.counted("red, after", before, "not_local")
	before = b.drops()
	b.receive(toBlue)
	b.counted("blue, after", before, "none")
	before = b.drops()
	b.run(b.dp.objs.FromHost, skb{Ifindex: 1}, oldReply)
	b.counted("a metadata reply for the old epoch", before, "stale_epoch")
	before = b.drops()
	b.send(moved, eth(gatewayMAC, moved.mac, etherIPv4, udp4(redB.ca, caA, 7946, 5353, text(37))))
	b.counted("from the old CA", before, "spoofed_ca")
	_, wire := b.send(moved, eth(gatewayMAC, moved.mac, etherIPv4, udp4(moved.ca, caA, 7946, 5353, text(37))))
	if vni := binary.BigEndian.Uint32(wire[46:]) >> 8; vni != blue {
		t.Errorf("sends with VNI %#x, want %#x", vni, blue)
	}
	_ = a
}

// Invariant 2: a row never goes to a lower epoch.
func TestEpochOnlyGrows(t *testing.T) {
	b := newB(t)
	p, err := b.dp.Port(redB.id)
	b.must(err)
	p.Epoch--
	if err := b.dp.SetPort(redB.id, p); !errors.Is(err, ErrEpoch) {
		t.Errorf("lower epoch: got %v, want ErrEpoch", err)
	}
	p.Epoch++
	b.must(b.dp.SetPort(redB.id, p)) // the same again is fine: every step is idempotent
	p.Epoch = 0x0003_0000_0000_0005  // a later era beats a higher counter
	b.must(b.dp.SetPort(redB.id, p))
	if got, err := b.dp.Port(redB.id); err != nil || got.Epoch != p.Epoch {
		t.Errorf("read back %#x, %v, want %#x", got.Epoch, err, p.Epoch)
	}
}

// A frame sees the whole old row or the whole new one, while the port flips as
// fast as it can. The frame is right for the first row, but for its destination;
// it isn't for the second, from the MAC on. Only half of each refuses the CA or
// the route.
func TestFlipIsNeverHalf(t *testing.T) {
	a := newA(t)
	rows := [2]Port{redA.port(a.taps[redA.id]), redA2.port(a.taps[redA.id])}
	rows[1].CAs = []netip.Prefix{netip.MustParsePrefix("10.99.88.77/24")}
	frame := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caNobody, 5353, 7946, text(37)))

	flips, stop := make(chan int), make(chan struct{})
	go func() {
		n := 0
		for running := true; running; n++ {
			p := rows[n%2]
			p.Epoch = redA.epoch + uint64(n)
			if err := a.dp.SetPort(redA.id, p); err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				running = false
			default:
			}
		}
		flips <- n
	}()
	// A refused frame isn't changed, so one call can run it many times over.
	run := ebpf.RunOptions{Data: frame, Repeat: 1 << 16, Context: skb{Ifindex: uint32(a.taps[redA.id])}}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if _, err := a.dp.objs.FromVm.Run(&run); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	n := <-flips
	got := a.drops()
	if n < 4 || len(got) != 2 || got["no_mapping"] == 0 || got["spoofed_mac"] == 0 {
		t.Errorf("%d flips counted %v, want no_mapping and spoofed_mac only", n, got)
	}
}

// Go writes the keys that lead to a port before the row and deletes them after
// it, and the kernel may reuse a mapping's memory while a frame reads it. Both
// are survived because what was found is compared with what was looked for.
func TestStaleKeys(t *testing.T) {
	a, b := newWorld(t)
	b.must(b.dp.objs.Locals.Put(datapathLocalKey{Vni: blue, Mac: redB.mac}, uint32(redB.id)))
	before := b.drops()
	b.receive(tunnel{src: redA.pa, dst: redB.pa, vni: blue}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))))
	b.counted("a key of a network that the port isn't in", before, "not_local")

	key := MappingKey{red, caB}.key()
	torn := datapathMapping{Mac: blueB.mac, Peer: 1, Check: MappingKey{blue, caB}.key().check()}
	a.must(a.dp.objs.Mappings.Put(key, torn))
	before = a.drops()
	a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	a.counted("a mapping that is being reused", before, "no_mapping")
}

// A shortcut that leads to the wrong port, because two keys share its place, is
// not taken. Here all of them lead to one port.
func TestWrongShortcuts(t *testing.T) {
	b := newB(t)
	for slot := range b.dp.objs.Shortcuts.MaxEntries() {
		b.must(b.dp.objs.Shortcuts.Put(slot, uint32(redB.id)))
	}
	to := func(m member, mac [6]byte) {
		from := map[uint32]member{red: redA, blue: blueA}[m.vni]
		b.receive(tunnel{src: from.pa, dst: m.pa, vni: m.vni}.with(eth(mac, from.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))))
	}
	before := b.drops()
	to(redB, redA2.mac)
	b.counted("another MAC of the network", before, "not_local")
	before = b.drops()
	to(blueB, blueB.mac)
	b.counted("the other network's port", before, "none")
	if n, err := b.dp.PortCounters(blueB.id); err != nil || n.ToPackets != 1 {
		t.Errorf("port %d got %+v, %v, want the frame", blueB.id, n, err)
	}
	_, wire := b.send(blueB, eth(gatewayMAC, blueB.mac, etherIPv4, udp4(caB, caA, 7946, 5353, text(37))))
	if vni := binary.BigEndian.Uint32(wire[46:]) >> 8; vni != blue {
		t.Errorf("sent with VNI %#x, want %#x", vni, blue)
	}
}

// A next hop that nobody refreshes isn't believed: the agent may be gone and the
// router replaced. The kernel then writes the MACs, so ours must not be there.
func TestOldNextHop(t *testing.T) {
	a := newA(t)
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))
	var hop datapathNextHop
	a.must(a.dp.objs.NextHops.Lookup(uint32(7), &hop))
	for _, c := range []struct {
		name string
		age  time.Duration
		used bool
	}{
		{"59 s", 59 * time.Second, true},
		{"61 s", 61 * time.Second, false},
	} {
		old := hop
		old.Refreshed -= ticks(c.age)
		a.must(a.dp.objs.NextHops.Put(uint32(7), old))
		verdict, wire := a.send(redA, sent)
		if used := [6]byte(wire[:6]) == routerMAC; verdict != actRedirect || used != c.used {
			t.Errorf("%s: verdict %d, used %v, want %v", c.name, verdict, used, c.used)
		}
	}
	a.must(a.dp.ClearNextHop(7))
	if _, wire := a.send(redA, sent); [6]byte(wire[:6]) == routerMAC {
		t.Error("a cleared next hop is used")
	}
}

// The blackout is the gap between the last frame under the old epoch and the
// first under the new one, in each direction.
func TestTimes(t *testing.T) {
	b := newB(t)
	from := eth(gatewayMAC, redB.mac, etherIPv4, udp4(caB, caA, 7946, 5353, text(37)))
	to := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	b.send(redB, from)
	if f, _, err := b.dp.Times(redB.id); err != nil || f != (Times{}) {
		t.Errorf("not timed: got %+v, %v", f, err)
	}
	b.must(b.dp.ResetTimes(redB.id))
	b.must(b.dp.SetPortFlags(redB.id, Timed, 0))
	start := Now()
	b.send(redB, from)
	b.receive(to)
	last := Now()
	p, err := b.dp.Port(redB.id)
	b.must(err)
	p.Epoch++
	b.must(b.dp.SetPort(redB.id, p))
	flipped := Now()
	b.send(redB, from)
	b.receive(to)
	end := Now()

	f, g, err := b.dp.Times(redB.id)
	b.must(err)
	for name, x := range map[string]Times{"from": f, "to": g} {
		gap, ok := x.Blackout()
		if !ok || x.Epoch != p.Epoch || x.Before < start || x.Before > last || x.First < flipped || x.Last > end || gap < flipped-last {
			t.Errorf("%s: %+v, blackout %v, %v; started %v, last %v, flipped %v, end %v", name, x, gap, ok, start, last, flipped, end)
		}
	}
}

// Invariant 9: a new port with the id of a deleted one finds nothing of it.
func TestNothingIsLeft(t *testing.T) {
	a := newA(t)
	a.must(a.dp.SetPortFlags(redA.id, Timed, 0))
	a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	a.must(a.dp.DeletePort(redA.id))
	if n, err := a.dp.PortCounters(redA.id); err != nil || n != (Counters{}) {
		t.Errorf("counters %+v, %v", n, err)
	}
	if f, g, err := a.dp.Times(redA.id); err != nil || f != (Times{}) || g != (Times{}) {
		t.Errorf("times %+v %+v, %v", f, g, err)
	}
	if _, err := a.dp.Port(redA.id); !errors.Is(err, ErrNoPort) {
		t.Errorf("row: got %v, want ErrNoPort", err)
	}
	for name, m := range map[string]interface{ Lookup(k, v any) error }{"locals": lookup{a.dp.objs.Locals, redAKey}, "taps": lookup{a.dp.objs.Taps, uint32(a.taps[redA.id])}} {
		var id uint32
		if err := m.Lookup(nil, &id); err == nil {
			t.Errorf("%s still leads to port %d", name, id)
		}
	}
	a.must(a.dp.DeletePort(redA.id)) // again is fine
}

var redAKey = datapathLocalKey{Vni: redA.vni, Mac: redA.mac}

// A lookup is one look-up in a map.
type lookup struct {
	m   interface{ Lookup(k, v any) error }
	key any
}

func (l lookup) Lookup(_, v any) error { return l.m.Lookup(l.key, v) }
