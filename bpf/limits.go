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
	was, err := d.limitsRow(id)
	if err != nil {
		return err
	}
	row := datapathLimitsRow{From: l.From.row(), To: l.To.row()}
	if err := d.objs.PortLimits.Put(uint32(id), row); err != nil {
		return fmt.Errorf("write limits of port %d: %w", id, err)
	}
	set, clear := limited, PortFlags(0)
	if row == (datapathLimitsRow{}) {
		set, clear = clear, set
	}
	if err := d.setFlags(id, set, clear); err != nil {
		return err
	}
	return d.forgive(id, was, row)
}

// forgive fills the buckets of rates that have changed. What was spent at the old
// rate is owed in its time: beyond the burst of a higher rate, all frames would be
// refused until it is over, some 16 s at 64 kbit/s.
func (d *Datapath) forgive(id uint16, was, is datapathLimitsRow) error {
	var kinds []datapathBucket
	if old := was.From; old != (datapathRate{}) && old != is.From {
		kinds = append(kinds, datapathBucketBUCKET_FROM_BYTES, datapathBucketBUCKET_FROM_PACKETS)
	}
	if old := was.To; old != (datapathRate{}) && old != is.To {
		kinds = append(kinds, datapathBucketBUCKET_TO_BYTES, datapathBucketBUCKET_TO_PACKETS)
	}
	if kinds == nil {
		return nil
	}
	if err := gracePeriod(); err != nil { // frames that still pay the old rate
		return err
	}
	return d.fillBuckets(id, kinds...)
}

func (d *Datapath) fillBuckets(id uint16, kinds ...datapathBucket) error {
	for _, kind := range kinds {
		slot := uint32(id)*uint32(datapathBucketBUCKETS) + uint32(kind)
		if err := d.objs.Buckets.Put(slot, uint64(0)); err != nil {
			return fmt.Errorf("fill bucket %d of port %d: %w", kind, id, err)
		}
	}
	return nil
}

// Limits reads the rates of a port back.
func (d *Datapath) Limits(id uint16) (Limits, error) {
	row, err := d.limitsRow(id)
	return Limits{From: row.From.rate(), To: row.To.rate()}, err
}

func (d *Datapath) limitsRow(id uint16) (datapathLimitsRow, error) {
	var row datapathLimitsRow
	if err := d.objs.PortLimits.Lookup(uint32(id), &row); err != nil {
		return row, fmt.Errorf("read limits of port %d: %w", id, err)
	}
	return row, nil
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
