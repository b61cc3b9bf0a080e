package bpf

import (
	"fmt"
	"time"
)

// A Rate bounds one direction of a port. Zero: no bound.
type Rate struct {
	Bits    uint64 // a second, of Ethernet frames
	Packets uint64 // a second, as on a wire: a GSO frame counts each segment
}

// Limits bound what a VM sends and gets.
type Limits struct{ From, To Rate }

// How far a port may run ahead of its rate: long enough for a superpacket of 64
// KiB at any rate, so that TCP isn't cut off at low ones.
const (
	rateBurst   = 50 * time.Millisecond
	burstBytes  = 2 << 16
	burstFrames = 64
)

// SetLimits sets the rates of a port, from its next frame on. They are token
// buckets and so refuse what is too much; they don't delay. It returns [ErrNoPort].
func (d *Datapath) SetLimits(id uint16, l Limits) error {
	if l != (Limits{}) {
		row := datapathLimitsRow{From: l.From.row(), To: l.To.row()}
		if err := d.objs.PortLimits.Put(uint32(id), row); err != nil {
			return fmt.Errorf("write limits of port %d: %w", id, err)
		}
		return d.setFlags(id, limited, 0)
	}
	if err := d.setFlags(id, 0, limited); err != nil {
		return err
	}
	if err := d.objs.PortLimits.Put(uint32(id), datapathLimitsRow{}); err != nil {
		return fmt.Errorf("clear limits of port %d: %w", id, err)
	}
	return nil
}

// Limits reads the rates of a port back.
func (d *Datapath) Limits(id uint16) (Limits, error) {
	var row datapathLimitsRow
	if err := d.objs.PortLimits.Lookup(uint32(id), &row); err != nil {
		return Limits{}, fmt.Errorf("read limits of port %d: %w", id, err)
	}
	return Limits{From: row.From.rate(), To: row.To.rate()}, nil
}

func (r Rate) row() datapathRate {
	var v datapathRate
	if r.Bits > 0 {
		v.ByteCost = max(uint64(8*time.Second)<<16/r.Bits, 1)
		v.ByteBurst = max(uint64(rateBurst), v.ByteCost*burstBytes>>16)
	}
	if r.Packets > 0 {
		v.PacketCost = max(uint64(time.Second)<<16/r.Packets, 1)
		v.PacketBurst = max(uint64(rateBurst), v.PacketCost*burstFrames>>16)
	}
	return v
}

// rate is the reverse of row, to the nearest number.
func (v datapathRate) rate() Rate {
	var r Rate
	if v.ByteCost > 0 {
		r.Bits = (uint64(8*time.Second)<<16 + v.ByteCost/2) / v.ByteCost
	}
	if v.PacketCost > 0 {
		r.Packets = (uint64(time.Second)<<16 + v.PacketCost/2) / v.PacketCost
	}
	return r
}
