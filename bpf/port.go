package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Conditions that a caller tells apart.
var (
	ErrNoPort  = errors.New("no such port in the datapath")
	ErrEpoch   = errors.New("the port's row has a higher epoch")
	ErrPort    = errors.New("not a port that the datapath can hold")
	ErrFull    = errors.New("a map of the datapath is full")
	ErrAddress = errors.New("not an address that the datapath can hold")
)

// PortFlags say what a port may do.
type PortFlags uint32

// The flags, as in vnet.h.
const (
	Open     = PortFlags(datapathPortFlagPORT_OPEN)     // frames may pass
	Isolated = PortFlags(datapathPortFlagPORT_ISOLATED) // DHCP, ARP for the gateway and IMDS only
	Timed    = PortFlags(datapathPortFlagPORT_TIMED)    // [Datapath.Times] are kept
	Router   = PortFlags(datapathPortFlagPORT_ROUTER)   // a gateway VM: may send from and get for any address
	Captured = PortFlags(datapathPortFlagPORT_CAPTURED) // its frames are copied: [Datapath.Captures]
	FlowLog  = PortFlags(datapathPortFlagPORT_FLOW_LOG) // its flows are told: [Datapath.FlowEvents]
	Draining = PortFlags(datapathPortFlagPORT_DRAINING) // new flows are refused
	Strict   = PortFlags(datapathPortFlagPORT_STRICT)   // TCP in mid-stream without a flow is refused
	Reset    = PortFlags(datapathPortFlagPORT_RESET)    // ... and answered with a reset
	XDP      = PortFlags(datapathPortFlagPORT_XDP)      // its device takes frames that XDP redirects: a tap
	Peer     = PortFlags(datapathPortFlagPORT_PEER)     // its device is a veth whose other end is in another namespace

	limited  = PortFlags(datapathPortFlagPORT_LIMITED)
	hasRules = PortFlags(datapathPortFlagPORT_RULES)
)

// own are the flags that follow from other calls than SetPort and SetPortFlags.
const own = limited | hasRules

// A Port is one port in one network: all that the way of its frames depends on.
type Port struct {
	Ifindex int // of its tap
	VNI     uint32
	Epoch   uint64
	MAC     [6]byte
	PA      netip.Addr     // of the underlay's family
	CAs     []netip.Prefix // its addresses, each with its subnet's length; up to MaxCAs; the first of a family reaches IMDS
	Gateway netip.Addr     // IPv4; the zero Addr: none
	MTU     int            // bytes of the guest's IP packets
	Flags   PortFlags
	Tenant  uint32   // whose ports have a share of the flows together, any number but 0; 0: nobody's
	Rules   *RuleSet // nil: none, all passes
}

// SetPort puts the port's row in force. A frame sees either the whole old row or
// the whole new one, so a port changes networks without being closed. It
// returns [ErrEpoch] if the row in force has a higher epoch, and [ErrPort].
//
// A higher epoch keeps the room of the rules that it replaces, so that the port can
// go back to them on a host that is full: until [Datapath.ReleaseRules].
//
// It is quick (a few map updates) unless the same port was set less than a grace
// period ago: see [Datapath.Settle].
func (d *Datapath) SetPort(id uint16, p Port) error {
	row, err := p.row()
	if err != nil {
		return fmt.Errorf("port %d: %w", id, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old, err := d.activeRow(id)
	if err != nil {
		return err
	}
	if old.Ifindex != 0 && row.Epoch < old.Epoch {
		return fmt.Errorf("port %d to epoch %#x, has %#x: %w", id, row.Epoch, old.Epoch, ErrEpoch)
	}
	if err := d.adopt(id, &row, old, p.Rules); err != nil {
		return fmt.Errorf("port %d: %w", id, err)
	}
	// The keys lead to the port before its row agrees: until the flip they are refused.
	if err := d.objs.Locals.Put(row.local(), uint32(id)); err != nil {
		return fmt.Errorf("port %d: %w", id, full(err))
	}
	if err := d.objs.Taps.Put(row.Ifindex, uint32(id)); err != nil {
		return fmt.Errorf("port %d: %w", id, full(err))
	}
	if err := d.flip(id, row); err != nil {
		return err
	}
	if row.Epoch > old.Epoch {
		d.holdRules(id, old)
	} else {
		d.rules.release(id, d.flips, old.lists()...)
	}
	return d.forget(old, row)
}

// adopt puts into row what doesn't come with the port's place: its rules, and
// what stays in force however often the port is set.
func (d *Datapath) adopt(id uint16, row *datapathPort, old datapathPort, rules *RuleSet) error {
	row.Generation = old.Generation + 1 // flows of the same epoch are judged again
	row.Flags |= old.Flags & datapathPortFlag(limited)
	if old.Ifindex == 0 {
		row.Flags &^= datapathPortFlag(limited)
	}
	if row.Epoch > old.Epoch {
		return d.enterRules(id, row, rules)
	}
	return d.placeRules(row, rules)
}

// SetPortFlags changes flags of the row in force; the rest of it stays.
// It returns [ErrNoPort].
func (d *Datapath) SetPortFlags(id uint16, set, clear PortFlags) error {
	return d.setFlags(id, set&^own, clear&^own)
}

func (d *Datapath) setFlags(id uint16, set, clear PortFlags) error {
	return d.setWord(id, func(row *datapathPort) {
		row.Flags = row.Flags&^datapathPortFlag(clear) | datapathPortFlag(set)
	})
}

// setWord changes one aligned word of the row in force. The other bytes are written
// as they are: no frame can see anything in between, so this needs no flip.
func (d *Datapath) setWord(id uint16, change func(*datapathPort)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	slot, err := d.slot(id)
	if err != nil {
		return err
	}
	row := &slot.Row[slot.Active&1]
	if row.Ifindex == 0 {
		return fmt.Errorf("port %d: %w", id, ErrNoPort)
	}
	change(row)
	if err := d.objs.Ports.Put(uint32(id), slot); err != nil {
		return fmt.Errorf("change the row of port %d: %w", id, err)
	}
	return nil
}

// DeletePort takes the port out of force and zeroes its counters and times. It
// is no error if there is none.
func (d *Datapath) DeletePort(id uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unstageRules(id)
	old, err := d.activeRow(id)
	if err != nil || old.Ifindex == 0 {
		return err
	}
	if err := d.flip(id, datapathPort{}); err != nil {
		return err
	}
	d.rules.release(id, d.flips, old.lists()...)
	d.unholdRules(id)
	if err := d.forget(old, datapathPort{}); err != nil {
		return err
	}
	return d.resetPort(id)
}

// Port reads back the row in force. It returns [ErrNoPort].
func (d *Datapath) Port(id uint16) (Port, error) {
	row, err := d.activeRow(id)
	if err != nil {
		return Port{}, err
	}
	if row.Ifindex == 0 {
		return Port{}, fmt.Errorf("port %d: %w", id, ErrNoPort)
	}
	p := row.port()
	if p.Rules, err = d.ruleSet(row); err != nil {
		return Port{}, fmt.Errorf("rules of port %d: %w", id, err)
	}
	return p, nil
}

// Ports reads back all rows in force, by port id, but for their rules.
func (d *Datapath) Ports() (map[uint16]Port, error) {
	ports := map[uint16]Port{}
	err := d.eachRow(func(id uint16, row datapathPort) error {
		ports[id] = row.port()
		return nil
	})
	return ports, err
}

// eachRow calls f with every row in force.
func (d *Datapath) eachRow(f func(uint16, datapathPort) error) error {
	return each(d.objs.Ports, func(id uint32, slot datapathPortSlot) error {
		if row := slot.Row[slot.Active&1]; row.Ifindex != 0 {
			return f(uint16(id), row)
		}
		return nil
	})
}

// flip writes row where no frame looks, then makes frames look there.
func (d *Datapath) flip(id uint16, row datapathPort) error {
	if d.unsettled[id] != 0 {
		// A frame may still use the row that the last flip left.
		if err := gracePeriod(); err != nil {
			return err
		}
		delete(d.unsettled, id)
		d.rules.settle(id, d.flips)
	}
	slot, err := d.slot(id)
	if err != nil {
		return err
	}
	next := 1 - slot.Active&1
	slot.Row[next] = row
	if err := d.objs.Ports.Put(uint32(id), slot); err != nil {
		return fmt.Errorf("write the next row of port %d: %w", id, err)
	}
	slot.Active = next
	if err := d.objs.Ports.Put(uint32(id), slot); err != nil {
		return fmt.Errorf("flip port %d: %w", id, err)
	}
	d.flips++
	d.unsettled[id] = d.flips
	return nil
}

// forget deletes the keys that led to the old row and don't lead to the new one.
func (d *Datapath) forget(old, row datapathPort) error {
	if old.Ifindex == 0 {
		return nil
	}
	if old.local() != row.local() {
		if err := ignoreMissing(d.objs.Locals.Delete(old.local())); err != nil {
			return fmt.Errorf("delete the port's old key: %w", err)
		}
	}
	if old.Ifindex != row.Ifindex {
		if err := ignoreMissing(d.objs.Taps.Delete(old.Ifindex)); err != nil {
			return fmt.Errorf("delete the port's old tap: %w", err)
		}
	}
	return nil
}

func (d *Datapath) slot(id uint16) (datapathPortSlot, error) {
	var slot datapathPortSlot
	if id == 0 || int(id) >= MaxPorts-1 {
		return slot, fmt.Errorf("port id %d is not in 1..%d: %w", id, MaxPorts-2, ErrPort)
	}
	if err := d.objs.Ports.Lookup(uint32(id), &slot); err != nil {
		return slot, fmt.Errorf("read port %d: %w", id, err)
	}
	return slot, nil
}

func (d *Datapath) activeRow(id uint16) (datapathPort, error) {
	slot, err := d.slot(id)
	return slot.Row[slot.Active&1], err
}

func (p datapathPort) local() datapathLocalKey {
	return datapathLocalKey{Vni: p.Vni, Mac: p.Mac}
}

func (p datapathPort) port() Port {
	out := Port{
		Ifindex: int(p.Ifindex),
		VNI:     p.Vni,
		Epoch:   p.Epoch,
		MAC:     p.Mac,
		PA:      p.Pa.ip(),
		Gateway: p.Gateway.ip(),
		MTU:     int(p.Mtu),
		Flags:   PortFlags(p.Flags) &^ own,
		Tenant:  p.Tenant,
	}
	for i, ca := range p.Ca {
		if a := ca.ip(); a.IsValid() {
			out.CAs = append(out.CAs, netip.PrefixFrom(a, p.Mask[i].bits(a)))
		}
	}
	return out
}

func (p Port) row() (datapathPort, error) {
	row := datapathPort{
		Epoch:    p.Epoch,
		Pa:       as16(p.PA),
		Gateway:  as16(p.Gateway),
		Gateway6: gateway6(p.VNI),
		Vni:      p.VNI,
		Ifindex:  uint32(p.Ifindex),
		Flags:    datapathPortFlag(p.Flags &^ own),
		Mtu:      uint16(p.MTU),
		Mac:      p.MAC,
		Tenant:   p.Tenant,
	}
	switch {
	case p.Ifindex <= 0:
		return row, fmt.Errorf("%w: ifindex %d", ErrPort, p.Ifindex)
	case p.VNI == 0 || p.VNI > 1<<24-1:
		return row, fmt.Errorf("%w: VNI %d", ErrPort, p.VNI)
	case p.MAC == [6]byte{} || p.MAC[0]&1 == 1:
		return row, fmt.Errorf("%w: MAC %x", ErrPort, p.MAC)
	case !p.PA.IsValid():
		return row, fmt.Errorf("%w: no PA", ErrPort)
	case p.MTU < 68 || p.MTU > 65535:
		return row, fmt.Errorf("%w: MTU %d", ErrPort, p.MTU)
	case len(p.CAs) > MaxCAs:
		return row, fmt.Errorf("%w: %d CAs, at most %d", ErrPort, len(p.CAs), MaxCAs)
	}
	for i, ca := range p.CAs {
		if !ca.IsValid() {
			return row, fmt.Errorf("%w: CA %d is not an address with a prefix length", ErrPort, i)
		}
		row.Ca[i], row.Mask[i] = as16(ca.Addr()), mask16(ca)
	}
	return row, nil
}

// gateway6 is the gateway's IPv6 link-local address, one a network: see
// vnet.VNI.Gateway6, which this package may not import.
func gateway6(vni uint32) datapathAddr {
	return datapathAddr{B: [16]byte{0: 0xfe, 1: 0x80, 8: 0x52, 9: 0x50, 10: 0x4c, 13: byte(vni >> 16), 14: byte(vni >> 8), 15: byte(vni)}}
}

// as16 puts an address into the datapath's form; none is all zeros.
func as16(a netip.Addr) datapathAddr {
	if !a.IsValid() {
		return datapathAddr{}
	}
	return datapathAddr{B: a.As16()}
}

// ip is the reverse of as16.
func (a datapathAddr) ip() netip.Addr {
	if a.B == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.B).Unmap()
}

// mask16 is the mask of a prefix in the datapath's form.
func mask16(p netip.Prefix) datapathAddr {
	var m datapathAddr
	for i := range bits128(p) {
		m.B[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// bits is the reverse of mask16, for a mask of addresses like a.
func (m datapathAddr) bits(a netip.Addr) int {
	if a.Is4() {
		return m.ones() - 96
	}
	return m.ones()
}

func (m datapathAddr) ones() (n int) {
	for _, b := range m.B {
		n += bits.OnesCount8(b)
	}
	return n
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
