package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A twin is a host with its model: the same frame goes through both.
type twin struct {
	*host
	model *model
	traps *TrapReader
	lift  *lift
	up    *climber // the last frame, if from_wire has sent it up
	cpu   int
	xdp   [5]int // how often from_nic gave each verdict
	last  string // what the last frame was counted under; "": it wasn't ours, or went up
	flips int
	fills int
	shuts uint16 // the port that is closed now and then
	sets  map[uint16][2]*RuleSet
	often []Service // whose first backend dies and comes back
}

// newTwins makes a world of two hosts over one underlay, with ports of all kinds,
// rules, services, routes and a peer network, and models that know the same.
func newTwins(t *testing.T, v6 bool) (a, b *twin) {
	t.Helper()
	var ha, hb *host
	of, pas, selves, mtu := over4, [2]netip.Prefix{prefixA, prefixB}, [2]netip.Addr{hostA, hostB}, 1550
	if v6 {
		of, pas, selves, mtu = member.over6, [2]netip.Prefix{prefixA6, prefixB6}, [2]netip.Addr{hostA6, hostB6}, 1570
	}
	isolate(t)
	options := func(o *Options) {
		o.UnderlayMTU, o.FlowIdle = mtu, 24*time.Hour // an aggregated flow stays so
		o.NextHopAge = 24 * time.Hour                 // `make fuzz` refreshes none
		o.FlowQuota = flowQuota
	}
	ha, hb = newHostBy(t, loadBudgeted, "a", selves[0], pas[0], options), newHostBy(t, loadBudgeted, "b", selves[1], pas[1], options)
	ha.must(ha.dp.PutHost(pas[1]))
	hb.must(hb.dp.PutHost(pas[0]))
	ha.settle(of, redA, redA2, blueA)
	hb.settle(of, redB, blueB)
	a, b = twinOf(ha, pas, selves[0], 0, mtu, of), twinOf(hb, pas, selves[1], 1, mtu, of)
	a.configure(of(redA), of(redA2), of(blueA))
	b.configure(of(redB), of(redB), of(blueB))
	return a, b
}

func twinOf(h *host, pas [2]netip.Prefix, self netip.Addr, own, mtu int, of func(member) member) *twin {
	m := &model{
		mac: [6]byte(h.uplink.Attrs().HardwareAddr), pas: pas[own], self: self, under: mtu,
		ports: map[uint16]*modelPort{}, mappings: map[MappingKey]Mapping{}, hosts: []netip.Prefix{pas[1-own]},
		members: map[MappingKey]uint64{}, services: map[ServiceKey]*modelService{},
		hop:   NextHop{Dst: routerMAC, Src: [6]byte(h.uplink.Attrs().HardwareAddr)},
		flows: map[modelKey]*modelFlow{}, fragments: map[modelFragment]firstPieceOf{},
	}
	for _, x := range []member{redA, redA2, blueA, redB, blueB} {
		x = of(x)
		for _, mapping := range []Mapping{x.mapping(7), x.mapping6(7)} {
			m.mappings[mapping.MappingKey] = mapping
		}
	}
	tw := &twin{host: h, model: m, lift: newLift(h, self.Is6()), sets: map[uint16][2]*RuleSet{}}
	traps, err := h.dp.Traps()
	h.must(err)
	h.t.Cleanup(func() { _ = traps.Close() })
	tw.traps = traps
	tw.pinThread()
	return tw
}

// pinThread keeps the test on one CPU, where the programs leave what they know of a frame.
func (w *twin) pinThread() {
	var set unix.CPUSet
	set.Set(0)
	w.must(unix.SchedSetaffinity(0, &set))
}

// configure gives the ports their parts: rules, router, strict; and the network
// its services, routes and groups.
func (w *twin) configure(ruled, router, strict member) {
	echo, echo6 := uint8(8), uint8(128)
	w.sets[ruled.id] = [2]*RuleSet{{
		In: []Rule{{ID: 1, Protocol: protoUDP, MinPort: 5000, MaxPort: 7946}, {ID: 2, Deny: true, Protocol: protoTCP, Remote: pfx("10.17.34.64/26")},
			{ID: 3, Protocol: protoTCP, Groups: 1<<5 | 1<<9}, {ID: 4, Protocol: protoICMP, ICMPType: &echo}, {ID: 5, Protocol: protoSCTP, Family: IPv6}},
		Out: []Rule{{ID: 6, Deny: true, Protocol: protoUDP, Family: IPv6, MinPort: 7950, MaxPort: 7960}, {ID: 7, Deny: true, Remote: pfx("203.0.113.64/26")}},
	}, {
		In:  []Rule{{ID: 8, Protocol: protoICMPv6, ICMPType: &echo6}, {ID: 9, Family: IPv4, MinPort: 1, MaxPort: 65535}},
		Out: []Rule{{ID: 10, Protocol: protoTCP}, {ID: 11, Deny: true, Groups: 1 << 5}},
	}}
	w.must(w.dp.SetPortFlags(router.id, Router, 0))
	w.must(w.dp.SetPortFlags(strict.id, Strict|Reset, 0))
	w.shuts = strict.id
	w.must(w.dp.SetRules(ruled.id, w.sets[ruled.id][0]))
	for k, groups := range map[MappingKey]uint64{{red, caA}: 1 << 5, {red, caB6}: 1 << 9, {red, caA26}: 1<<5 | 1<<9, {red, caB}: 1 << 62} {
		w.must(w.dp.SetMembers(k, groups))
		w.model.members[k] = groups
	}
	for _, r := range []Route{{VNI: red, Prefix: pfx("203.0.113.0/24"), NextHop: caB}, {VNI: red, Prefix: pfx("2001:db8:9f27::/48"), NextHop: caA26},
		{VNI: red, Prefix: pfx("203.0.113.64/27"), NextHop: caA2}, {VNI: blue, Prefix: pfx("198.51.100.0/24"), Peer: red}, {VNI: red, Prefix: pfx("192.0.2.0/24")}} {
		w.must(w.dp.PutRoute(r))
		w.model.routes = append(w.model.routes, r)
	}
	for family := range 2 {
		for i, proto := range []uint8{protoTCP, protoUDP, protoSCTP} {
			s := serviceOf(family, proto)
			s.Affinity = i == 1
			for j, ca := range [][2]netip.Addr{{caB, caB6}, {caA2, caA26}, {caA, caA6}} {
				s.Backends = append(s.Backends, Backend{CA: ca[family], Port: map[bool]uint16{true: 8453, false: uint16(7951 + j)}[proto == protoSCTP], Weight: 3, Dead: j == 2 && i == 1})
			}
			w.service(s)
			w.often = append(w.often, s)
		}
		empty := serviceOf(family, protoTCP)
		empty.Port = 7952
		w.service(empty)
	}
	for id := range w.taps {
		w.must(w.dp.SetPortFlags(id, XDP, 0))
		p, err := w.dp.Port(id)
		w.must(err)
		w.model.ports[id] = &modelPort{Port: p, id: id}
	}
	w.bound(ruled, router)
	w.fill()
}

func (w *twin) service(s Service) {
	w.must(w.dp.SetService(s))
	row := w.dp.services.rows[s.ServiceKey]
	ms := &modelService{affinity: s.Affinity, live: map[netip.AddrPort]bool{}}
	byNumber := map[uint32]netip.AddrPort{}
	for _, b := range s.Backends {
		at := netip.AddrPortFrom(b.CA, b.Port)
		byNumber[row.backends[backendKey{b.CA, b.Port}]] = at
		ms.live[at] = !b.Dead
	}
	for _, n := range s.table(row.backends) {
		ms.table = append(ms.table, byNumber[n])
	}
	w.model.services[s.ServiceKey] = ms
}

// change puts the other set of rules in force, so that live flows are judged
// again, lets backends die or come back, and closes a port or opens it again. Now
// and then all ports are swapped where they are: their flows and fragments are over.
func (w *twin) change() {
	w.t.Helper()
	w.flips++
	for _, s := range w.often {
		s.Backends[0].Dead = w.flips%2 == 1
		w.service(s)
	}
	shut := w.model.ports[w.shuts]
	shut.Flags |= Open
	if w.flips%4 == 1 {
		shut.Flags &^= Open
	}
	w.must(w.dp.SetPortFlags(shut.id, shut.Flags&Open, Open))
	for id, sets := range w.sets {
		set := sets[w.flips%2]
		w.must(w.dp.SetRules(id, set))
		w.model.ports[id].Rules = set
		w.model.ports[id].generation++
	}
	if w.flips%4 != 3 {
		return
	}
	for id, p := range w.model.ports {
		p.Epoch++
		p.generation++
		w.must(w.dp.SetPort(id, p.Port))
	}
}

// forget empties flows and fragments in both and fills the budgets, so that nothing
// depends on a clock or on what a full table forgets.
func (w *twin) forget() {
	w.t.Helper()
	var flows []datapathFlowKey
	w.must(w.dp.eachFlow(func(k datapathFlowKey, _ datapathFlow) error { flows = append(flows, k); return nil }))
	for _, k := range flows {
		w.must(w.dp.deleteFlow(k))
	}
	var pieces []datapathFragmentKey
	w.must(each(w.dp.objs.Fragments, func(k datapathFragmentKey, _ datapathFragment) error { pieces = append(pieces, k); return nil }))
	for _, k := range pieces {
		w.must(ignoreMissing(w.dp.objs.Fragments.Delete(k)))
	}
	clear(w.model.flows)
	clear(w.model.fragments)
	w.fill()
}

// fromVM puts a frame from a port's VM through both; "" if they agree.
func (w *twin) fromVM(id uint16, frame []byte, gso int) string {
	return w.compare(w.dp.objs.FromVm, skb{Ifindex: uint32(w.taps[id]), GSOSize: uint32(gso), GSOSegs: 2}, frame, w.model.fromVM(id, frame, gso))
}

// fromWire puts a frame from the underlay through from_nic and from_wire: what the
// driver's hook takes has the verdict, the name and the bytes of the other one.
func (w *twin) fromWire(frame []byte, gso int) string {
	want := w.model.fromWire(frame, gso)
	if gso == 0 {
		if wrong := w.compareXDP(frame, want); wrong != "" {
			return "from_nic: " + wrong
		}
	}
	if w.up = nil; want.mark != 0 {
		o, vni, _ := w.model.outer(frame)
		w.up = &climber{frame: frame[o.header:], gso: gso, mark: want.mark, vni: vni, src: o.src}
	}
	return w.compare(w.dp.objs.FromWire, skb{Ifindex: uint32(w.uplink.Attrs().Index), GSOSize: uint32(gso), GSOSegs: 2}, frame, want)
}

// fromHost puts a frame from the metadata service through both.
func (w *twin) fromHost(frame []byte) string {
	return w.compare(w.dp.objs.FromHost, skb{}, frame, w.model.fromHost(frame))
}

func (w *twin) compare(p *ebpf.Program, in skb, frame []byte, want outcome) string {
	var after skb
	defer clear(w.model.spent)
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: in, ContextOut: &after}
	verdict, err := p.Run(&opts)
	if errors.Is(err, unix.EINVAL) {
		return "" // the test run itself takes no such frame
	}
	w.must(err)
	if w.last = ""; want.reason != "" || verdict != want.verdict {
		w.last = w.reason()
	}
	switch {
	case verdict != want.verdict || w.last != want.reason:
		return fmt.Sprintf("verdict %d for %q, the model says %d for %q", int32(verdict), w.last, int32(want.verdict), want.reason)
	case want.out != nil && !bytes.Equal(opts.DataOut, want.out):
		return fmt.Sprintf("%q: leaves as\n%sthe model says\n%s", w.last, dump(opts.DataOut), dump(want.out))
	case after.Mark != want.mark:
		return fmt.Sprintf("mark %#x, the model says %#x", after.Mark, want.mark)
	case want.trap != 0:
		if wrong := w.compareTrap(frame, want.trap); wrong != "" {
			return wrong
		}
	}
	return w.compareSpent()
}

func (w *twin) compareXDP(frame []byte, want outcome) string {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	verdict, err := w.dp.objs.FromNic.Run(&opts)
	if errors.Is(err, unix.EINVAL) {
		return "" // the test run itself takes no such frame
	}
	w.must(err)
	if verdict == xdpPass && len(opts.DataOut) > len(frame) { // numbered: it waits for those before it, once
		w.arrive()
		opts.DataOut = make([]byte, len(frame)+256)
		verdict, err = w.dp.objs.FromNic.Run(&opts)
		w.must(err)
	}
	w.xdp[verdict]++
	switch verdict {
	case xdpPass:
		if !bytes.HasSuffix(opts.DataOut, frame) || len(opts.DataOut) > len(frame)+4 {
			return fmt.Sprintf("goes on changed:\n%s", dump(opts.DataOut))
		}
	case xdpRedirect:
		if want.reason != "none" || !bytes.Equal(opts.DataOut, want.out) {
			return fmt.Sprintf("redirected as\n%sthe model says %q and\n%s", dump(opts.DataOut), want.reason, dump(want.out))
		}
	case xdpDrop:
		if why := w.reason(); why != want.reason {
			return fmt.Sprintf("drops for %q, the model says %q", why, want.reason)
		}
	default:
		return fmt.Sprintf("verdict %d", verdict)
	}
	return w.judgedTwice(verdict)
}

func (w *twin) compareTrap(frame []byte, kind TrapKind) string {
	w.traps.SetDeadline(time.Now().Add(5 * time.Second))
	got, err := w.traps.Read()
	if err != nil || got.Kind != kind || !bytes.Equal(got.Frame, frame) {
		return fmt.Sprintf("trapped %+v, %v, the model says kind %d", got, err, kind)
	}
	return ""
}

// reason is what the last frame on this CPU was counted under.
func (w *twin) reason() string {
	var perCPU []datapathPacket
	w.must(w.dp.objs.Packets.Lookup(uint32(0), &perCPU))
	return DropReason(perCPU[w.cpu].Why).String()
}
