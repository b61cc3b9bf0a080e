package bpf

import (
	"errors"
	"fmt"
	"net/netip"
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
	Epoch   uint64
	NextHop uint32 // index for [Datapath.SetNextHop]; 0: the kernel's tables
}

// PutMappings writes mappings in one system call. On an error some may have been
// written; writing them again is harmless. It returns [ErrFull] or [ErrAddress].
func (d *Datapath) PutMappings(mappings ...Mapping) error {
	if len(mappings) == 0 {
		return nil
	}
	keys := make([]datapathMappingKey, len(mappings))
	values := make([]datapathMapping, len(mappings))
	for i, m := range mappings {
		if !m.CA.IsValid() || !m.PA.Is4() {
			return fmt.Errorf("mapping of %s in %d to %s: %w", m.CA, m.VNI, m.PA, ErrAddress)
		}
		keys[i] = m.MappingKey.key()
		values[i] = datapathMapping{Key: keys[i], Pa: as16(m.PA), Epoch: m.Epoch, NextHop: m.NextHop, Mac: m.MAC}
	}
	if _, err := d.objs.Mappings.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("write %d mappings: %w", len(mappings), full(err))
	}
	return nil
}

// DeleteMappings deletes mappings; one that isn't there is no error.
func (d *Datapath) DeleteMappings(keys ...MappingKey) error {
	for _, k := range keys {
		if err := ignoreMissing(d.objs.Mappings.Delete(k.key())); err != nil {
			return fmt.Errorf("delete mapping of %s in %d: %w", k.CA, k.VNI, err)
		}
	}
	return nil
}

// Mapping reads one mapping back, or false.
func (d *Datapath) Mapping(k MappingKey) (Mapping, bool, error) {
	var m datapathMapping
	err := d.objs.Mappings.Lookup(k.key(), &m)
	if err := ignoreMissing(err); err != nil {
		return Mapping{}, false, fmt.Errorf("read mapping of %s in %d: %w", k.CA, k.VNI, err)
	}
	return m.mapping(), err == nil, nil
}

// Mappings reads all mappings back, in no order.
func (d *Datapath) Mappings() ([]Mapping, error) {
	var (
		all []Mapping
		k   datapathMappingKey
		m   datapathMapping
	)
	it := d.objs.Mappings.Iterate()
	for it.Next(&k, &m) {
		all = append(all, m.mapping())
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list mappings: %w", err)
	}
	return all, nil
}

func (k MappingKey) key() datapathMappingKey {
	return datapathMappingKey{Vni: k.VNI, Ca: as16(k.CA)}
}

func (m datapathMapping) mapping() Mapping {
	return Mapping{
		MappingKey: MappingKey{VNI: m.Key.Vni, CA: m.Key.Ca.ip()},
		PA:         m.Pa.ip(),
		MAC:        m.Mac,
		Epoch:      m.Epoch,
		NextHop:    m.NextHop,
	}
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

// PutHost registers underlay addresses of a host: frames from there are believed
// for a while although their source has no mapping yet.
func (d *Datapath) PutHost(prefix netip.Prefix) error {
	if err := d.objs.Hosts.Put(hostKey(prefix), uint32(1)); err != nil {
		return fmt.Errorf("register host %s: %w", prefix, full(err))
	}
	return nil
}

// DeleteHost is the reverse of PutHost; a prefix that isn't there is no error.
func (d *Datapath) DeleteHost(prefix netip.Prefix) error {
	if err := ignoreMissing(d.objs.Hosts.Delete(hostKey(prefix))); err != nil {
		return fmt.Errorf("unregister host %s: %w", prefix, err)
	}
	return nil
}

// Hosts reads back what PutHost registered.
func (d *Datapath) Hosts() ([]netip.Prefix, error) {
	var (
		all []netip.Prefix
		k   datapathHostKey
		v   uint32
	)
	it := d.objs.Hosts.Iterate()
	for it.Next(&k, &v) {
		all = append(all, prefix(datapathAddr{B: k.Pa}, k.Prefixlen))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	return all, nil
}

// A Route sends a prefix of a network to a CA in it. Without a next hop the
// prefix is on-link: its addresses have mappings of their own.
type Route struct {
	VNI     uint32
	Prefix  netip.Prefix
	NextHop netip.Addr
}

// PutRoute writes a route; the longest prefix that matches is used.
func (d *Datapath) PutRoute(r Route) error {
	if err := d.objs.Routes.Put(routeKey(r.VNI, r.Prefix), datapathRoute{NextHop: as16(r.NextHop)}); err != nil {
		return fmt.Errorf("write route %s in %d: %w", r.Prefix, r.VNI, full(err))
	}
	return nil
}

// DeleteRoute deletes a route; one that isn't there is no error.
func (d *Datapath) DeleteRoute(vni uint32, p netip.Prefix) error {
	if err := ignoreMissing(d.objs.Routes.Delete(routeKey(vni, p))); err != nil {
		return fmt.Errorf("delete route %s in %d: %w", p, vni, err)
	}
	return nil
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
		all = append(all, Route{VNI: k.Vni, Prefix: prefix(k.Dst, k.Prefixlen-32), NextHop: r.NextHop.ip()})
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

// full turns the kernel's word for a full map into [ErrFull].
func full(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w (raise its capacity): %w", ErrFull, err)
	}
	return err
}

// Now reads the clock that [Datapath.Times] are in: CLOCK_MONOTONIC.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_MONOTONIC: %v", err)) // cannot fail on Linux
	}
	return time.Duration(ts.Nano())
}
