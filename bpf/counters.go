package bpf

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// A DropReason says why a frame was refused. The list is enum drop_reason in
// reason.h, and nowhere else.
type DropReason datapathDropReason

// String returns the reason as metrics and logs have it: "no_mapping".
func (r DropReason) String() string { return strings.ToLower(datapathDropReason(r).String()) }

// Drops returns how many frames were refused, for every reason there is.
func (d *Datapath) Drops() (map[DropReason]uint64, error) {
	drops := make(map[DropReason]uint64, datapathDropReasonDROP_MAX)
	for r := datapathDropReasonDROP_NONE + 1; r < datapathDropReasonDROP_MAX; r++ {
		n, err := d.countOf(r)
		if err != nil {
			return nil, err
		}
		drops[DropReason(r)] = n
	}
	return drops, nil
}

// Forwarded returns how many frames were delivered, sent, trapped or answered.
func (d *Datapath) Forwarded() (uint64, error) { return d.countOf(datapathDropReasonDROP_NONE) }

func (d *Datapath) countOf(r datapathDropReason) (uint64, error) {
	var perCPU []uint64
	if err := d.objs.Drops.Lookup(r, &perCPU); err != nil {
		return 0, fmt.Errorf("read drops: %w", err)
	}
	var n uint64
	for _, c := range perCPU {
		n += c
	}
	return n, nil
}

// Counters are what a port has sent and got since it was made.
type Counters struct {
	FromPackets, FromBytes uint64 // accepted from the VM; a GSO frame counts once
	ToPackets, ToBytes     uint64 // delivered to the VM
	Drops                  uint64 // refused from or to the VM
	Unresolved             uint64 // delivered although their source has no mapping yet
}

// PortCounters reads a port's counters.
func (d *Datapath) PortCounters(id uint16) (Counters, error) {
	var perCPU []datapathTally
	if err := d.objs.PortCounters.Lookup(uint32(id), &perCPU); err != nil {
		return Counters{}, fmt.Errorf("read counters of port %d: %w", id, err)
	}
	var n Counters
	for _, c := range perCPU {
		n.FromPackets += c.FromPackets
		n.FromBytes += c.FromBytes
		n.ToPackets += c.ToPackets
		n.ToBytes += c.ToBytes
		n.Drops += c.Drops
		n.Unresolved += c.Unresolved
	}
	return n, nil
}

// Times are when frames of a port passed in one direction while it was [Timed],
// by the clock that [Now] reads; 0: never.
type Times struct {
	Epoch  uint64        // that First and Last belong to
	Before time.Duration // last frame under the epoch before
	First  time.Duration // first frame under this epoch
	Last   time.Duration // last frame under this epoch
}

// Blackout returns the gap around the change to this epoch, or false if there
// wasn't a frame on both sides of it.
func (t Times) Blackout() (time.Duration, bool) {
	return t.First - t.Before, t.First != 0 && t.Before != 0
}

// Times returns when the VM's own frames were accepted from its current CA, and
// when frames were delivered to it. Metadata replies and DHCP don't count.
func (d *Datapath) Times(id uint16) (from, to Times, err error) {
	var t datapathTiming
	if err := d.objs.PortTimes.Lookup(uint32(id), &t); err != nil {
		return from, to, fmt.Errorf("read times of port %d: %w", id, err)
	}
	return datapathTimes(t.From).times(), datapathTimes(t.To).times(), nil
}

// ResetTimes forgets the port's times. Do it before [Timed] is set, or the last
// frame of an earlier change counts as the last one before this.
func (d *Datapath) ResetTimes(id uint16) error {
	if err := d.objs.PortTimes.Put(uint32(id), datapathTiming{}); err != nil {
		return fmt.Errorf("reset times of port %d: %w", id, err)
	}
	return nil
}

func (t datapathTimes) times() Times {
	return Times{
		Epoch:  t.Epoch,
		Before: time.Duration(t.Before),
		First:  time.Duration(t.First),
		Last:   time.Duration(t.Last),
	}
}

// resetPort zeroes what is kept by port id.
func (d *Datapath) resetPort(id uint16) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	all := make([]datapathBucket, datapathBucketBUCKETS)
	for kind := range all {
		all[kind] = datapathBucket(kind)
	}
	return errors.Join(
		d.ResetTimes(id),
		d.fillBuckets(id, all...),
		d.objs.DeniedBuckets.Put(uint32(id), uint64(0)),
		d.objs.PortCounters.Put(uint32(id), make([]datapathTally, cpus)),
		d.objs.FlowBudgets.Put(uint32(id), datapathFlowBudget{}),
		d.objs.PortLimits.Put(uint32(id), datapathLimitsRow{}),
	)
}
