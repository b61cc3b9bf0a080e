package bpf

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// A TrapKind says why a frame was trapped.
type TrapKind uint32

// The kinds, as in record.h.
const (
	TrapDHCP     = TrapKind(datapathTrapKindTRAP_DHCP)      // a DHCP client's message
	TrapARPReply = TrapKind(datapathTrapKindTRAP_ARP_REPLY) // the port's current CA answers the gateway

	TrapDHCPv6          = TrapKind(datapathTrapKindTRAP_DHCPV6)         // a DHCPv6 client's message
	TrapRouterSolicit   = TrapKind(datapathTrapKindTRAP_ROUTER_SOLICIT) // RFC 4861, 4.1
	TrapNeighbourAdvert = TrapKind(datapathTrapKindTRAP_NEIGH_ADVERT)   // one of the port's CAs, or its link-local address, answers the gateway
	TrapProbe           = TrapKind(datapathTrapKindTRAP_PROBE)          // TCP to the gateway: SYN+ACK or RST, the answer to a health probe
)

// A Trap is a guest's frame that the host agent is to answer.
type Trap struct {
	Port  uint16
	Kind  TrapKind
	Epoch uint64 // of the port when it sent the frame; an answer is void if it has changed
	Frame []byte // from the Ethernet header on; the reader's to keep
}

// ErrClosed says that the TrapReader was closed.
var ErrClosed = errors.New("trap reader closed")

// A TrapReader reads traps. One at a time may read a Datapath's traps.
type TrapReader struct{ ring *ringbuf.Reader }

// Traps returns a reader. Traps that nobody has read yet, those of the time
// before a restart included, come first.
func (d *Datapath) Traps() (*TrapReader, error) {
	ring, err := ringbuf.NewReader(d.objs.Traps)
	if err != nil {
		return nil, fmt.Errorf("open the trap ring: %w", err)
	}
	return &TrapReader{ring}, nil
}

// Read waits for a trap. It returns [ErrClosed] after Close, and
// [os.ErrDeadlineExceeded] at the deadline.
func (r *TrapReader) Read() (Trap, error) {
	record, err := r.ring.Read()
	switch {
	case errors.Is(err, ringbuf.ErrClosed):
		return Trap{}, ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Trap{}, err
	case err != nil:
		return Trap{}, fmt.Errorf("read a trap: %w", err)
	}
	return parseTrap(record.RawSample)
}

// SetDeadline makes Read return at t; the zero time means never.
func (r *TrapReader) SetDeadline(t time.Time) { r.ring.SetDeadline(t) }

// Close ends a Read that waits.
func (r *TrapReader) Close() error { return r.ring.Close() }

func parseTrap(b []byte) (Trap, error) {
	if len(b) < int(unsafe.Sizeof(datapathTrap{})) {
		return Trap{}, fmt.Errorf("trap of %d bytes, want %d", len(b), unsafe.Sizeof(datapathTrap{}))
	}
	t := (*datapathTrap)(unsafe.Pointer(unsafe.SliceData(b)))
	if int(t.Len) > len(t.Frame) {
		return Trap{}, fmt.Errorf("trapped frame of %d bytes, at most %d", t.Len, len(t.Frame))
	}
	return Trap{Port: uint16(t.PortId), Kind: TrapKind(t.Kind), Epoch: t.Epoch, Frame: t.Frame[:t.Len:t.Len]}, nil
}
