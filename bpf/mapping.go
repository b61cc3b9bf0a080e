package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A MappingKey names a CA of a network.
type MappingKey struct {
	VNI uint32
	CA  netip.Addr
}

// A Mapping says where a CA is reached.
type Mapping struct {
	MappingKey
	PA      netip.Addr // one of this host's: the peer is a port here
	MAC     [6]byte    // of the peer's port
	NextHop uint32     // index for [Datapath.SetNextHop]; 0: the kernel's tables. The same for all PAs of one host
}

// NotPut says which mappings of a call aren't in force, and why: [ErrFull], [ErrAddress]
// or what the kernel says. All others of the call are.
type NotPut map[MappingKey]error

func (e NotPut) Error() string {
	for k, err := range e {
		return fmt.Sprintf("%d mappings can't be written, that of %s in %d among them: %v", len(e), k.CA, k.VNI, err)
	}
	return "no mapping"
}

func (e NotPut) Unwrap() []error { return slices.Collect(maps.Values(e)) }

// PutMappings writes mappings in one system call, or one by one when that fails:
// what doesn't fit of one network mustn't hold up another's. It returns [NotPut].
func (d *Datapath) PutMappings(mappings ...Mapping) error {
	if len(mappings) == 0 {
		return nil
	}
	d.peers.mu.Lock()
	defer d.peers.mu.Unlock()
	defer clear(d.peers.given)
	not := NotPut{}
	keys, values := make([]datapathMappingKey, 0, len(mappings)), make([]datapathMapping, 0, len(mappings))
	for _, m := range mappings {
		row, err := d.mappingRow(m)
		if err != nil {
			not[m.MappingKey] = err
			continue
		}
		keys, values = append(keys, m.MappingKey.key()), append(values, row)
	}
	if _, err := d.objs.Mappings.BatchUpdate(keys, values, nil); err != nil {
		for i, k := range keys {
			if err := d.objs.Mappings.Put(k, values[i]); err != nil {
				not[MappingKey{k.Vni, k.Ca.ip()}] = full(err)
			}
		}
	}
	if err := d.directoryChanged(); err != nil || len(not) == 0 {
		return err
	}
	return not
}

func (d *Datapath) mappingRow(m Mapping) (datapathMapping, error) {
	if !m.CA.IsValid() || !m.PA.IsValid() {
		return datapathMapping{}, fmt.Errorf("from %s to %s: %w", m.CA, m.PA, ErrAddress)
	}
	peer, offset, err := d.peerOf(m.PA, m.NextHop)
	return datapathMapping{Mac: m.MAC, Peer: uint16(peer), Offset: offset, Check: m.MappingKey.key().check()}, err
}

// directoryChanged tells the programs that ways which flows remember may lead
// astray. It comes after the change: a flow that has found its way in between
// looks for it once more.
func (d *Datapath) directoryChanged() error {
	d.changes.Lock()
	defer d.changes.Unlock()
	d.changed++
	if err := d.objs.Directory.Put(uint32(0), d.changed); err != nil {
		return fmt.Errorf("tell that the directory has changed: %w", err)
	}
	return nil
}

// check is mapping_check in route.h.
func (k datapathMappingKey) check() uint32 {
	h := mix(0, k.Vni)
	for i := 0; i < 16; i += 4 {
		h = mix(h, binary.NativeEndian.Uint32(k.Ca.B[i:]))
	}
	return h
}

// mix is mix in hash.h.
func mix(h, w uint32) uint32 {
	h = (h ^ w) * 0x85ebca6b
	return h ^ h>>13
}

// DeleteMappings deletes mappings; one that isn't there is no error.
func (d *Datapath) DeleteMappings(keys ...MappingKey) error {
	var errs []error
	for _, k := range keys {
		if err := ignoreMissing(d.objs.Mappings.Delete(k.key())); err != nil {
			errs = append(errs, fmt.Errorf("delete mapping of %s in %d: %w", k.CA, k.VNI, err))
		}
	}
	return errors.Join(append(errs, d.directoryChanged())...)
}

// Mapping reads one mapping back, or false.
func (d *Datapath) Mapping(k MappingKey) (Mapping, bool, error) {
	var m datapathMapping
	err := d.objs.Mappings.Lookup(k.key(), &m)
	if err := ignoreMissing(err); err != nil {
		return Mapping{}, false, fmt.Errorf("read mapping of %s in %d: %w", k.CA, k.VNI, err)
	}
	d.peers.mu.Lock()
	defer d.peers.mu.Unlock()
	return d.mapping(k, m), err == nil, nil
}

// EachMapping reads all mappings back, in no order, without holding them all.
func (d *Datapath) EachMapping(f func(Mapping)) error {
	d.peers.mu.Lock()
	defer d.peers.mu.Unlock()
	return each(d.objs.Mappings, func(k datapathMappingKey, m datapathMapping) error {
		f(d.mapping(MappingKey{k.Vni, k.Ca.ip()}, m))
		return nil
	})
}

// Mappings reads all mappings back, in no order.
func (d *Datapath) Mappings() ([]Mapping, error) {
	var all []Mapping
	err := d.EachMapping(func(m Mapping) { all = append(all, m) })
	return all, err
}

func (k MappingKey) key() datapathMappingKey {
	return datapathMappingKey{Vni: k.VNI, Ca: as16(k.CA)}
}

func (d *Datapath) mapping(k MappingKey, m datapathMapping) Mapping {
	pa, hop := d.peers.pa(m)
	return Mapping{MappingKey: k, PA: pa, MAC: m.Mac, NextHop: hop}
}

// A NextHop is a neighbour on the underlay.
type NextHop struct {
	Ifindex  int // of the uplink
	Dst, Src [6]byte
}

// SetNextHop writes the next hop with an index of 1 to MaxNextHops-1 and marks
// it fresh. One that hasn't been set for Options.NextHopAge isn't used: the
// kernel's tables are asked for each frame, which costs some 280 ns.
func (d *Datapath) SetNextHop(index uint32, n NextHop) error {
	if index == 0 || int(index) >= MaxNextHops {
		return fmt.Errorf("next hop %d is not in 1..%d: %w", index, MaxNextHops-1, ErrAddress)
	}
	if n.Ifindex <= 0 {
		return fmt.Errorf("next hop %d by device %d: %w", index, n.Ifindex, ErrAddress)
	}
	refresh := datapathNextHopRefresh{
		Index: index,
		Hop:   datapathNextHop{Ifindex: uint32(n.Ifindex), Dst: n.Dst, Src: n.Src},
	}
	failed, err := d.objs.RefreshNextHop.Run(&ebpf.RunOptions{Context: refresh})
	if err != nil || failed != 0 {
		return fmt.Errorf("write next hop %d: %w (%d)", index, err, int32(failed))
	}
	return nil
}

// ClearNextHop makes the next hop unusable at once.
func (d *Datapath) ClearNextHop(index uint32) error {
	if err := d.objs.NextHops.Put(index, datapathNextHop{}); err != nil {
		return fmt.Errorf("clear next hop %d: %w", index, err)
	}
	return nil
}

// A Route sends a prefix of a network to a CA in it, or into a peer network.
// Without a next hop its addresses have mappings of their own.
type Route struct {
	VNI     uint32
	Prefix  netip.Prefix
	NextHop netip.Addr
	Peer    uint32 // the network that the destination is in; 0: VNI
}

// PutRoute writes a route; the longest prefix that matches is used.
func (d *Datapath) PutRoute(r Route) error {
	if err := d.objs.Routes.Put(routeKey(r.VNI, r.Prefix), datapathRoute{NextHop: as16(r.NextHop), Vni: r.Peer}); err != nil {
		return fmt.Errorf("write route %s in %d: %w", r.Prefix, r.VNI, full(err))
	}
	return d.directoryChanged()
}

// DeleteRoute deletes a route; one that isn't there is no error.
func (d *Datapath) DeleteRoute(vni uint32, p netip.Prefix) error {
	if err := ignoreMissing(d.objs.Routes.Delete(routeKey(vni, p))); err != nil {
		return fmt.Errorf("delete route %s in %d: %w", p, vni, err)
	}
	return d.directoryChanged()
}

// Routes reads all routes back, in no order.
func (d *Datapath) Routes() ([]Route, error) {
	var (
		all []Route
		k   datapathRouteKey
		r   datapathRoute
	)
	it := d.objs.Routes.Iterate()
	for it.Next(&k, &r) {
		all = append(all, Route{VNI: k.Vni, Prefix: prefix(k.Dst, k.Prefixlen-32), NextHop: r.NextHop.ip(), Peer: r.Vni})
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return all, nil
}

func hostKey(p netip.Prefix) datapathHostKey {
	return datapathHostKey{Prefixlen: bits128(p), Pa: p.Masked().Addr().As16()}
}

func routeKey(vni uint32, p netip.Prefix) datapathRouteKey {
	return datapathRouteKey{Prefixlen: 32 + bits128(p), Vni: vni, Dst: as16(p.Masked().Addr())}
}

// bits128 returns the length of p as a prefix of 16-byte addresses.
func bits128(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return uint32(96 + p.Bits())
	}
	return uint32(p.Bits())
}

func prefix(a datapathAddr, bits uint32) netip.Prefix {
	ip := netip.AddrFrom16(a.B)
	if ip.Is4In6() && bits >= 96 {
		return netip.PrefixFrom(ip.Unmap(), int(bits-96))
	}
	return netip.PrefixFrom(ip, int(bits))
}

// full turns the kernel's word for a full map ("argument list too long", or "no
// space left") into [ErrFull], which says it better.
func full(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w (raise its capacity)", ErrFull)
	}
	return err
}

// Now reads the clock that [Datapath.Times] are in: CLOCK_MONOTONIC.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		// Only for a clock that isn't there or a bad address (clock_gettime(2)): neither can
		// be, and a time that is wrong would be worse, for receipts are made of it.
		panic(fmt.Sprintf("CLOCK_MONOTONIC: %v", err))
	}
	return time.Duration(ts.Nano())
}
