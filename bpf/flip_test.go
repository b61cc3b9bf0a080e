package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// A port moves from red to blue: from the flip on it gets blue's frames, refuses
// red's, sends with blue's VNI, and its old metadata address is dead.
func TestFlip(t *testing.T) {
	a, b := newWorld(t)
	toRed := tunnel{src: redA.pa, dst: redB.pa, vni: red}.with(eth(redB.mac, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	moved := redB
	moved.vni, moved.ca, moved.epoch = blue, addr("10.17.34.142"), redB.epoch+1
	toBlue := tunnel{src: blueA.pa, dst: moved.pa, vni: blue}.with(eth(moved.mac, blueA.mac, etherIPv4, udp4(caA, moved.ca, 5353, 7946, text(37))))
	oldReply := eth([6]byte{}, imdsMAC, etherIPv4, tcp4(imds, addr4([4]byte{0xf0, byte(redB.id), 0x9c, 0x74}), 80, 40321, text(53)))

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
	_, b := newWorld(t)
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
// fast as it can. VNI, PA and MTU of a row belong together: a mix would show.
func TestFlipIsNeverHalf(t *testing.T) {
	a, _ := newWorld(t)
	rows := [2]Port{redA.port(a.taps[redA.id]), redA.port(a.taps[redA.id])}
	rows[1].VNI, rows[1].PA = blue, addr("100.64.18.201")
	a.must(a.dp.PutMappings(Mapping{MappingKey{blue, caB}, blueB.pa, blueB.mac, blueB.epoch, 7}))

	var stop atomic.Bool
	flips := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			p := rows[n%2]
			p.Epoch = redA.epoch + uint64(n)
			if err := a.dp.SetPort(redA.id, p); err != nil {
				t.Error(err)
				break
			}
		}
		flips <- n
	}()
	sent := eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37)))
	want := map[uint32]netip.Addr{red: rows[0].PA, blue: rows[1].PA}
	got := map[uint32]int{}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		verdict, wire := a.send(redA, sent)
		if verdict != actRedirect {
			t.Fatalf("verdict %d: a flip must not close the port; %v", verdict, a.drops())
		}
		vni, pa := binary.BigEndian.Uint32(wire[46:])>>8, addr4([4]byte(wire[26:30]))
		if want[vni] != pa {
			t.Fatalf("half a row: VNI %#x with PA %s", vni, pa)
		}
		got[vni]++
	}
	stop.Store(true)
	if n := <-flips; n < 10 || got[red] == 0 || got[blue] == 0 {
		t.Errorf("%d flips, frames by VNI %v: the test has seen too little", n, got)
	}
}

// The blackout is the gap between the last frame under the old epoch and the
// first under the new one, in each direction.
func TestTimes(t *testing.T) {
	_, b := newWorld(t)
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
	a, _ := newWorld(t)
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
