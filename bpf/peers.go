package bpf

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"sync"
)

// MaxPeers bounds the underlay prefixes that mappings lead to.
const MaxPeers = int(datapathLimitsMAX_PEERS)

// A peerTable numbers the underlay prefixes that mappings lead to, so that a
// mapping holds four bytes of its PA instead of sixteen, and a next hop is
// written once a host. A PA of no registered host is a peer of its own.
type peerTable struct {
	mu    sync.Mutex
	byKey map[netip.Prefix]uint32
	sizes map[int]int // how many prefixes of a length there are
	next  uint32
	rows  map[uint32]datapathPeer
	given map[uint32]bool // to mappings that are about to be written
}

// readPeers learns what an earlier process has numbered, and writes this host's
// own prefix as number 0.
func (d *Datapath) readPeers(own netip.Prefix) error {
	d.peers = peerTable{byKey: map[netip.Prefix]uint32{}, sizes: map[int]int{}, rows: map[uint32]datapathPeer{}, given: map[uint32]bool{}, next: 1}
	err := each(d.objs.Peers, func(index uint32, row datapathPeer) error {
		if row.Used != 0 && index != 0 {
			d.peers.learn(index, row)
		}
		return nil
	})
	if err != nil {
		return err
	}
	row := datapathPeer{Base: as16(own.Addr()), Bits: uint8(bits128(own)), Used: 1}
	d.peers.learn(0, row)
	if err := d.objs.Peers.Put(uint32(0), row); err != nil {
		return fmt.Errorf("write this host's PA prefix: %w", err)
	}
	return nil
}

func (t *peerTable) learn(index uint32, row datapathPeer) {
	p := row.prefix()
	t.byKey[p] = index
	t.sizes[p.Bits()]++
	t.rows[index] = row
	t.next = max(t.next, index+1)
}

func (p datapathPeer) prefix() netip.Prefix { return prefix(p.Base, uint32(p.Bits)) }

// peerOf returns the number of the peer that a PA belongs to and how far behind
// its base the PA is; a peer that is new or has another next hop is written.
func (d *Datapath) peerOf(pa netip.Addr, nextHop uint32) (index uint32, offset uint16, err error) {
	t := &d.peers
	p, ok := t.find(pa)
	if !ok {
		p = netip.PrefixFrom(pa, pa.BitLen())
		if err := d.addPeer(p, nextHop); err != nil {
			return 0, 0, err
		}
	}
	index = t.byKey[p]
	t.given[index] = true
	if row := t.rows[index]; index != 0 && row.NextHop != nextHop {
		row.NextHop = nextHop
		if err := d.objs.Peers.Put(index, row); err != nil {
			return 0, 0, fmt.Errorf("write peer %s: %w", p, err)
		}
		t.rows[index] = row
	}
	return index, uint16(low32(pa) - low32(p.Addr())), nil
}

// find returns the longest known prefix that holds pa.
func (t *peerTable) find(pa netip.Addr) (netip.Prefix, bool) {
	best, found := netip.Prefix{}, false
	for bits := range t.sizes {
		if p, err := pa.Prefix(bits); err == nil && (!found || bits > best.Bits()) {
			if _, ok := t.byKey[p]; ok && reaches(p.Addr(), pa) {
				best, found = p, true
			}
		}
	}
	return best, found
}

func (d *Datapath) addPeer(p netip.Prefix, nextHop uint32) error {
	t := &d.peers
	index := t.next
	if int(index) >= MaxPeers {
		free, err := d.freePeer()
		if err != nil {
			return fmt.Errorf("peer %s: %w", p, err)
		}
		index = free
	}
	row := datapathPeer{Base: as16(p.Addr()), NextHop: nextHop, Bits: uint8(bits128(p)), Used: 1}
	if err := d.objs.Peers.Put(index, row); err != nil {
		return fmt.Errorf("write peer %s: %w", p, err)
	}
	t.learn(index, row)
	return nil
}

// freePeer finds a number that no mapping uses any more, nor is about to.
func (d *Datapath) freePeer() (uint32, error) {
	used := maps.Clone(d.peers.given)
	err := each(d.objs.Mappings, func(_ datapathMappingKey, m datapathMapping) error {
		used[uint32(m.Peer)] = true
		return nil
	})
	if err != nil {
		return 0, err
	}
	for index, row := range d.peers.rows {
		if index != 0 && !used[index] {
			p := row.prefix()
			delete(d.peers.rows, index)
			delete(d.peers.byKey, p)
			if d.peers.sizes[p.Bits()]--; d.peers.sizes[p.Bits()] == 0 {
				delete(d.peers.sizes, p.Bits())
			}
			return index, nil
		}
	}
	return 0, fmt.Errorf("%d underlay prefixes: %w", MaxPeers, ErrFull)
}

// pa is the reverse of peerOf.
func (t *peerTable) pa(m datapathMapping) (netip.Addr, uint32) {
	row := t.rows[uint32(m.Peer)]
	b := row.Base.B
	binary.BigEndian.PutUint32(b[12:], binary.BigEndian.Uint32(b[12:])+uint32(m.Offset))
	return datapathAddr{B: b}.ip(), row.NextHop
}

// reaches says whether a mapping's offset leads from a peer's base to pa.
func reaches(base, pa netip.Addr) bool {
	b, a := base.As16(), pa.As16()
	return [12]byte(a[:]) == [12]byte(b[:]) && low32(pa)-low32(base) <= 0xffff
}

func low32(a netip.Addr) uint32 {
	b := a.As16()
	return binary.BigEndian.Uint32(b[12:])
}

// PutHost registers underlay addresses of a host: frames from there are believed
// for a while although their source has no mapping yet.
func (d *Datapath) PutHost(prefix netip.Prefix) error {
	d.peers.mu.Lock()
	defer d.peers.mu.Unlock()
	if _, known := d.peers.byKey[prefix.Masked()]; !known {
		if err := d.addPeer(prefix.Masked(), 0); err != nil {
			return err
		}
	}
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
