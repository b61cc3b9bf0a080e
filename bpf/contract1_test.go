package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// An oldRelease is the datapath of contract 1, as its agent left it: the object
// that was released, its maps and links pinned.
type oldRelease struct {
	m     *machine
	progs map[string]*ebpf.Program
}

// runContract1 puts the release of contract 1 in force in the place of this one.
func (m *machine) runContract1() *oldRelease {
	m.t.Helper()
	m.in(func() error { return errors.Join(m.dp.Close(), Remove(m.options.PinDir), makePinDir(m.options.PinDir)) })
	spec, err := ebpf.LoadCollectionSpec("testdata/contract1.o")
	if err != nil {
		m.t.Fatal(err)
	}
	m.configure(spec.Variables["config"])
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: mapDir(m.options.PinDir)}})
	if err != nil {
		m.t.Fatalf("load contract 1: %v", err)
	}
	m.t.Cleanup(c.Close)
	old := &oldRelease{m, c.Programs}
	if err := c.Maps["contract"].Put(uint32(0), uint32(1)); err != nil {
		m.t.Fatal(err)
	}
	m.in(func() error {
		return errors.Join(old.attach(uplinkPin, "from_wire", ebpf.AttachTCXIngress, m.uplink),
			old.attach(vxlanPin, "from_vxlan", ebpf.AttachTCXIngress, m.vxlan),
			old.attach(imdsPin, "from_host", ebpf.AttachTCXEgress, m.options.IMDS))
	})
	return old
}

// configure writes what contract 1 was told before it was loaded.
func (m *machine) configure(v *ebpf.VariableSpec) {
	m.t.Helper()
	c := record{btf.UnderlyingType(v.Type.Type), make([]byte, len(v.Value))}
	for name, n := range map[string]uint64{
		"flow_idle": 3, "next_hop_age": 60000, "trap_interval": 10_000_000, "trap_burst": uint64(time.Second),
		"unresolved_interval": 1_000_000, "unresolved_burst": uint64(time.Second),
		"uplink": uint64(m.uplink), "imds": uint64(m.options.IMDS), "underlay_mtu": uint64(m.options.UnderlayMTU),
	} {
		c.field(name).set(n)
	}
	mask := [4]byte{255, 255, 255, 0}
	for name, b := range map[string][]byte{
		"host": m.options.HostAddress.AsSlice(), "pa_net": m.options.PAPrefix.Addr().AsSlice(), "pa_mask": mask[:],
		"gateway_mac": m.options.GatewayMAC[:], "imds_mac": m.options.IMDSMAC[:],
	} {
		copy(c.field(name).b, b)
	}
	if err := v.Set(c.b); err != nil {
		m.t.Fatal(err)
	}
}

// attach pins a link; or, without tcx, adds a filter as its agent would have.
func (o *oldRelease) attach(pin, prog string, at ebpf.AttachType, ifindex int) error {
	if HaveTCX() != nil {
		return newFilter(o.m.options.PinDir, pin, ifindex).attach(pin, o.progs[prog])
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: o.progs[prog], Attach: at})
	if err != nil {
		return err
	}
	return errors.Join(l.Pin(filepath.Join(linkDir(o.m.options.PinDir), pin)), l.Close())
}

// put writes a row, whose fields fill sets.
func (o *oldRelease) put(name string, fill func(key, value record)) {
	o.m.t.Helper()
	t, _, err := openTable(mapDir(o.m.options.PinDir), name)
	if err != nil {
		o.m.t.Fatal(err)
	}
	defer t.Close()
	r := row{make([]byte, t.KeySize()), [][]byte{make([]byte, t.ValueSize())}}
	v := t.views([]row{r})[0]
	fill(v.key, v.value)
	if err := t.put([]row{r}); err != nil {
		o.m.t.Fatalf("%s: %v", name, err)
	}
}

// add gives a port a guest, as [machine.add] does.
func (o *oldRelease) add(who member, others ...*oldRelease) *room {
	o.m.t.Helper()
	guest := newRoom(o.m.t)
	ifindex, _ := guest.guest(o.m.room, who)
	o.m.taps[who.id] = ifindex
	o.put("ports", func(key, slot record) {
		key.set(uint64(who.id))
		slot.field("active").set(1)
		p := slot.field("row").at(1)
		for name, n := range map[string]uint64{"epoch": who.epoch, "vni": uint64(who.vni), "ifindex": uint64(ifindex), "flags": uint64(Open | Timed), "mtu": 1500, "bits": 24} {
			p.field(name).set(n)
		}
		copy(p.field("mac").b, who.mac[:])
		for r, a := range map[*record]netip.Addr{ptr(p.field("pa")): who.pa, ptr(p.field("ca").at(0)): who.ca, ptr(p.field("gateway")): gateway} {
			set16(*r, a)
		}
	})
	o.put("taps", func(key, value record) { key.set(uint64(ifindex)); value.set(uint64(who.id)) })
	o.put("locals", func(key, value record) {
		key.field("vni").set(uint64(who.vni))
		copy(key.field("mac").b, who.mac[:])
		value.set(uint64(who.id))
	})
	o.m.in(func() error {
		return o.attach(tapPin+strconv.Itoa(ifindex), "from_vm", ebpf.AttachTCXIngress, ifindex)
	})
	for _, other := range append(others, o) {
		other.put("mappings", func(key, value record) { other.fillMapping(key, value, who) })
	}
	return guest
}

func (o *oldRelease) fillMapping(key, value record, who member) {
	for _, k := range []record{key, value.field("key")} {
		k.field("vni").set(uint64(who.vni))
		set16(k.field("ca"), who.ca)
	}
	set16(value.field("pa"), who.pa)
	value.field("epoch").set(who.epoch)
	copy(value.field("mac").b, who.mac[:])
}

func set16(r record, a netip.Addr) {
	b := a.As16()
	copy(r.field("b").b, b[:])
}

func ptr(r record) *record { return &r }

// The release of contract 1 is replaced by this one under a stream of frames, on
// one host after the other: none is lost, and the new agent finds all that was
// there.
func TestUpgradeFromContract1(t *testing.T) {
	a, b := newMachines(t)
	oldA, oldB := a.runContract1(), b.runContract1()
	client, server := oldA.add(redA, oldB), oldB.add(redB, oldA)
	oldA.add(blueA, oldB)
	for _, o := range []*oldRelease{oldA, oldB} {
		others := map[*oldRelease]netip.Prefix{oldA: prefixB, oldB: prefixA}[o]
		o.put("hosts", func(key, value record) {
			key.field("prefixlen").set(uint64(bits128(others)))
			pa := others.Addr().As16()
			copy(key.field("pa").b, pa[:])
			value.set(1)
		})
		o.put("routes", func(key, value record) {
			key.field("prefixlen").set(32 + 96 + 26)
			key.field("vni").set(uint64(red))
			set16(key.field("dst"), addr("203.0.113.0"))
			set16(value.field("next_hop"), caB)
		})
		o.put("next_hops", func(key, value record) {
			key.set(5)
			value.field("refreshed").set(77)
			value.field("ifindex").set(uint64(o.m.uplink))
			copy(value.field("dst").b, routerMAC[:])
		})
	}
	s := newStream(t, client, server)
	s.carry(500)
	for _, m := range []*machine{a, b} {
		m.in(func() error { return os.Mkdir(draftDir(m.options.PinDir), 0o700) }) // of an agent that died
		m.load()
		s.carry(500)
		m.in(func() error {
			return errors.Join(m.dp.AttachUplink(m.uplink), m.dp.AttachVXLAN(m.vxlan), m.attachTaps())
		})
		s.carry(500)
	}
	if lost, of := s.end(); lost != 0 {
		t.Errorf("%d of %d frames are lost; dropped: %v and %v", lost, of, a.reasons(), b.reasons())
	}
	carriedOver(t, a, []member{redA, blueA}, prefixB)
	carriedOver(t, b, []member{redB}, prefixA)
}

// carriedOver fails unless a host knows all that contract 1 knew.
func carriedOver(t *testing.T, m *machine, ports []member, others netip.Prefix) {
	t.Helper()
	for _, who := range ports {
		want := who.port(m.taps[who.id])
		want.Flags |= Timed
		want.CAs = want.CAs[:1] // contract 1 knew IPv4 only
		if got, err := m.dp.Port(who.id); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("port %d: got %+v, %v, want %+v", who.id, got, err, want)
		}
	}
	for _, who := range []member{redA, blueA, redB} {
		if got, ok, err := m.dp.Mapping(MappingKey{who.vni, who.ca}); err != nil || !ok || got != who.mapping(0) {
			t.Errorf("mapping: got %+v, %v, %v, want %+v", got, ok, err, who.mapping(0))
		}
	}
	hosts, err1 := m.dp.Hosts()
	routes, err2 := m.dp.Routes()
	if want := (Route{VNI: red, Prefix: pfx("203.0.113.0/26"), NextHop: caB}); len(routes) != 1 || routes[0] != want || len(hosts) != 1 || hosts[0] != others {
		t.Errorf("routes %v, hosts %v, %v, want %v and %v", routes, hosts, errors.Join(err1, err2), want, others)
	}
	if n := len(m.dp.peers.rows); n != 2 {
		t.Errorf("%d peers, want this host and the other, not one a PA", n)
	}
	var hop datapathNextHop
	if err := m.dp.objs.NextHops.Lookup(uint32(5), &hop); err != nil || hop.Refreshed != 77 || hop.Dst != routerMAC || int(hop.Ifindex) != m.uplink {
		t.Errorf("next hop: got %+v, %v", hop, err)
	}
	n, err := m.dp.PortCounters(ports[0].id)
	from, to, terr := m.dp.Times(ports[0].id)
	if err != nil || terr != nil || n.FromPackets+n.ToPackets < 2500 || max(from.Epoch, to.Epoch) != ports[0].epoch {
		t.Errorf("counters %+v, times %+v and %+v, %v", n, from, to, errors.Join(err, terr))
	}
	var contract datapathLimits
	if err := m.dp.objs.Contract.Lookup(uint32(0), &contract); err != nil || contract != datapathLimitsCONTRACT {
		t.Errorf("contract %d, %v, want %d", contract, err, datapathLimitsCONTRACT)
	}
}
