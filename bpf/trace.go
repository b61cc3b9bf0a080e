package bpf

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// A Way is what becomes of a frame that nobody refuses.
type Way uint8

// The ways, as enum way in packet.h has them.
const (
	NoWay    = Way(datapathWayWAY_NONE)     // it was refused before it had one
	Trapped  = Way(datapathWayWAY_TRAP)     // to the host agent
	Answered = Way(datapathWayWAY_ANSWER)   // the gateway answers: ARP, ND, ping
	ToIMDS   = Way(datapathWayWAY_IMDS)     // to the metadata service
	ToPort   = Way(datapathWayWAY_LOCAL)    // to another port of this host
	ToWire   = Way(datapathWayWAY_WIRE)     // to another host
	ToItsVM  = Way(datapathWayWAY_DELIVER)  // from the wire to its port
	Climbs   = Way(datapathWayWAY_UP)       // from the wire to its port, by the VXLAN device
	NotOurs  = Way(datapathWayWAY_NOT_OURS) // not VXLAN for this host
)

// How a port knew the flow of a frame.
type FlowState uint8

// The states.
const (
	FlowNotAsked = FlowState(datapathFlowSeenFLOW_NOT_ASKED)
	FlowNew      = FlowState(datapathFlowSeenFLOW_NEW)
	FlowKnown    = FlowState(datapathFlowSeenFLOW_KNOWN)
	FlowRelated  = FlowState(datapathFlowSeenFLOW_RELATED) // an ICMP error about a known one
)

// A Trace says what a loaded program does with a frame, given the maps as they are.
type Trace struct {
	Drop  DropReason // 0: it isn't dropped
	Way   Way        // how far it came
	Frame []byte     // as it leaves; of a refused one, the answer that its sender gets, or nil

	Port, ToPort    uint16 // the port that it came from or was for; the one of this host that gets it
	VNI             uint32 // of the network that it is carried in
	FlowOut, FlowIn FlowState
	RuleOut, RuleIn int32 // that decided at the sender, at the receiver: an ID, [RuleDefault] or [RuleNone]
	Protocol        uint8
	Src, Dst        netip.AddrPort // as the rules saw them; Dst behind a service is the backend
	Translated      netip.AddrPort // what one end has been rewritten to: a service's backend, or the service
	Answers         bool           // Translated is the service as which the VM answers
	NextHop         netip.Addr     // the CA that what is sent is routed to, if it came so far
	PA              netip.Addr     // where that CA is, if it came so far
	MAC             [6]byte
	OuterSrc        netip.Addr // from the wire
	OuterDst        netip.Addr
	Known           bool // from the wire: the directory knows the source
	MTU             int  // what it was too big for, if its sender is told
	Reset           bool // its sender is told by a TCP reset
}

// TraceFromVM runs a frame through from_vm as if the VM of the port had sent it.
// Nothing is counted, remembered or sent. It returns [ErrNoPort].
func (d *Datapath) TraceFromVM(port uint16, frame []byte) (Trace, error) {
	row, err := d.activeRow(port)
	if err != nil {
		return Trace{}, err
	}
	if row.Ifindex == 0 {
		return Trace{}, fmt.Errorf("port %d: %w", port, ErrNoPort)
	}
	return d.runTrace(d.objs.FromVm, row.Ifindex, frame)
}

// TraceFromWire runs a frame with its outer headers through from_wire as if it
// had come in by the uplink.
func (d *Datapath) TraceFromWire(frame []byte) (Trace, error) {
	var s datapathSettings
	if err := d.objs.Config.Get(&s); err != nil {
		return Trace{}, fmt.Errorf("read the datapath's config: %w", err)
	}
	return d.runTrace(d.objs.FromWire, s.Uplink, frame)
}

// A SkBuff is struct __sk_buff (linux/bpf.h), of which a test run of a program reads
// only the fields with a name.
type SkBuff struct {
	_       [2]uint32
	Mark    uint32
	_       [7]uint32
	Ifindex uint32
	_       [37]uint32
}

const verdictShot = 2 // TC_ACT_SHOT in linux/pkt_cls.h

func (d *Datapath) runTrace(p *ebpf.Program, ifindex uint32, frame []byte) (Trace, error) {
	d.tracing.Lock()
	defer d.tracing.Unlock()
	none := datapathPacket{Way: datapathWayWAY_NOT_OURS}
	if err := d.objs.Traced.Put(uint32(0), none); err != nil {
		return Trace{}, fmt.Errorf("clear the last trace: %w", err)
	}
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: SkBuff{Mark: d.trace, Ifindex: ifindex}}
	verdict, err := p.Run(&opts)
	if err != nil {
		return Trace{}, fmt.Errorf("run %s over a frame of %d bytes: %w", p, len(frame), err)
	}
	var seen datapathPacket
	if err := d.objs.Traced.Lookup(uint32(0), &seen); err != nil {
		return Trace{}, fmt.Errorf("read the trace: %w", err)
	}
	t := seen.trace()
	if verdict != verdictShot {
		t.Frame = opts.DataOut
	}
	return t, nil
}

func (p datapathPacket) trace() Trace {
	addrPort := func(a datapathAddr, port uint16) netip.AddrPort {
		if ip := a.ip(); ip.IsValid() {
			return netip.AddrPortFrom(ip, swap16(port))
		}
		return netip.AddrPort{}
	}
	t := Trace{
		Drop: DropReason(p.Why), Way: Way(p.Way), Port: uint16(p.Id), ToPort: uint16(p.ToId), VNI: p.Vni,
		FlowOut: FlowState(p.FlowOut), FlowIn: FlowState(p.FlowIn), RuleOut: p.RuleOut, RuleIn: p.RuleIn, Protocol: p.Proto,
		Src: addrPort(p.Src, p.Sport), Dst: addrPort(p.Dst, p.Dport), NextHop: p.Next.ip(), PA: p.Pa.ip(), MAC: p.Mac,
		OuterSrc: p.OuterSrc.ip(), OuterDst: p.OuterDst.ip(), Known: p.Known != 0, MTU: int(p.Mtu), Reset: p.Reset != 0,
	}
	// The programs clear what they ask for: the rest is a former frame's until it is found.
	if t.Way != ToPort && t.Way != ToWire {
		t.PA, t.MAC = netip.Addr{}, [6]byte{}
		if t.Drop != DropReason(datapathDropReasonDROP_NO_MAPPING) {
			t.NextHop = netip.Addr{}
		}
	}
	if p.Natted != 0 {
		t.Translated, t.Answers = addrPort(p.Nat, p.NatPort), p.Natted&uint8(datapathFlowFlagFLOW_BACKEND) != 0
	}
	return t
}
