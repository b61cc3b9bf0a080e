// Package trap carries frames between the datapath and the host agent: guests'
// frames that the datapath hands up, with the port and epoch they came in, and
// the agent's own frames down to a guest.
//
// It knows what a record looks like and how an ARP frame is built. What a
// guest's frame means and what to answer is for the handlers it is given.
package trap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"replug/directory/vnet"
)

// A Kind is why a frame was handed up: enum trap_kind in bpf/vnet.h.
type Kind uint32

// The kinds.
const (
	DHCP     Kind = 1 // UDP from port 68 to 67, whatever its source address
	ARPReply Kind = 2 // the port's current CA answers the gateway's ARP request
)

// String returns the kind's word in logs and metrics.
func (k Kind) String() string {
	switch k {
	case DHCP:
		return "dhcp"
	case ARPReply:
		return "arp_reply"
	}
	return "unknown"
}

// A Record is one trapped frame. Frame is only good until the handler returns.
type Record struct {
	Port  vnet.PortID
	Kind  Kind
	Epoch vnet.Epoch // of the port when it was trapped
	Frame []byte     // from the Ethernet header on
}

// headerLen is the length of struct trap in bpf/vnet.h up to its frame: port id
// (4), kind (4), epoch (8), length (4), all in the machine's byte order.
const headerLen = 20

// ErrRecord is a record that the datapath can't have written: the agent and the
// datapath disagree about bpf/vnet.h.
var ErrRecord = errors.New("not a trap record")

// Parse reads a raw record. The frame points into raw.
func Parse(raw []byte) (Record, error) {
	if len(raw) < headerLen {
		return Record{}, fmt.Errorf("%d bytes: %w", len(raw), ErrRecord)
	}
	id, n := binary.NativeEndian.Uint32(raw), binary.NativeEndian.Uint32(raw[16:])
	if id == 0 || id > uint32(vnet.MaxPortID) {
		return Record{}, fmt.Errorf("port id %d: %w", id, ErrRecord)
	}
	if uint64(n) > uint64(len(raw)-headerLen) {
		return Record{}, fmt.Errorf("frame of %d bytes in a record of %d: %w", n, len(raw), ErrRecord)
	}
	return Record{
		Port:  vnet.PortID(id),
		Kind:  Kind(binary.NativeEndian.Uint32(raw[4:])),
		Epoch: vnet.Epoch(binary.NativeEndian.Uint64(raw[8:])),
		Frame: raw[headerLen : headerLen+n],
	}, nil
}

// A Source is where records come from: a BPF ring buffer.
type Source interface {
	// Read returns the next record, good until the next call. It fails once the
	// source is closed.
	Read() ([]byte, error)
	Close() error
}

// A Dispatcher hands each record to the handler of its kind, one at a time, in
// the order they were trapped.
type Dispatcher struct {
	Source   Source
	Handlers map[Kind]func(context.Context, Record)
	Refused  func(error) // takes records that nobody can handle; nil: nobody counts
}

// Run reads until ctx is done, which closes the source and is no error, or until
// the source fails.
func (d *Dispatcher) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = d.Source.Close() })
	defer stop()
	for {
		raw, err := d.Source.Read()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read traps: %w", err)
		}
		if err := d.dispatch(ctx, raw); err != nil && d.Refused != nil {
			d.Refused(err)
		}
	}
}

func (d *Dispatcher) dispatch(ctx context.Context, raw []byte) error {
	r, err := Parse(raw)
	if err != nil {
		return err
	}
	handle, ok := d.Handlers[r.Kind]
	if !ok {
		return fmt.Errorf("kind %d: %w", r.Kind, ErrRecord)
	}
	handle(ctx, r)
	return nil
}
