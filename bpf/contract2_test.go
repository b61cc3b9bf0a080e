package bpf

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// flowsOfContract2 leaves the host as contract 2 would have: its table of flows
// in the place of this one's.
func (h *host) flowsOfContract2() table {
	h.t.Helper()
	spec, err := ebpf.LoadCollectionSpec("testdata/contract2.o")
	h.must(err)
	s := spec.Maps[datapathMapFlows].Copy()
	s.Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(s)
	h.must(err)
	h.t.Cleanup(func() { _ = m.Close() })
	h.must(errors.Join(h.dp.objs.Flows.Unpin(), h.dp.objs.Flows4.Unpin(), h.dp.objs.Contract.Put(uint32(0), datapathLimits(2)),
		m.Pin(filepath.Join(mapDir(h.options.PinDir), datapathMapFlows))))
	return table{m, s.Key, s.Value}
}

// An oldFlow is what a row of contract 2 said of a TCP connection of redA.
type oldFlow struct {
	local, remote netip.AddrPort
	service       netip.AddrPort // the zero AddrPort: none
}

func (h *host) putOldFlow(t table, f oldFlow, now uint32) {
	h.t.Helper()
	r := row{make([]byte, t.KeySize()), [][]byte{make([]byte, t.ValueSize())}}
	v := t.views([]row{r})[0]
	set16(v.key.field("local"), f.local.Addr())
	set16(v.key.field("remote"), f.remote.Addr())
	for name, n := range map[string]uint64{"lport": uint64(swap16(f.local.Port())), "rport": uint64(swap16(f.remote.Port())), "port_id": uint64(redA.id), "proto": protoTCP} {
		v.key.field(name).set(n)
	}
	for name, n := range map[string]uint64{"epoch": redA.epoch, "way_since": 1, "seen": uint64(now), "generation": 3, "rule": 0x7fedcba1,
		"flags": uint64(datapathFlowFlagFLOW_ANSWERED), "began": 0x1122334455667788} {
		v.value.field(name).set(n)
	}
	if f.service.IsValid() {
		set16(v.value.field("nat"), f.service.Addr())
		v.value.field("nat_port").set(uint64(swap16(f.service.Port())))
		v.value.field("backend").set(0xabcd)
		v.value.field("flags").set(uint64(datapathFlowFlagFLOW_ANSWERED | datapathFlowFlagFLOW_SERVICE))
	}
	v.value.field("acked").at(0).set(0x87654321)
	v.value.field("acked").at(1).set(0x12345678)
	v.value.field("from").field("packets").set(0x100000001)
	v.value.field("to").field("bytes").set(0x200000002)
	h.must(t.put([]row{r}))
}

// The connections of contract 2 go on: those of both families, and one that
// began while the rows were copied.
func TestFlowsFromContract2(t *testing.T) {
	a := inUse(t)
	clock, err := a.dp.clock(false)
	a.must(err)
	old := a.flowsOfContract2()
	flows := []oldFlow{
		{local: netip.AddrPortFrom(caA, 40961), remote: netip.AddrPortFrom(caB, 443)},
		{local: netip.AddrPortFrom(caA6, 40962), remote: netip.AddrPortFrom(caB6, 443)},
		{local: netip.AddrPortFrom(caA, 40963), remote: netip.AddrPortFrom(vips[0], 8453), service: netip.AddrPortFrom(caB, 9443)},
		{local: netip.AddrPortFrom(caA, 40964), remote: netip.AddrPortFrom(caB, 443)},
	}
	for _, f := range flows[:3] {
		a.putOldFlow(old, f, clock.now)
	}

	spec, err := specOf(a.options)
	a.must(err)
	next, p := a.draft(spec)
	a.must(next.copyRows(spec, p))
	a.putOldFlow(old, flows[3], clock.now)
	a.must(next.takeHooks(spec, p))

	got := map[netip.AddrPort]Flow{}
	a.must(next.EachFlow(func(f Flow) { got[f.Local] = f }))
	for _, f := range flows {
		want := Flow{Port: redA.id, Epoch: redA.epoch, Protocol: protoTCP, Local: f.local, Remote: f.remote, Service: f.service, Answered: true, Rule: 0x7fedcba1,
			Began: time.Duration(0x1122334455667788), Idle: got[f.local].Idle, From: Count{Packets: 0x100000001}, To: Count{Bytes: 0x200000002},
			LocalAck: 0x87654321, RemoteAck: 0x12345678}
		if got[f.local] != want {
			t.Errorf("from %v:\ngot  %+v\nwant %+v", f.local, got[f.local], want)
		}
	}
	if n := next.objs.Flows4; len(got) != len(flows) || rowsOf(t, n) != 3 {
		t.Errorf("%d flows, %d of IPv4, want 4 and 3", len(got), rowsOf(t, n))
	}
}

func rowsOf(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	if err := each(m, func(datapathFlowKey4, datapathFlow) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}
