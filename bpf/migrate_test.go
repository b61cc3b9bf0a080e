package bpf

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// inUse makes a host whose datapath has been used: rows of every kind, counters,
// links.
func inUse(t *testing.T) *host {
	isolate(t)
	a := newHost(t, "a", hostA, prefixA, nil)
	a.addPorts(redA, redA2, blueA)
	a.must(a.dp.PutHost(prefixB))
	a.must(a.dp.PutMappings(redA.mapping(7), redA2.mapping(7), blueA.mapping(7), redB.mapping(7), blueB.mapping(7)))
	a.must(a.dp.SetNextHop(7, NextHop{Ifindex: a.uplink.Attrs().Index, Dst: routerMAC, Src: [6]byte(a.uplink.Attrs().HardwareAddr)}))
	tap := a.taps[redA.id]
	a.must(errors.Join(a.dp.AttachUplink(a.options.Uplink), a.dp.AttachTap(tap)))
	a.must(a.dp.PutRoute(Route{VNI: red, Prefix: pfx("203.0.113.0/26"), NextHop: caB}))
	a.exercise()
	return a
}

// exercise sends three frames: two leave, one is refused.
func (h *host) exercise() {
	h.t.Helper()
	before := h.drops()
	h.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	h.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(41))))
	h.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caNobody, 5353, 7946, text(43))))
	after := h.drops()
	if after["none"] != before["none"]+2 || after["no_mapping"] != before["no_mapping"]+1 {
		h.t.Errorf("counted %v, then %v, want two frames forwarded and one without a mapping", before, after)
	}
}

// state is all that a migration has to carry over.
func (h *host) state() map[string]any {
	h.t.Helper()
	ports, err1 := h.dp.Ports()
	mappings, err2 := h.dp.Mappings()
	routes, err3 := h.dp.Routes()
	hosts, err4 := h.dp.Hosts()
	counters, err5 := h.dp.PortCounters(redA.id)
	from, to, err6 := h.dp.Times(redA.id)
	h.must(errors.Join(err1, err2, err3, err4, err5, err6))
	byKey := map[MappingKey]Mapping{}
	for _, m := range mappings {
		byKey[m.MappingKey] = m
	}
	return map[string]any{"ports": ports, "mappings": byKey, "routes": routes, "hosts": hosts, "counters": counters,
		"times": []Times{from, to}, "drops": h.drops()}
}

// reload is the next agent, with other options.
func (h *host) reload(change func(*Options)) error {
	h.t.Helper()
	h.must(h.dp.Close())
	o := h.options
	change(&o)
	dp, err := Load(o)
	if err != nil {
		return err
	}
	h.dp = dp
	h.t.Cleanup(func() { _ = dp.Close() })
	return nil
}

func (h *host) same(what string, before map[string]any) {
	h.t.Helper()
	after := h.state()
	for k, want := range before {
		if !reflect.DeepEqual(after[k], want) {
			h.t.Errorf("%s: %s: got %v, want %v", what, k, after[k], want)
		}
	}
}

// programsInForce returns the program of each link.
func (h *host) programsInForce() map[string]ebpf.ProgramID {
	h.t.Helper()
	pins, err := os.ReadDir(linkDir(h.options.PinDir))
	h.must(err)
	all := map[string]ebpf.ProgramID{}
	for _, p := range pins {
		l, err := link.LoadPinnedLink(filepath.Join(linkDir(h.options.PinDir), p.Name()), nil)
		h.must(err)
		info, err := l.Info()
		h.must(errors.Join(err, l.Close()))
		all[p.Name()] = info.Program
	}
	return all
}

func (h *host) noDraft() {
	h.t.Helper()
	if _, err := os.Stat(draftDir(h.options.PinDir)); !errors.Is(err, fs.ErrNotExist) {
		h.t.Errorf("a draft is left: %v", err)
	}
}

func mapID(t *testing.T, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// Another capacity: that map is replaced, the others are shared, nothing is lost,
// and each hook has the new program before anybody attaches anything.
func TestMigrateCapacity(t *testing.T) {
	a := inUse(t)
	before, links := a.state(), a.programsInForce()
	ports, mappings := mapID(t, a.dp.objs.Ports), mapID(t, a.dp.objs.Mappings)
	a.must(a.reload(func(o *Options) { o.Mappings = 70001 }))
	a.same("after", before)
	a.noDraft()
	for name, now := range a.programsInForce() {
		if now == links[name] {
			t.Errorf("%s still has program %d", name, now)
		}
	}
	if mapID(t, a.dp.objs.Ports) != ports || mapID(t, a.dp.objs.Mappings) == mappings || a.dp.objs.Mappings.MaxEntries() != 70001 {
		t.Errorf("ports is map %d, was %d; mappings is %v, was %d", mapID(t, a.dp.objs.Ports), ports, a.dp.objs.Mappings, mappings)
	}
	a.exercise()
	// And the next start finds what it expects.
	before, mappings = a.state(), mapID(t, a.dp.objs.Mappings)
	a.must(a.reload(func(o *Options) { o.Mappings = 70001 }))
	a.same("once more", before)
	if got := mapID(t, a.dp.objs.Mappings); got != mappings {
		t.Errorf("mappings is map %d, was %d: migrated for nothing", got, mappings)
	}
}

// Contract 4 changed nothing but what a ring carries: that is new, all else is shared.
func TestMigrateRing(t *testing.T) {
	a := inUse(t)
	before, flows, events := a.state(), mapID(t, a.dp.objs.Flows4), mapID(t, a.dp.objs.FlowEvents)
	a.must(a.dp.objs.Contract.Put(uint32(0), datapathLimits(3)))
	a.must(a.reload(func(*Options) {}))
	a.same("after", before)
	if mapID(t, a.dp.objs.Flows4) != flows || mapID(t, a.dp.objs.FlowEvents) == events {
		t.Errorf("flows are map %d, were %d; the ring is map %d, was %d", mapID(t, a.dp.objs.Flows4), flows, mapID(t, a.dp.objs.FlowEvents), events)
	}
	a.exercise()
}

// What doesn't fit leaves the old datapath as it is, and working.
func TestMigrationThatFails(t *testing.T) {
	a := inUse(t)
	before, links := a.state(), a.programsInForce()
	old := a.dp
	if err := a.reload(func(o *Options) { o.Mappings = 3 }); !errors.Is(err, ErrFull) {
		t.Errorf("five mappings into three rows: got %v, want ErrFull", err)
	}
	a.noDraft()
	if got := a.programsInForce(); !maps.Equal(got, links) {
		t.Errorf("links have %v, want %v", got, links)
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	a.dp = nil
	dp, err := Load(a.options)
	a.must(err)
	a.dp = dp
	t.Cleanup(func() { _ = dp.Close() })
	a.same("after", before)
	a.must(a.dp.objs.Contract.Put(uint32(0), datapathLimitsCONTRACT+7))
	if err := a.reload(func(*Options) {}); !errors.Is(err, ErrShape) {
		t.Errorf("a newer contract: got %v, want ErrShape", err)
	}
}

// An agent may die at any moment: half of the hooks may have the new programs.
// The next one begins anew from the maps in force.
func TestMigrationThatDies(t *testing.T) {
	for steps, name := range []string{"with an empty draft", "with rows in the draft", "with one hook taken", "before the draft is gone"} {
		t.Run(name, func(t *testing.T) {
			a := inUse(t)
			before := a.state()
			a.must(a.dp.Close())
			die(t, a, steps)
			a.must(a.reload(func(o *Options) { o.Mappings = 70001 }))
			a.noDraft()
			a.same("after", before)
			a.exercise()
			if steps == 3 { // all was done: what is left is an ordinary restart
				return
			}
			seen := map[ebpf.ProgramID]string{}
			for name, p := range programs(a.dp) {
				info, err := p.Info()
				a.must(err)
				id, _ := info.ID()
				seen[id] = name
			}
			for name, id := range a.programsInForce() {
				if seen[id] == "" {
					t.Errorf("%s has program %d, which isn't the new agent's", name, id)
				}
			}
		})
	}
}

// die is an agent that gets so far with a migration, and no further.
func die(t *testing.T, h *host, steps int) {
	t.Helper()
	o := h.options
	o.Mappings = 70001
	spec, err := specOf(o)
	h.must(err)
	p, err := makePlan(spec, o.PinDir)
	h.must(err)
	defer p.close()
	d := &Datapath{dir: o.PinDir}
	h.must(os.Mkdir(draftDir(o.PinDir), 0o700))
	for _, name := range p.shared {
		h.must(pinAgain(p.old[name], filepath.Join(draftDir(o.PinDir), name)))
	}
	h.must(d.fill(spec, draftDir(o.PinDir)))
	defer d.Close()
	if steps >= 1 {
		h.must(d.copyRows(spec, p))
	}
	if steps == 2 {
		hooks, err := d.hooks()
		h.must(err)
		defer hooks.close()
		h.must(hooks.all[0].take(d.program(hooks.all[0].name)))
	}
	if steps == 3 {
		h.must(d.takeHooks(spec, p))
	}
}

// A hook that can't be switched: those before it go back.
func TestHooksGoBack(t *testing.T) {
	a := inUse(t)
	links := a.programsInForce()
	o := a.options
	o.Mappings = 70001
	spec, err := specOf(o)
	a.must(err)
	next, err := ebpf.NewCollection(unpinned(spec))
	a.must(err)
	defer next.Close()
	hooks, err := a.dp.hooks()
	a.must(err)
	defer hooks.close()
	a.must(hooks.all[0].take(next.Programs[datapathProgFromWire]))
	if err := hooks.all[1].take(next.Programs[datapathProgRefreshNextHop]); err == nil {
		t.Error("a tap took a program that isn't for it")
	}
	for _, h := range hooks.all {
		a.must(h.giveBack())
	}
	if got := a.programsInForce(); !maps.Equal(got, links) {
		t.Errorf("links have %v, want %v", got, links)
	}
}

// A kernel without tcx: filters are hooks too.
func TestMigrateFilters(t *testing.T) {
	a := newA(t)
	a.dp.noTCX = true
	tap := a.taps[redA.id]
	a.must(errors.Join(a.dp.AttachUplink(a.options.Uplink), a.dp.AttachTap(tap)))
	_, old := attached(t, a, tapPin+strconv.Itoa(tap))
	a.exercise()
	before := a.state()
	a.must(a.reload(func(o *Options) { o.Mappings = 70001 }))
	a.same("after", before)
	a.dp.noTCX = true
	if _, now := attached(t, a, tapPin+strconv.Itoa(tap)); now == old || countFilters(t, tap) != 1 {
		t.Errorf("the tap has program %d, was %d, and %d filters", now, old, countFilters(t, tap))
	}
}

func unpinned(spec *ebpf.CollectionSpec) *ebpf.CollectionSpec {
	c := spec.Copy()
	for _, m := range c.Maps {
		m.Pinning = ebpf.PinNone
	}
	return c
}

// draft is the next release with its maps, before rows are copied and hooks taken.
func (h *host) draft(spec *ebpf.CollectionSpec) (*Datapath, *plan) {
	h.t.Helper()
	p, err := makePlan(spec, h.options.PinDir)
	h.must(err)
	next := &Datapath{dir: h.options.PinDir}
	h.must(os.Mkdir(draftDir(h.options.PinDir), 0o700))
	h.must(next.fillDraft(spec, p))
	h.t.Cleanup(func() { _, _ = next.Close(), p.close() })
	return next, p
}

// What the old programs count and remember while rows are copied isn't lost: it
// is carried over once they have ended.
func TestMigrateWhatIsStillWritten(t *testing.T) {
	a := inUse(t)
	spec, err := specOf(a.options)
	a.must(err)
	spec.Maps[datapathMapPortCounters].MaxEntries++
	spec.Maps[datapathMapFlows].MaxEntries = 70001
	spec.Maps[datapathMapFlows4].MaxEntries = 70001
	next, p := a.draft(spec)
	old, fresh := table{Map: a.dp.objs.Flows}, table{Map: next.objs.Flows}
	a.must(old.put([]row{flowRow(old, "early", 7, 0), flowRow(old, "again", 13, 0)}))
	a.must(next.copyRows(spec, p))

	afterwards := answeredBetween(t, a, next)
	a.exercise() // the old programs, whose hooks haven't been taken
	now := Now()
	a.must(old.put([]row{flowRow(old, "early", 9, 0), flowRow(old, "late", 11, now), flowRow(old, "again", 14, now)}))
	want, err := a.dp.PortCounters(redA.id)
	a.must(err)
	a.must(fresh.put([]row{flowRow(fresh, "early", 8, 0)})) // a new program has seen it since
	a.must(next.takeHooks(spec, p))
	if got, err := next.PortCounters(redA.id); err != nil || got != want || got.FromPackets != 4 {
		t.Errorf("counters: got %+v, %v, want %+v with 4 frames", got, err, want)
	}
	got := map[string]byte{}
	a.must(fresh.each(func(rows []row) error {
		for _, r := range rows {
			if name := strings.TrimRight(string(r.key), "\x00"); name == "early" || name == "late" || name == "again" {
				got[name] = r.values[0][0]
			}
		}
		return nil
	}))
	if want := map[string]byte{"early": 8, "late": 11, "again": 14}; !maps.Equal(got, want) {
		t.Errorf("flows: got %v, want %v", got, want)
	}
	afterwards()
}

// answeredBetween: some programs see the first packets of flows, and those of the other
// release, which know nothing of these, the first answers. What they make of them mustn't
// outlast the switch: a flow to a service gets its answers from that, whichever hook was
// switched first, and who began a flow is known.
func answeredBetween(t *testing.T, old *host, next *Datapath) (after func()) {
	fresh := *old
	fresh.dp = next
	mate := member{id: 37, vni: red, mac: [6]byte{2, 0x52, 0x4f, 0x5e, 0x6d, 0x7c}, pa: addr("100.64.18.117"), ca: addr("10.17.34.113"), epoch: 7}
	old.addPorts(mate)
	old.must(old.dp.PutMappings(mate.mapping(7)))
	served := func(vip string, by netip.Addr) netip.Addr {
		key := ServiceKey{VNI: red, VIP: addr(vip), Port: 8453, Protocol: protoUDP}
		old.must(old.dp.SetService(Service{ServiceKey: key, Backends: []Backend{{CA: by, Port: 7951, Weight: 3}}}))
		return key.VIP
	}
	afar, near := served("10.17.34.203", caB), served("10.17.34.204", mate.ca)
	is := func(what string, got, want netip.Addr) {
		t.Helper()
		if got != want {
			t.Errorf("%s: an answer from %s, want %s", what, got, want)
		}
	}
	old.says(redA2, afar, 5417, 8453)
	is("from afar, too early", fresh.hears(redA2, 7951, 5417), caB)
	fresh.says(redA2, near, 5419, 8453)
	is("from the same host, by a hook that isn't switched yet", old.says(mate, caA2, 7951, 5419), mate.ca)
	fresh.hears(mate, 6151, 5421)
	old.says(mate, caB, 5421, 6151)
	return func() {
		is("from afar after the switch", fresh.hears(redA2, 7951, 5417), afar)
		is("from the same host after the switch", fresh.says(mate, caA2, 7951, 5419), near)
		var inbound []bool
		old.must(next.EachFlow(func(f Flow) {
			if f.Local == netip.AddrPortFrom(mate.ca, 5421) {
				inbound = append(inbound, f.Inbound)
			}
		}))
		if len(inbound) != 1 || !inbound[0] {
			t.Errorf("begun from afar, answered by a hook that wasn't switched yet: inbound %v, want one such flow", inbound)
		}
	}
}

// says sends a datagram, and returns by which source it reaches a port of this host.
func (h *host) says(from member, to netip.Addr, sport, dport uint16) netip.Addr {
	h.t.Helper()
	v, out := h.send(from, from.frame(udpOf(from.ca, to, sport, dport, text(37))))
	if v != actRedirect {
		h.t.Fatalf("from %s to %s: verdict %d; %v", from.ca, to, int32(v), h.drops())
	}
	return addr4([4]byte(out[26:30]))
}

// hears gets a datagram of redB's, and returns by which source.
func (h *host) hears(to member, sport, dport uint16) netip.Addr {
	h.t.Helper()
	v, out := h.receive(tunnel{src: redB.pa, dst: to.pa, vni: red}.with(redB.inner(to, udpOf(caB, to.ca, sport, dport, text(41)))))
	if v != actRedirect {
		h.t.Fatalf("from %s to %s: verdict %d; %v", caB, to.ca, int32(v), h.drops())
	}
	return addr4([4]byte(out[26:30]))
}

// flowRow is a row of the flow table, with a byte in it to tell it by.
func flowRow(t table, key string, value byte, began time.Duration) row {
	r := row{make([]byte, t.KeySize()), [][]byte{make([]byte, t.ValueSize())}}
	copy(r.key, key)
	r.values[0][0] = value
	binary.NativeEndian.PutUint64(r.values[0][unsafe.Offsetof(datapathFlow{}.Began):], uint64(began))
	return r
}
