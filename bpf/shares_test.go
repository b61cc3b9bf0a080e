package bpf

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever tenants have: each may have its part of a half, what it has stays, and two
// that take all that they may fit.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.Uint32Range(100, 1<<20).Draw(t, "room")
		held := rapid.SliceOfN(rapid.Uint32Range(0, room), 1, 40).Draw(t, "held")
		rows, left := map[uint32]uint32{}, room
		for i, n := range held {
			rows[uint32(i+1)] = min(n, left)
			left -= min(n, left)
		}
		quotas := shares(room, rows)
		sure := room / 2 / uint32(len(rows))
		for tenant, n := range rows {
			if q := quotas[tenant]; q < n || q < sure || q > room {
				t.Fatalf("tenant %d has %d and may have %d of %d, %d for sure", tenant, n, q, room, sure)
			}
		}
		var base, most, next uint32 // what two take beyond what they have, or are sure of
		for tenant, n := range rows {
			grow := quotas[tenant] - max(n, sure)
			most, next = max(most, grow), max(min(most, grow), next)
			base += max(n, sure)
		}
		if base <= room && base+most+next > room {
			t.Fatalf("two may take %d and %d beside %d of %d", most, next, base, room)
		}
	})
}

// What CPUs may keep at hand is no room, however many this process may use.
func TestRoomForFlows(t *testing.T) {
	for _, c := range []struct {
		rows uint32
		cpus int
		want uint32
	}{{1 << 20, 2, 1<<20 - 104857}, {65536, 2, 58983}, {65536, 96, 65536 - 12288}, {4096, 2, 4096 - 409}, {1024, 96, 512}} {
		if got := roomFor(c.rows, c.cpus); got != c.want {
			t.Errorf("%d rows and %d CPUs: room for %d, want %d", c.rows, c.cpus, got, c.want)
		}
	}
}

// A tenant whose ports begin flows without end, as each lets it, takes none of
// another's: those are all there, and new ones begin.
func TestTenantsShareFlows(t *testing.T) {
	isolate(t)
	a := newHost(t, "a", hostA, prefixA, func(o *Options) { o.Flows = 4096 })
	a.settle(over4, redA, redA2, blueA)
	a.must(a.dp.PutHost(prefixB))
	for m, tenant := range map[member]uint32{redA: 71, redA2: 71, blueA: 93} {
		p := m.port(a.taps[m.id])
		p.Tenant = tenant
		a.must(a.dp.SetPort(m.id, p))
	}
	sport := map[uint16]uint16{}
	begin := func(m, to member) bool {
		sport[m.id]++
		before := a.drops()["none"]
		a.send(m, m.frame(udpOf(m.ca, to.ca, 20000+sport[m.id], 7946, text(7))))
		return a.drops()["none"] == before+1
	}
	sweep := func() Swept {
		s, err := a.dp.Sweep(func(uint16, uint32) uint32 { return 1 << 20 }, nil) // a port may have any number
		a.must(err)
		return s
	}
	sweep()
	const some = 100
	for range some {
		if !begin(blueA, blueB) {
			t.Fatal("a flow was refused on a host that has room")
		}
	}
	for range 6 {
		sweep()
		for _, m := range []member{redA, redA2} {
			for range 2000 {
				if !begin(m, redB) {
					break
				}
			}
		}
	}
	s := sweep()
	if n := s.Ports[blueA.id]; n != some {
		t.Errorf("%d of %d flows of the other tenant are left", n, some)
	}
	if n := s.Ports[redA.id] + s.Ports[redA2.id]; n < 2000 || n > 3600 {
		t.Errorf("the busy tenant has %d flows of 4096, want most of them and not all", n)
	}
	for i := range 600 {
		if !begin(blueA, blueB) {
			t.Fatalf("the other tenant could begin %d flows more, want 600", i)
		}
	}
	if s := sweep(); s.Ports[blueA.id] != some+600 {
		t.Errorf("%d of %d flows of the other tenant are left", s.Ports[blueA.id], some+600)
	}
	if s := sweep(); s.Full4 <= 0.5 || s.Full4 >= 1 || s.Full6 != 0 {
		t.Errorf("while budgets bind, the tables are full to %.2f and %.2f, want less than 1 and 0", s.Full4, s.Full6)
	}
	a.sweptEarlier(61 * time.Second) // and no agent since
	for range 4096 {
		if !begin(redA, redB) {
			t.Fatal("a budget binds without an agent")
		}
	}
	if s := sweep(); s.Full4 < 1 || s.Ports[blueA.id] == some+600 {
		t.Errorf("without an agent %d flows of the other tenant are left, and the table is full to %.2f, want some forgotten, and 1", s.Ports[blueA.id], s.Full4)
	}
	a.must(a.dp.DeletePort(blueA.id))
	sweep()
	var b datapathFlowBudget
	if err := a.dp.objs.TenantFlows.Lookup(uint32(93), &b); err == nil {
		t.Errorf("a tenant without ports has a budget: %+v", b)
	}
}
