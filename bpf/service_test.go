package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

var vips = [2]netip.Addr{addr("10.17.34.203"), addr("fd17:2a5c:8b3e:4d91:6472:f8a5:93c6:b7cb")}

func serviceOf(family int, proto uint8, backends ...Backend) Service {
	return Service{ServiceKey: ServiceKey{VNI: red, VIP: vips[family], Port: 8453, Protocol: proto}, Backends: backends}
}

// chosen asks the table as choose_backend does, for many flows of one client.
func chosen(s Service, numbers map[backendKey]uint32, flows int) []uint32 {
	table := s.table(numbers)
	out := make([]uint32, flows)
	for i := range out {
		out[i] = table[mix(mix(0x2545f491, uint32(i)), 0x5a6b7c8d)&uint32(len(table)-1)]
	}
	return out
}

// hundred puts a service of a hundred backends in force, all of them on host B.
func hundred(a *host, family int) Service {
	s := serviceOf(family, protoUDP)
	for i := range 100 {
		ca := redB.cas()[family].AsSlice()
		ca[len(ca)-1] = byte(101 + i)
		at, _ := netip.AddrFromSlice(ca)
		a.must(a.dp.PutMappings(Mapping{MappingKey{red, at}, redB.pa, redB.mac, 7}))
		s.Backends = append(s.Backends, Backend{CA: at, Port: 7951, Weight: 3})
	}
	return s
}

// asked sends the first packet of each of many flows to a service, and tells to
// which of its backends it went. The port's new epoch has ended what flows it had.
func asked(a *host, from member, s Service, family, flows int) []netip.Addr {
	a.t.Helper()
	a.must(errors.Join(a.dp.SetService(s), a.dp.SetPort(from.id, from.port(a.taps[from.id]))))
	out := make([]netip.Addr, flows)
	for i := range out {
		v, wire := a.send(from, from.frame(udpOf(from.cas()[family], s.VIP, uint16(20000+i), s.Port, text(19))))
		if v != actRedirect {
			a.t.Fatalf("flow %d: verdict %d; %v", i, int32(v), a.drops())
		}
		packet := wire[OverheadIPv4+14:]
		out[i], _ = netip.AddrFromSlice([][]byte{packet[16:20], packet[24:40]}[family])
	}
	return out
}

// When one of a hundred backends goes, by whatever door, the loaded program sends
// its own flows elsewhere and no other: 1.2% is what issue 3 allows.
func TestBackendGoes(t *testing.T) {
	const flows = 4000
	a, from := newA(t), redA
	for family, name := range []string{"IPv4", "IPv6"} {
		s := hundred(a, family)
		gone := s.Backends[37].CA
		from.epoch++
		before := asked(a, from, s, family, flows)
		for door, change := range map[string]func(*Service){
			"taken out": func(s *Service) { s.Backends = slices.Delete(s.Backends, 37, 38) },
			"dead":      func(s *Service) { s.Backends[37].Dead = true },
			"draining":  func(s *Service) { s.Backends[37].Draining = true },
			"weight 0":  func(s *Service) { s.Backends[37].Weight = 0 },
		} {
			less := s
			less.Backends = slices.Clone(s.Backends)
			change(&less)
			from.epoch++
			moved, lost := 0, 0
			for i, now := range asked(a, from, less, family, flows) {
				switch {
				case now == gone:
					t.Errorf("%s, %s: flow %d still goes there", name, door, i)
				case before[i] == gone:
					lost++
				case now != before[i]:
					moved++
				}
			}
			if moved != 0 || lost < flows/100/2 || lost > flows/100*2 {
				t.Errorf("%s, %s: %d flows of other backends moved, want 0; %d were its own, want about %d", name, door, moved, lost, flows/100)
			}
		}
	}
}

// A backend that joins takes its share from the others, who exchange none. Where the
// table grows they do: three times on the way to 256 backends.
func TestBackendJoins(t *testing.T) {
	const flows = 20_000
	s, numbers := serviceOf(0, protoTCP), map[backendKey]uint32{}
	var before []uint32
	grown := 0
	for n := 1; n <= 256; n++ {
		b := Backend{CA: addr4([4]byte{10, 17, byte(34 + n/256), byte(n)}), Port: 7951, Weight: 100}
		s.Backends, numbers[backendKey{b.CA, b.Port}] = append(s.Backends, b), uint32(n)
		if slotCount(n) != slotCount(max(n-1, 1)) {
			grown, before = grown+1, nil
		}
		if n > 12 && n%40 > 2 { // a table of many takes a while
			before = nil
			continue
		}
		moved := 0
		now := chosen(s, numbers, flows)
		for i := range before {
			if now[i] != before[i] && now[i] != uint32(n) {
				moved++
			}
		}
		if moved != 0 {
			t.Errorf("backend %d joins: %d of %d flows move between others", n, moved, flows)
		}
		before = now
	}
	if grown > 3 {
		t.Errorf("the table grew %d times, want 3 at most", grown)
	}
}

// The share of each backend follows its weight.
func TestBackendWeights(t *testing.T) {
	const flows = 200_000
	s, numbers := serviceOf(1, protoUDP), map[backendKey]uint32{}
	total := 0
	for i, weight := range []uint16{1, 3, 7, 0, 29} {
		b := Backend{CA: flipBit(caB6, 120+i), Port: uint16(7951 + i), Weight: weight}
		s.Backends, total = append(s.Backends, b), total+int(weight)
		numbers[backendKey{b.CA, b.Port}] = uint32(i + 1)
	}
	got := map[uint32]int{}
	for _, n := range chosen(s, numbers, flows) {
		got[n]++
	}
	for i, b := range s.Backends {
		want := float64(flows) * float64(b.Weight) / float64(total)
		if n := float64(got[uint32(i+1)]); math.Abs(n-want) > want/5+float64(flows)/200 {
			t.Errorf("weight %d of %d gets %.0f of %d flows, want %.0f", b.Weight, total, n, flows, want)
		}
	}
}

// A service's way through the datapath, for both families: to a backend on
// another host and to one on this, and the answers back, with right checksums.
func TestServices(t *testing.T) {
	a, b := newWorld(t)
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, proto := range []uint8{protoTCP, protoUDP, protoSCTP} {
			s := &serviceCase{t: t, a: a, b: b, family: family, proto: proto, name: fmt.Sprintf("%s, protocol %d", name, proto), port: uint16(22000 + family*1000 + int(proto)*5)}
			s.toBackend(redB)
			s.toBackend(redA2)
		}
		s := &serviceCase{t: t, a: a, b: b, family: family, proto: protoTCP, name: name, port: uint16(25000 + family*1000)}
		s.clientAndBackend()
		s.draining()
		s.affinity()
		s.lasting()
		s.judgedAgain()
	}
	spread(t, a)
	servicesReadBack(t, a)
	tenantsReadBack(t, a)
	drainingReadBack(t, a)
	servicesFull(t, a)
}

type serviceCase struct {
	t      *testing.T
	a, b   *host
	family int
	proto  uint8
	name   string
	port   uint16
}

func (s *serviceCase) fresh() uint16 { s.port++; return s.port }

func (s *serviceCase) backend(m member) Backend {
	port := uint16(7951)
	if s.proto == protoSCTP { // its checksum covers the port
		port = 8453
	}
	return Backend{CA: m.cas()[s.family], Port: port, Weight: 3}
}

func (s *serviceCase) set(backends ...Backend) {
	s.t.Helper()
	s.a.must(s.a.dp.SetService(serviceOf(s.family, s.proto, backends...)))
}

// packet is one of the flow, with flags if it is TCP's.
func (s *serviceCase) packet(src, dst netip.Addr, sport, dport uint16, flags byte) []byte {
	switch s.proto {
	case protoTCP:
		return segment{sport: sport, dport: dport, flags: flags, payload: text(19)}.of(src, dst)
	case protoUDP:
		return udpOf(src, dst, sport, dport, text(19))
	default:
		return sctpOf(src, dst, sport, dport)
	}
}

// sends is a's VM to the service; it returns the frame that leaves.
func (s *serviceCase) sends(sport uint16, flags byte) []byte {
	s.t.Helper()
	v, out := s.a.send(redA, redA.frame(s.packet(redA.cas()[s.family], vips[s.family], sport, 8453, flags)))
	if v != actRedirect {
		s.t.Errorf("%s: to the service: verdict %d; %v", s.name, int32(v), s.a.drops())
	}
	return out
}

// toBackend: the destination becomes the backend's, in the answers the source
// becomes the service's, and nothing else changes.
func (s *serviceCase) toBackend(m member) {
	b, sport := s.backend(m), s.fresh()
	client := redA.cas()[s.family]
	s.set(b)
	out := s.sends(sport, flagSYN)
	want := s.packet(client, b.CA, sport, b.Port, flagSYN)
	answer := s.packet(b.CA, client, b.Port, sport, flagSYN|flagACK)
	var v uint32
	var got []byte
	if m.id == redB.id {
		s.golden("service_request", out)
		out = out[50:]
		v, got = s.a.receive(redB.wire(redA, answer))
	} else {
		v, got = s.a.send(redA2, redA2.frame(answer))
	}
	if !bytes.Equal(out[14:], want) {
		s.t.Errorf("%s: to port %d: got\n%swant\n%s", s.name, m.id, dump(out[14:]), dump(want))
	}
	want = s.packet(vips[s.family], client, 8453, sport, flagSYN|flagACK)
	if v != actRedirect || !bytes.Equal(got[14:], want) {
		s.t.Errorf("%s: the answer of port %d: verdict %d, got\n%swant\n%s", s.name, m.id, int32(v), dump(got[14:]), dump(want))
	}
	if m.id == redB.id {
		s.golden("service_answer", got)
	}
	if s.proto == protoUDP && s.family == 0 {
		s.withoutChecksum(b, sport)
	}
}

// withoutChecksum: a datagram over IPv4 that has none gets none.
func (s *serviceCase) withoutChecksum(b Backend, sport uint16) {
	strip := func(p []byte) []byte { p[26], p[27] = 0, 0; return p }
	client := redA.cas()[0]
	_, out := s.a.send(redA, redA.frame(strip(s.packet(client, vips[0], sport, 8453, 0))))
	want := strip(s.packet(client, b.CA, sport, b.Port, 0))
	if got := out[len(out)-len(want):]; !bytes.Equal(got, want) {
		s.t.Errorf("%s: without a checksum: got\n%swant\n%s", s.name, dump(got), dump(want))
	}
}

func (s *serviceCase) golden(name string, frame []byte) {
	s.t.Helper()
	golden(s.t, fmt.Sprintf("%s_%s_ipv%d", name, map[uint8]string{protoTCP: "tcp", protoUDP: "udp", protoSCTP: "sctp"}[s.proto], 4+2*s.family), frame)
}

// clientAndBackend: a VM behind the service that calls it gets another backend,
// never itself; alone behind it, none.
func (s *serviceCase) clientAndBackend() {
	self := s.backend(redA)
	s.set(self, s.backend(redB))
	for range 50 {
		out := s.sends(s.fresh(), flagSYN)
		if len(out) < 100 {
			s.t.Fatalf("%s: got itself as backend\n%s", s.name, dump(out))
		}
	}
	s.set(self)
	before := s.a.drops()
	s.a.send(redA, redA.frame(s.packet(redA.cas()[s.family], vips[s.family], s.fresh(), 8453, flagSYN)))
	s.a.counted("only itself behind the service, "+s.name, before, "no_backend")
}

// draining: its flows go on, new ones go elsewhere.
func (s *serviceCase) draining() {
	first, second := s.backend(redB), s.backend(redA2)
	s.set(first)
	old := s.fresh()
	s.sends(old, flagSYN)
	first.Draining = true
	s.set(first, second)
	if out := s.sends(old, flagACK); len(out) < 100 {
		s.t.Errorf("%s: a flow of the draining backend went elsewhere", s.name)
	}
	for range 20 {
		if out := s.sends(s.fresh(), flagSYN); len(out) > 100 {
			s.t.Fatalf("%s: a new flow went to the draining backend", s.name)
		}
	}
	s.set(second)
	before := s.a.drops()
	v, out := s.a.send(redA, redA.frame(s.packet(redA.cas()[s.family], vips[s.family], old, 8453, flagACK)))
	s.a.counted("its backend has gone, "+s.name, before, "dead_backend")
	if v != actRedirect || !isReset(out) {
		s.t.Errorf("%s: its backend has gone: verdict %d, want a reset", s.name, int32(v))
	}
	if out := s.sends(old, flagSYN); len(out) > 100 {
		s.t.Errorf("%s: begun again, it went to the backend that has gone", s.name)
	}
}

// affinity: all flows of a client go to one backend.
func (s *serviceCase) affinity() {
	sv := serviceOf(s.family, protoTCP, s.backend(redB), s.backend(redA2))
	sv.Affinity = true
	s.a.must(s.a.dp.SetService(sv))
	lengths := map[int]bool{}
	for range 50 {
		lengths[len(s.sends(s.fresh(), flagSYN))] = true
	}
	if len(lengths) != 1 {
		s.t.Errorf("%s: with affinity, flows of one client went to %d backends", s.name, len(lengths))
	}
	sv.Affinity = false
	s.a.must(s.a.dp.SetService(sv))
	for range 50 {
		lengths[len(s.sends(s.fresh(), flagSYN))] = true
	}
	if len(lengths) != 2 {
		s.t.Errorf("%s: without affinity, 50 flows went to %d backends", s.name, len(lengths))
	}
}

// lasting: an established connection's two rows live together, so that one which
// only the backend feeds keeps its backend, and they end together.
func (s *serviceCase) lasting() {
	client, b := redA.cas()[s.family], s.backend(redB)
	s.set(b)
	sport := s.fresh()
	s.sends(sport, flagSYN)
	answer := func(flags byte) {
		s.a.receive(redB.wire(redA, segment{sport: b.Port, dport: sport, flags: flags, ack: 0x3d4e5f6a}.of(b.CA, client)))
	}
	answer(flagSYN | flagACK)
	s.a.age(sport, 90*time.Second) // longer than an opening connection may be silent
	answer(flagACK)
	s.set(s.backend(redA2), Backend{CA: b.CA, Port: b.Port, Weight: 3, Draining: true})
	if out := s.sends(sport, flagACK); len(out) < 100 {
		s.t.Errorf("%s: a connection of 90 s lost its backend", s.name)
	}
	open, err := s.a.dp.Connections(redA.id, redA.epoch)
	s.a.must(err)
	i := slices.IndexFunc(open, func(f Flow) bool { return f.Local.Port() == sport })
	if i < 0 || open[i].Service != netip.AddrPortFrom(b.CA, b.Port) || open[i].LocalAck != 0x5e6f7182 || open[i].RemoteAck != 0x3d4e5f6a {
		s.t.Errorf("%s: connections %+v, want that of port %d with both acknowledgements", s.name, open, sport)
	}
	answer(flagRST)
	if f, ok := s.a.flowFrom(redA.id, sport); !ok || !f.Closing {
		s.t.Errorf("%s: the backend's reset ended one row only: %+v, %v", s.name, f, ok)
	}
}

// judgedAgain: a rule that forbids the service ends its answers, too.
func (s *serviceCase) judgedAgain() {
	client, b := redA.cas()[s.family], s.backend(redB)
	s.set(b)
	sport := s.fresh()
	s.sends(sport, flagSYN)
	answer := func() {
		s.a.receive(redB.wire(redA, segment{sport: b.Port, dport: sport, flags: flagACK}.of(b.CA, client)))
	}
	toService := Rule{ID: 81, Remote: netip.PrefixFrom(vips[s.family], vips[s.family].BitLen())}
	s.a.must(s.a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{toService, {ID: 82, Deny: true}}}))
	before := s.a.drops()
	answer()
	s.a.counted("an answer of an allowed service, "+s.name, before, "none")
	toService.Deny = true
	s.a.must(s.a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{toService}}))
	before = s.a.drops()
	answer()
	s.a.counted("an answer of a forbidden service, "+s.name, before, "rule_out")
	s.a.must(s.a.dp.SetRules(redA.id, nil))
}

// age makes the flows of a local port older than they are.
func (h *host) age(local uint16, by time.Duration) {
	h.t.Helper()
	var keys []datapathFlowKey
	var rows []datapathFlow
	h.must(h.dp.eachFlow(func(k datapathFlowKey, v datapathFlow) error {
		if swap16(k.Lport) == local {
			v.Seen -= uint32(ticks(by))
			if v.Aggregated != 0 {
				v.Aggregated -= uint32(ticks(by))
			}
			keys, rows = append(keys, k), append(rows, v)
		}
		return nil
	}))
	for i := range keys {
		h.must(h.dp.putFlow(keys[i], rows[i], ebpf.UpdateAny))
	}
	if len(keys) == 0 {
		h.t.Fatalf("no flow of port %d", local)
	}
}

// flowFrom finds a port's flow by its own port.
func (h *host) flowFrom(id, local uint16) (found Flow, ok bool) {
	h.t.Helper()
	h.must(h.dp.EachFlow(func(f Flow) {
		if f.Port == id && f.Local.Port() == local && !f.Answers {
			found, ok = f, true
		}
	}))
	return found, ok
}

// spread: real flows follow the table, so that each of three backends has its share.
func spread(t *testing.T, a *host) {
	s := serviceOf(0, protoUDP)
	for i := range 3 {
		s.Backends = append(s.Backends, Backend{CA: caB, Port: uint16(7951 + i), Weight: uint16(1 + i*2)})
	}
	a.must(a.dp.SetService(s))
	got := map[uint16]int{}
	for i := range 1800 {
		_, out := a.send(redA, redA.frame(udpOf(caA, vips[0], uint16(30000+i), 8453, text(19))))
		got[uint16(out[50+36])<<8|uint16(out[50+37])]++
	}
	for i, want := range []int{200, 600, 1000} {
		if n := got[uint16(7951+i)]; n < want*7/10 || n > want*13/10 {
			t.Errorf("backend %d gets %d of 1,800 flows, want %d give or take 30%%: %v", i, n, want, got)
		}
	}
}
