package bpf

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// Rules: what each matches, their order, their replacement, what is read back.
func TestRules(t *testing.T) {
	a, b := newWorld(t)
	ruleMatching(t, a, b)
	ruleOrder(t, b)
	rulesReplacedWhole(t, b)
	rulesReadBack(t, a)
}

// ruleMatching: what a line matches, in both directions and families. The same
// line allows the flow in at one host and denies it out at the other.
func ruleMatching(t *testing.T, a, b *host) {
	echo, other := uint8(8), uint8(13)
	echo6 := uint8(128)
	a.must(errors.Join(a.dp.SetMembers(MappingKey{red, caB}, 1<<5|1<<41), b.dp.SetMembers(MappingKey{red, caA}, 1<<5|1<<41)))
	a.must(errors.Join(a.dp.SetMembers(MappingKey{red, caB6}, 1<<62), b.dp.SetMembers(MappingKey{red, caA6}, 1<<62)))
	a.must(a.dp.SetMembers(MappingKey{blue, caB}, 1<<7)) // the other network's groups are nobody's business
	port := uint16(20000)
	for _, c := range []struct {
		name   string
		rule   Rule
		family int
		proto  byte
		dport  uint16
		want   bool
	}{
		{"anything", Rule{}, 0, protoUDP, 7946, true},
		{"anything", Rule{}, 1, protoTCP, 7946, true},
		{"its protocol", Rule{Protocol: protoTCP}, 0, protoTCP, 7946, true},
		{"another protocol", Rule{Protocol: protoTCP}, 0, protoUDP, 7946, false},
		{"SCTP", Rule{Protocol: protoSCTP, MinPort: 7946, MaxPort: 7946}, 1, protoSCTP, 7946, true},
		{"its family", Rule{Family: IPv6}, 1, protoUDP, 7946, true},
		{"the other family", Rule{Family: IPv6}, 0, protoUDP, 7946, false},
		{"the port", Rule{MinPort: 7946, MaxPort: 7946}, 0, protoUDP, 7946, true},
		{"a port below", Rule{MinPort: 7946, MaxPort: 7958}, 0, protoUDP, 7945, false},
		{"the lowest port", Rule{MinPort: 7946, MaxPort: 7958}, 0, protoUDP, 7946, true},
		{"the highest port", Rule{MinPort: 7946, MaxPort: 7958}, 1, protoTCP, 7958, true},
		{"a port above", Rule{MinPort: 7946, MaxPort: 7958}, 1, protoTCP, 7959, false},
		{"all ports but 0", Rule{MinPort: 1, MaxPort: 65535}, 0, protoUDP, 65535, true},
		{"port 0 of all but 0", Rule{MinPort: 1, MaxPort: 65535}, 0, protoUDP, 0, false},
		{"the echo request", Rule{Protocol: protoICMP, ICMPType: &echo}, 0, protoICMP, 0, true},
		{"another type", Rule{Protocol: protoICMP, ICMPType: &other}, 0, protoICMP, 0, false},
		{"the echo request", Rule{Protocol: protoICMPv6, ICMPType: &echo6}, 1, protoICMPv6, 0, true},
		{"IPv4's type", Rule{Protocol: protoICMPv6, ICMPType: &echo}, 1, protoICMPv6, 0, false},
		{"a group", Rule{Groups: 1 << 41}, 0, protoUDP, 7946, true},
		{"one of some groups", Rule{Groups: 1<<3 | 1<<5}, 0, protoUDP, 7946, true},
		{"a group that it isn't in", Rule{Groups: 1 << 7}, 0, protoUDP, 7946, false},
		{"the highest group", Rule{Groups: 1 << 62}, 1, protoUDP, 7946, true},
		{"the other family's groups", Rule{Groups: 1 << 41}, 1, protoUDP, 7946, false},
	} {
		port++
		in, out := matching(a, b, c.rule, c.family, c.proto, port, c.dport)
		if in != c.want || out != c.want {
			t.Errorf("%s, IPv%d: matched %v in, %v out, want %v", c.name, 4+2*c.family, in, out, c.want)
		}
	}
	matchPrefixes(t, a, b)
}

// matchPrefixes: of each length, the address itself and its neighbour behind the last bit.
func matchPrefixes(t *testing.T, a, b *host) {
	port := uint16(30000)
	for family, most := range []int{32, 128} {
		for _, bits := range []int{0, 1, 7, 23, 24, 31, 32, 33, 63, 64, 97, 127, 128} {
			if bits > most {
				continue
			}
			port++
			src, dst := redA.cas()[family], redB.cas()[family]
			if !matchesIn(b, Rule{Remote: netip.PrefixFrom(src, bits).Masked()}, src, dst, port) {
				t.Errorf("%s isn't in its own prefix of %d bits", src, bits)
			}
			if bits == 0 {
				continue
			}
			port++
			wrong := flipBit(src, bits-1)
			if matchesIn(b, Rule{Remote: netip.PrefixFrom(wrong, bits).Masked()}, src, dst, port) {
				t.Errorf("%s is in %s/%d", src, wrong, bits)
			}
		}
		// The other family's prefix of no bits isn't this one's.
		other := []netip.Prefix{pfx("::/0"), pfx("0.0.0.0/0")}[family]
		port++
		if matchesIn(b, Rule{Remote: other}, redA.cas()[family], redB.cas()[family], port) {
			t.Errorf("%s matches IPv%d", other, 4+2*family)
		}
	}
}

func flipBit(a netip.Addr, bit int) netip.Addr {
	b := a.AsSlice()
	b[bit/8] ^= 0x80 >> (bit % 8)
	out, _ := netip.AddrFromSlice(b)
	return out
}

func matchesIn(b *host, r Rule, src, dst netip.Addr, sport uint16) bool {
	b.t.Helper()
	b.must(b.dp.SetRules(redB.id, &RuleSet{In: []Rule{r}}))
	v, _ := b.receive(redA.wire(redB, udpOf(src, dst, sport, 7946, text(37))))
	return v == actRedirect
}

// matching says whether a rule matches a flow in at b and out at a.
func matching(a, b *host, r Rule, family int, proto byte, sport, dport uint16) (in, out bool) {
	a.t.Helper()
	src, dst := redA.cas()[family], redB.cas()[family]
	var p []byte
	switch proto {
	case protoUDP:
		p = udpOf(src, dst, sport, dport, text(37))
	case protoTCP:
		p = segment{sport: sport, dport: dport, flags: flagSYN}.of(src, dst)
	case protoSCTP:
		p = sctpOf(src, dst, sport, dport)
	default:
		p = ping(src, dst, text(29))
		p[len(p)-29-4], p[len(p)-29-3] = byte(sport>>8), byte(sport)
	}
	deny := r
	deny.Deny = true
	a.must(errors.Join(b.dp.SetRules(redB.id, &RuleSet{In: []Rule{r}}), a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{deny}})))
	vIn, _ := b.receive(redA.wire(redB, p))
	vOut, _ := a.send(redA, redA.frame(p))
	return vIn == actRedirect, vOut == actShot
}

// sctpOf is an SCTP packet: its header, and a chunk that nobody reads here.
func sctpOf(src, dst netip.Addr, sport, dport uint16) []byte {
	b := []byte{byte(sport >> 8), byte(sport), byte(dport >> 8), byte(dport), 0x5a, 0x6b, 0x7c, 0x8d, 0x9e, 0xaf, 0xb1, 0xc2}
	return packet(src, dst, protoSCTP, append(b, text(20)...))
}

// ruleOrder: the first line that matches decides, be it the last of a thousand;
// which one it was stands in the flow.
func ruleOrder(t *testing.T, b *host) {
	thousand := func(last Rule) []Rule {
		rules := make([]Rule, 999, 1000)
		for i := range rules {
			rules[i] = Rule{ID: uint32(100 + i), Protocol: protoUDP, Deny: i%2 == 0, MinPort: uint16(20001 + i), MaxPort: uint16(20001 + i)}
		}
		return append(rules, last)
	}
	port := uint16(40000)
	for _, c := range []struct {
		name  string
		rules []Rule
		rule  int32 // of the flow
		want  string
	}{
		{"allow before deny", []Rule{{ID: 61}, {ID: 62, Deny: true}}, 61, "none"},
		{"deny before allow", []Rule{{ID: 62, Deny: true}, {ID: 61}}, 0, "rule_in"},
		{"what doesn't match is passed by", []Rule{{ID: 63, Deny: true, Protocol: protoTCP}, {ID: 61}}, 61, "none"},
		{"none matches", []Rule{{ID: 63, Protocol: protoTCP}}, 0, "no_rule_in"},
		{"the last of a thousand allows", thousand(Rule{ID: 71, MinPort: 7946, MaxPort: 7946}), 71, "none"},
		{"the last of a thousand denies", thousand(Rule{ID: 72, Deny: true, MinPort: 7946, MaxPort: 7946}), 0, "rule_in"},
		{"none of a thousand matches", thousand(Rule{ID: 72, MinPort: 7947, MaxPort: 7947}), 0, "no_rule_in"},
	} {
		port++
		b.must(b.dp.SetRules(redB.id, &RuleSet{In: c.rules}))
		before := b.drops()
		b.receive(redA.wire(redB, udpOf(caA6, caB6, port, 7946, text(37))))
		b.counted(c.name, before, c.want)
		f, ok := b.flow(redB.id, port)
		if ok != (c.want == "none") || ok && f.Rule != c.rule {
			t.Errorf("%s: flow %+v, %v, want one by rule %d", c.name, f, ok, c.rule)
		}
	}
	if err := b.dp.SetRules(redB.id, &RuleSet{In: append(thousand(Rule{}), Rule{})}); !errors.Is(err, ErrRule) {
		t.Errorf("1,001 rules: got %v, want ErrRule", err)
	}
}

// flow finds a port's flow by the other end's port, or the local one.
func (h *host) flow(id, remote uint16) (found Flow, ok bool) {
	h.t.Helper()
	h.must(h.dp.EachFlow(func(f Flow) {
		if f.Port == id && f.Remote.Port() == remote && !f.Answers {
			found, ok = f, true
		}
	}))
	return found, ok
}

// rulesReplacedWhole: while the set changes as fast as it can, a packet that both
// sets allow, by different lines, is never refused. Whoever saw half of one set
// and half of the other would refuse it.
func rulesReplacedWhole(t *testing.T, b *host) {
	set := func(allow uint16) *RuleSet {
		var rules []Rule
		for i := range 97 {
			rules = append(rules, Rule{ID: uint32(i), Deny: true, MinPort: uint16(20000 + i), MaxPort: uint16(20000 + i)})
		}
		rules = slices.Insert(rules, int(allow), Rule{ID: 999})
		return &RuleSet{In: append(rules, Rule{Deny: true})}
	}
	sets := []*RuleSet{set(3), set(91)}
	b.must(b.dp.SetRules(redB.id, sets[0]))
	var changes atomic.Int32
	var changing sync.WaitGroup
	stop := make(chan struct{})
	changing.Go(func() {
		for {
			if err := b.dp.SetRules(redB.id, sets[changes.Load()%2]); err != nil {
				t.Error(err)
			}
			changes.Add(1)
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	defer changing.Wait()
	defer close(stop)
	frame := b.arriving(redA.wire(redB, ping(caA, caB, text(29))))
	in := skb{Ifindex: uint32(b.uplink.Attrs().Index)}
	passed := 0
	for begun := time.Now(); time.Since(begun) < time.Second || changes.Load() < 30 || passed < 100; passed++ {
		if time.Since(begun) > time.Minute {
			t.Fatalf("%d changes and %d packets: too few to tell", changes.Load(), passed)
		}
		opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: in}
		if v, err := b.dp.objs.FromWire.Run(&opts); err != nil || v != actRedirect {
			t.Fatalf("packet %d: verdict %d, %v; %v", passed, int32(v), err, b.drops())
		}
	}
}

// rulesReadBack: what is written, with the port or alone, is what is read back,
// and what can't be held is refused.
func rulesReadBack(t *testing.T, a *host) {
	echo := uint8(8)
	want := &RuleSet{
		In: []Rule{
			{ID: 7, Protocol: protoTCP, Family: IPv4, Remote: pfx("10.29.61.0/24"), MinPort: 443, MaxPort: 8443},
			{ID: 9, Deny: true, Family: IPv6, Remote: pfx("2001:db8:9f27::/48"), Groups: 1<<5 | 1<<41},
			{ID: 11, Protocol: protoICMP, Family: IPv4, ICMPType: &echo},
		},
		Out: []Rule{{ID: 13, Groups: 1 << 62, MinPort: 1, MaxPort: 65535, Protocol: protoUDP}},
	}
	read := func(what string, want *RuleSet) {
		t.Helper()
		if p, err := a.dp.Port(redA.id); err != nil || !reflect.DeepEqual(p.Rules, want) {
			t.Errorf("%s: got %+v, %v, want %+v", what, p.Rules, err, want)
		}
	}
	a.must(a.dp.SetRules(redA.id, want))
	read("set", want)
	p, err := a.dp.Port(redA.id)
	a.must(err)
	p.Rules = &RuleSet{Out: want.In}
	a.must(a.dp.SetPort(redA.id, p))
	read("set with the port", &RuleSet{Out: want.In})
	a.must(a.dp.SetRules(redA.id, nil))
	read("taken away", nil)
	for name, r := range map[string]Rule{
		"an ID that reads as none":  {ID: 1 << 31},
		"ports the wrong way round": {MinPort: 8, MaxPort: 7},
		"the group of everybody":    {Groups: 1<<63 | 1},
		"a family that isn't":       {Family: 5},
		"a prefix of another one":   {Family: IPv6, Remote: pfx("10.29.61.0/24")},
	} {
		if err := a.dp.SetRules(redA.id, &RuleSet{Out: []Rule{r}}); !errors.Is(err, ErrRule) {
			t.Errorf("%s: got %v, want ErrRule", name, err)
		}
	}
	if err := a.dp.SetRules(77, want); !errors.Is(err, ErrNoPort) {
		t.Errorf("no such port: got %v, want ErrNoPort", err)
	}
	readBackMembers(t, a)
	readBackRandomRules(t)
}

func readBackMembers(t *testing.T, a *host) {
	k := MappingKey{red, caB6}
	a.must(a.dp.EachMember(func(k MappingKey, _ uint64) { a.must(a.dp.SetMembers(k, 0)) }))
	a.must(errors.Join(a.dp.SetMembers(k, 1<<41), a.dp.SetMembers(MappingKey{blue, caB}, 7), a.dp.SetMembers(k, 1<<62|9)))
	a.must(errors.Join(a.dp.SetMembers(MappingKey{blue, caB}, 0), a.dp.SetMembers(MappingKey{blue, caB}, 0)))
	got := map[MappingKey]uint64{}
	a.must(a.dp.EachMember(func(k MappingKey, groups uint64) { got[k] = groups }))
	if want := map[MappingKey]uint64{k: 1<<62 | 9}; !reflect.DeepEqual(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
}

// readBackRandomRules: a rule and its value are the same thing, whatever is in it.
func readBackRandomRules(t *testing.T) {
	r := rand.New(rand.NewPCG(0x5eb7, 0x9c41))
	for range 20_000 {
		want := randomRule(r)
		v, err := want.value()
		if err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		if got := v.rule(); !reflect.DeepEqual(got, want) {
			t.Fatalf("read back %+v, want %+v", got, want)
		}
	}
}

func randomRule(r *rand.Rand) Rule {
	out := Rule{ID: r.Uint32N(1 << 31), Deny: r.IntN(2) == 0}
	switch r.IntN(4) {
	case 0:
		b := r.IntN(33)
		out.Family, out.Remote = IPv4, netip.PrefixFrom(addr4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}), b).Masked()
	case 1:
		b := 33 + r.IntN(96)
		out.Family, out.Remote = IPv6, netip.PrefixFrom(flipBit(caA6, 1+r.IntN(32)), b).Masked()
	case 2:
		out.Family = []Family{IPv4, IPv6}[r.IntN(2)]
	}
	if r.IntN(2) == 0 {
		out.Protocol = byte(1 + r.IntN(255))
	}
	if r.IntN(2) == 0 {
		out.MinPort = uint16(1 + r.IntN(65535))
		out.MaxPort = out.MinPort + uint16(r.IntN(65536-int(out.MinPort)))
	}
	if r.IntN(3) == 0 {
		out.Groups = r.Uint64() >> 1
	}
	if r.IntN(3) == 0 {
		k := uint8(r.Uint32())
		out.ICMPType = &k
	}
	return out
}
