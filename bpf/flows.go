package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// A Flow is one connection of a port, as the port sees it.
type Flow struct {
	Port     uint16
	Epoch    uint64
	Protocol uint8
	Local    netip.AddrPort // the VM's end; ports are 0 where the protocol has none, the identifier for ICMP echo
	Remote   netip.AddrPort
	Inbound  bool           // the other end began it
	Answered bool           // both ends have spoken
	Closing  bool           // TCP: a FIN or a reset has passed
	Service  netip.AddrPort // the other side of a service's translation: the backend, or for Answers the service
	Answers  bool           // the row that turns a backend's answers back; not a flow of its own
	Rule     int32          // that let it begin: an ID, [RuleDefault] or [RuleNone]
	Began    time.Duration  // by the clock that [Now] reads
	Idle     time.Duration
	From, To Count // what the VM sent and got

	// TCP: the last number that each end acknowledged, which is where the other
	// one's sequence stands.
	LocalAck, RemoteAck uint32
}

// A Count is packets, as on a wire, and Ethernet bytes.
type Count struct{ Packets, Bytes uint64 }

// EachFlow calls f with every flow, dead ones too, in no order.
func (d *Datapath) EachFlow(f func(Flow)) error {
	clock, err := d.clock(false)
	if err != nil {
		return err
	}
	return d.eachFlow(func(k datapathFlowKey, v datapathFlow) error {
		f(clock.flow(k, v))
		return nil
	})
}

// eachFlow calls f with the rows of both families, under one kind of key.
func (d *Datapath) eachFlow(f func(datapathFlowKey, datapathFlow) error) error {
	return errors.Join(each(d.objs.Flows, f),
		each(d.objs.Flows4, func(k datapathFlowKey4, v datapathFlow) error { return f(k.widen(), v) }))
}

// putFlow writes a row; [ebpf.UpdateNoExist] leaves the one that is there.
func (d *Datapath) putFlow(k datapathFlowKey, v datapathFlow, how ebpf.MapUpdateFlags) error {
	var err error
	if k4, ok := k.narrow(); ok {
		err = d.objs.Flows4.Update(k4, v, how)
	} else {
		err = d.objs.Flows.Update(k, v, how)
	}
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return err
}

// deleteFlow is no error if there is no such row.
func (d *Datapath) deleteFlow(k datapathFlowKey) error {
	if k4, ok := k.narrow(); ok {
		return ignoreMissing(d.objs.Flows4.Delete(k4))
	}
	return ignoreMissing(d.objs.Flows.Delete(k))
}

// flowRow returns [ebpf.ErrKeyNotExist] if there is no such row.
func (d *Datapath) flowRow(k datapathFlowKey) (v datapathFlow, err error) {
	if k4, ok := k.narrow(); ok {
		return v, d.objs.Flows4.Lookup(k4, &v)
	}
	return v, d.objs.Flows.Lookup(k, &v)
}

// narrow is the key of an IPv4 flow.
func (k datapathFlowKey) narrow() (datapathFlowKey4, bool) {
	if !k.Local.ip().Is4() {
		return datapathFlowKey4{}, false
	}
	return datapathFlowKey4{
		Remote: binary.NativeEndian.Uint32(k.Remote.B[12:]), Local: binary.NativeEndian.Uint32(k.Local.B[12:]),
		Rport: k.Rport, Lport: k.Lport, PortId: k.PortId, Proto: k.Proto,
	}, true
}

func (k datapathFlowKey4) widen() datapathFlowKey {
	wide := func(a uint32) datapathAddr {
		return as16(netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, a))))
	}
	return datapathFlowKey{Remote: wide(k.Remote), Local: wide(k.Local), Rport: k.Rport, Lport: k.Lport, PortId: k.PortId, Proto: k.Proto}
}

// A Swept says what a sweep has found.
type Swept struct {
	Alive int
	Ended int
	Ports map[uint16]uint32 // flows of each port that has any

	// Full4 and Full6 are how full the tables of the two families were, ended flows
	// included. From 1 on a table has forgotten flows, or does so next; who forgets one
	// tells nobody that it has ended.
	Full4, Full6 float64

	tenants map[uint32]uint32 // rows of each that has ports
	tenant  map[uint16]uint32 // of each port
}

// Sweep deletes the flows that have ended, or that belong to an epoch that has
// passed, and calls ended with each; then it counts the flows of each port and
// tenant anew, so that budgets hold again. quota is what a port may have from now
// on, 0: the default; what a tenant may have follows from what all have. Call it
// every few seconds: after a minute without, budgets don't bind.
func (d *Datapath) Sweep(quota func(port uint16, rows uint32) uint32, ended func(Flow)) (Swept, error) {
	clock, err := d.clock(false)
	if err != nil {
		return Swept{}, err
	}
	epochs := map[uint16]uint64{}
	s := Swept{Ports: map[uint16]uint32{}, tenants: map[uint32]uint32{}, tenant: map[uint16]uint32{}}
	err = d.eachRow(func(id uint16, row datapathPort) error {
		epochs[id], s.tenant[id], s.tenants[row.Tenant] = row.Epoch, row.Tenant, 0
		return nil
	})
	if err != nil {
		return Swept{}, err
	}
	var idle []datapathFlowKey
	rows4, rows6 := 0, 0
	err = d.eachFlow(func(k datapathFlowKey, v datapathFlow) error {
		if k.Local.ip().Is4() {
			rows4++
		} else {
			rows6++
		}
		if clock.alive(k, v, epochs[k.PortId]) {
			s.count(k, v)
		} else {
			idle = append(idle, k)
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	if s.Full4, err = fullness(rows4, d.objs.Flows4); err != nil {
		return s, err
	}
	if s.Full6, err = fullness(rows6, d.objs.Flows); err != nil {
		return s, err
	}
	for _, k := range idle {
		if err := d.end(k, clock, &s, ended); err != nil {
			return s, fmt.Errorf("end a flow: %w", err)
		}
	}
	for id := range epochs {
		b := datapathFlowBudget{Rows: s.Ports[id]}
		if quota != nil {
			b.Quota = quota(id, b.Rows)
		}
		if err := d.objs.FlowBudgets.Put(uint32(id), b); err != nil {
			return s, fmt.Errorf("write the flow budget of port %d: %w", id, err)
		}
	}
	if err := d.setShares(s.tenants); err != nil {
		return s, err
	}
	_, err = d.clock(true)
	return s, err
}

func (s *Swept) count(k datapathFlowKey, v datapathFlow) {
	s.Alive++
	s.tenants[s.tenant[k.PortId]]++
	if v.Flags&uint8(datapathFlowFlagFLOW_BACKEND) == 0 {
		s.Ports[k.PortId]++
	}
}

// end deletes a flow that has ended: port and row are looked at once more, since
// packets pass and ports flip while a sweep goes through all rows.
func (d *Datapath) end(k datapathFlowKey, clock tickClock, s *Swept, ended func(Flow)) error {
	v, err := d.flowRow(k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	row, err := d.activeRow(k.PortId)
	if err != nil {
		return err
	}
	if clock.alive(k, v, row.Epoch) {
		s.count(k, v)
		return nil
	}
	s.Ended++
	if ended != nil {
		ended(clock.flow(k, v))
	}
	return d.deleteFlow(k)
}

// Connections returns the port's TCP connections of an epoch that are open. What
// a service's backend has acknowledged stands in the row of its answers.
func (d *Datapath) Connections(port uint16, epoch uint64) ([]Flow, error) {
	type end struct{ local, backend netip.AddrPort }
	var open []Flow
	acks := map[end]uint32{}
	err := d.EachFlow(func(f Flow) {
		switch {
		case f.Port != port || f.Epoch != epoch || f.Protocol != 6:
		case f.Answers:
			acks[end{f.Local, f.Remote}] = f.RemoteAck
		case f.Answered && !f.Closing:
			open = append(open, f)
		}
	})
	for i, f := range open {
		if ack, ok := acks[end{f.Local, f.Service}]; ok {
			open[i].RemoteAck = ack
		}
	}
	return open, err
}

// ServiceOf returns by which service the guest behind a tap speaks to a backend: the
// end of its TCP connection that it knows; false if it speaks to the backend itself.
func (d *Datapath) ServiceOf(ifindex int, guest, backend netip.AddrPort) (netip.AddrPort, bool) {
	var id uint32
	if d.objs.Taps.Lookup(uint32(ifindex), &id) != nil {
		return netip.AddrPort{}, false
	}
	v, err := d.flowRow(datapathFlowKey{Remote: as16(backend.Addr()), Local: as16(guest.Addr()), Rport: swap16(backend.Port()),
		Lport: swap16(guest.Port()), PortId: uint16(id), Proto: 6})
	row, err2 := d.activeRow(uint16(id))
	if err != nil || err2 != nil || v.Epoch != row.Epoch || v.Flags&uint8(datapathFlowFlagFLOW_BACKEND) == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(v.Nat.ip(), swap16(v.NatPort)), true
}

// A tickClock turns the datapath's ticks into time.
type tickClock struct {
	now    uint32
	second uint64
}

func (d *Datapath) clock(swept bool) (tickClock, error) {
	ctx := datapathSweep{}
	if swept {
		ctx.Done = 1
	}
	out := datapathSweep{}
	failed, err := d.objs.NoteSweep.Run(&ebpf.RunOptions{Context: ctx, ContextOut: &out})
	if err != nil || failed != 0 || out.Second == 0 {
		return tickClock{}, fmt.Errorf("read the datapath's clock: %w (%d)", err, int32(failed))
	}
	return tickClock{now: uint32(out.Now), second: out.Second}, nil
}

// idle is for how long no packet has passed; one may have after the clock was read.
func (c tickClock) idle(v datapathFlow) time.Duration {
	return time.Duration(max(int32(c.now-v.Seen), 0)) * time.Second / time.Duration(c.second)
}

// alive: of its port's epoch, which is 0 for no port, and not idle for too long.
func (c tickClock) alive(k datapathFlowKey, v datapathFlow, epoch uint64) bool {
	return v.Epoch == epoch && c.idle(v) <= timeout(v, k.Proto)
}

func (c tickClock) flow(k datapathFlowKey, v datapathFlow) Flow {
	has := func(f datapathFlowFlag) bool { return v.Flags&uint8(f) != 0 }
	out := Flow{
		Port: uint16(k.PortId), Epoch: v.Epoch, Protocol: k.Proto,
		Local:   netip.AddrPortFrom(k.Local.ip(), swap16(k.Lport)),
		Remote:  netip.AddrPortFrom(k.Remote.ip(), swap16(k.Rport)),
		Inbound: has(datapathFlowFlagFLOW_INBOUND), Answered: has(datapathFlowFlagFLOW_ANSWERED),
		Closing: has(datapathFlowFlagFLOW_CLOSING) || has(datapathFlowFlagFLOW_RESET),
		Answers: has(datapathFlowFlagFLOW_BACKEND),
		Rule:    v.Rule, Began: time.Duration(v.Began), Idle: c.idle(v),
		From: Count{v.From.Packets, v.From.Bytes}, To: Count{v.To.Packets, v.To.Bytes},
		LocalAck: v.Acked[0], RemoteAck: v.Acked[1],
	}
	if has(datapathFlowFlagFLOW_SERVICE) || out.Answers {
		out.Service = netip.AddrPortFrom(v.Nat.ip(), swap16(v.NatPort))
	}
	return out
}

// timeout is timeout_of in flow.h.
func timeout(v datapathFlow, proto uint8) time.Duration {
	has := func(f datapathFlowFlag) bool { return v.Flags&uint8(f) != 0 }
	seconds := datapathFlowTimeoutTCP_OPENING
	switch {
	case proto != 6 && has(datapathFlowFlagFLOW_ANSWERED):
		seconds = datapathFlowTimeoutOTHER_ANSWERED
	case proto != 6:
		seconds = datapathFlowTimeoutOTHER_OPENING
	case has(datapathFlowFlagFLOW_RESET):
		seconds = datapathFlowTimeoutTCP_GONE
	case has(datapathFlowFlagFLOW_CLOSING):
		seconds = datapathFlowTimeoutTCP_CLOSING
	case has(datapathFlowFlagFLOW_ANSWERED):
		seconds = datapathFlowTimeoutTCP_OPEN
	}
	return time.Duration(seconds) * time.Second
}
