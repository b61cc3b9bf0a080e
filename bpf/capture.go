package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// A Point is where a frame was copied.
type Point uint8

// The points, as in record.h.
const (
	AtFromVM   = Point(datapathCapturePointPOINT_FROM_VM)   // as the VM sent it
	AtToVM     = Point(datapathCapturePointPOINT_TO_VM)     // as the VM gets it
	AtFromWire = Point(datapathCapturePointPOINT_FROM_WIRE) // with its outer headers
	AtToWire   = Point(datapathCapturePointPOINT_TO_WIRE)
	AtDrop     = Point(datapathCapturePointPOINT_DROP)    // as it was when it was refused
	AtDropTo   = Point(datapathCapturePointPOINT_DROP_TO) // a second copy of AtDrop, for the port of this host that was to get it
)

// SnapLen bounds the bytes of a copy.
const SnapLen = int(datapathLimitsSNAP)

// A Capture is the copy of a frame.
type Capture struct {
	Port   uint16 // 0: none is known
	Point  Point
	Drop   DropReason    // of AtDrop and AtDropTo
	Sender uint16        // of AtDropTo: the port that sent it
	Time   time.Duration // by the clock that [Now] reads
	Len    int           // of the whole frame
	Frame  []byte        // its first bytes, up to SnapLen; the reader's to keep
}

// A CaptureReader reads copies of the frames of [Captured] ports, and of all that
// is dropped while [Datapath.WatchDrops] is on. One at a time may read.
type CaptureReader struct{ ring *ringbuf.Reader }

// Captures returns a reader.
func (d *Datapath) Captures() (*CaptureReader, error) {
	ring, err := ringbuf.NewReader(d.objs.Captures)
	if err != nil {
		return nil, fmt.Errorf("open the ring of captures: %w", err)
	}
	return &CaptureReader{ring}, nil
}

// Read waits for a copy. It returns [ErrClosed] after Close, and
// [os.ErrDeadlineExceeded] at the deadline.
func (r *CaptureReader) Read() (Capture, error) {
	c, err := readRecord[datapathCaptured](r.ring)
	if err != nil {
		return Capture{}, err
	}
	n := min(int(c.Snapped), len(c.Frame))
	return Capture{
		Port: uint16(c.PortId), Point: Point(c.Point), Drop: DropReason(c.Reason), Sender: uint16(c.Sender),
		Time: time.Duration(c.Time), Len: int(c.Len), Frame: c.Frame[:n:n],
	}, nil
}

// SetDeadline makes Read return at t; the zero time means never.
func (r *CaptureReader) SetDeadline(t time.Time) { r.ring.SetDeadline(t) }

// Close ends a Read that waits.
func (r *CaptureReader) Close() error { return r.ring.Close() }

// WatchDrops copies every frame that is dropped, of any port, or stops that.
func (d *Datapath) WatchDrops(on bool) error {
	var v uint32
	if on {
		v = 1
	}
	if err := d.objs.DropWatch.Put(uint32(0), v); err != nil {
		return fmt.Errorf("watch drops: %w", err)
	}
	return nil
}

// CapturesLost counts the copies for which the ring had no room.
func (d *Datapath) CapturesLost() (uint64, error) {
	l, err := d.losses()
	return l.Captures, err
}

// A FlowEvent is the beginning of a flow of a [FlowLog] port, that it was refused,
// or its end if [Datapath.Sweep] won't find that: the rules or a dead backend
// ended it, or another flow between the same ends took its place.
type FlowEvent struct {
	Port           uint16
	Epoch          uint64
	Kind           FlowEventKind
	Drop           DropReason // why, of FlowDenied
	Rule           int32      // that decided: an ID, [RuleDefault] or [RuleNone]
	Inbound        bool
	Protocol       uint8
	Local, Remote  netip.AddrPort
	Time           time.Duration // by the clock that [Now] reads; of FlowEnded: its last packet
	Began          time.Duration // by the same clock
	Packets, Bytes uint64        // Ethernet; of FlowEnded both directions, else the first frame
}

// FlowEventKind is what happened to a flow.
type FlowEventKind uint32

const (
	FlowStarted = FlowEventKind(datapathFlowEventKindFLOW_STARTED)
	FlowDenied  = FlowEventKind(datapathFlowEventKindFLOW_DENIED)
	FlowEnded   = FlowEventKind(datapathFlowEventKindFLOW_ENDED)
)

// A FlowEventReader reads flow events. One at a time may read.
type FlowEventReader struct{ ring *ringbuf.Reader }

// FlowEvents returns a reader.
func (d *Datapath) FlowEvents() (*FlowEventReader, error) {
	ring, err := ringbuf.NewReader(d.objs.FlowEvents)
	if err != nil {
		return nil, fmt.Errorf("open the ring of flow events: %w", err)
	}
	return &FlowEventReader{ring}, nil
}

// Read waits for an event. It returns [ErrClosed] after Close, and
// [os.ErrDeadlineExceeded] at the deadline.
func (r *FlowEventReader) Read() (FlowEvent, error) {
	e, err := readRecord[datapathFlowEvent](r.ring)
	if err != nil {
		return FlowEvent{}, err
	}
	k := e.Key
	return FlowEvent{
		Port: uint16(k.PortId), Epoch: e.Epoch, Kind: FlowEventKind(e.Kind), Drop: DropReason(e.Reason),
		Rule: e.Rule, Inbound: e.Inbound != 0, Protocol: k.Proto,
		Local:  netip.AddrPortFrom(datapathAddr(k.Local).ip(), swap16(k.Lport)),
		Remote: netip.AddrPortFrom(datapathAddr(k.Remote).ip(), swap16(k.Rport)),
		Time:   time.Duration(e.Time), Began: time.Duration(e.Began), Packets: e.Passed.Packets, Bytes: e.Passed.Bytes,
	}, nil
}

// SetDeadline makes Read return at t; the zero time means never.
func (r *FlowEventReader) SetDeadline(t time.Time) { r.ring.SetDeadline(t) }

// Close ends a Read that waits.
func (r *FlowEventReader) Close() error { return r.ring.Close() }

// FlowEventsLost counts the events for which the ring had no room, or their port no share.
func (d *Datapath) FlowEventsLost() (uint64, error) {
	l, err := d.losses()
	return l.FlowEvents, err
}

func (d *Datapath) losses() (datapathLost, error) {
	var perCPU []datapathLost
	var sum datapathLost
	if err := d.objs.Losses.Lookup(uint32(0), &perCPU); err != nil {
		return sum, fmt.Errorf("read what the rings have lost: %w", err)
	}
	for _, l := range perCPU {
		sum.Captures += l.Captures
		sum.FlowEvents += l.FlowEvents
	}
	return sum, nil
}

// readRecord waits for a record of a ring, which has the layout of T.
func readRecord[T any](ring *ringbuf.Reader) (*T, error) {
	record, err := ring.Read()
	switch {
	case errors.Is(err, ringbuf.ErrClosed):
		return nil, ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("read a ring: %w", err)
	}
	if want := unsafe.Sizeof(*new(T)); len(record.RawSample) < int(want) {
		return nil, fmt.Errorf("a ring's record has %d bytes, want %d", len(record.RawSample), want)
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(record.RawSample))), nil
}
