package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// A climber is a frame that from_wire has sent up, as the VXLAN device hands it on:
// without its outer headers, with a mark and the tunnel's key.
type climber struct {
	frame []byte
	gso   int
	mark  uint32
	vni   uint32
	src   netip.Addr // of the tunnel
}

const (
	markNAT   = 0x8000
	markReset = 0x4000
	markPort  = 0x3fff
)

// fromVXLAN is what becomes of it: the row may not be what it was.
func (m *model) fromVXLAN(c climber) outcome {
	refused := func(why string) outcome { return outcome{reason: why, verdict: actShot, mark: c.mark} }
	if c.mark&^(markPort|markNAT|markReset) != markUp {
		return refused("unmarked")
	}
	j := &judged{frame: c.frame, gso: c.gso, outerSrc: c.src}
	var why string
	if j.parsed, why = parse(binary.BigEndian.Uint16(j.frame[12:]), j.frame[14:], c.gso); why != "" {
		return refused(asInner(why))
	}
	p := m.ports[uint16(c.mark&markPort)]
	if p == nil || p.VNI != c.vni || p.MAC != [6]byte(j.frame) {
		return refused("changed")
	}
	if why := p.admit(j.dst); why != "" {
		return refused(why)
	}
	if j.reset = c.mark&markReset != 0 && j.takesReset(); c.mark&markReset != 0 {
		return m.answerClimber(j, p, c, "midstream")
	}
	if j.tooLarge(p.MTU) {
		return m.answerClimber(j, p, c, "to_too_big")
	}
	if c.mark&markNAT != 0 {
		if why := m.matchFragment(j, p, true); why != "" {
			return refused(why)
		}
		f := m.flows[j.key(p, true)]
		if f == nil || f.epoch != p.Epoch || f.flags&fBackend == 0 {
			return refused("changed")
		}
		j.natted, j.nat = fBackend, f.nat
	}
	return m.deliver(j, p, outer{})
}

// answerClimber tells the sender, by the way that leads to it, if it is where it
// says that it is.
func (m *model) answerClimber(j *judged, p *modelPort, c climber, why string) outcome {
	out := outcome{reason: why, verdict: actShot, mark: c.mark}
	if j.tooBig == 0 && !j.reset {
		return out
	}
	out.mark = 0
	if m.wayOf(j, p, true) != "" {
		return out
	}
	out.verdict = actRedirect
	if j.route.here || !j.route.pa.IsValid() { // no next hop: the kernel finds one, behind the program
		return out
	}
	packet := j.resetPacket
	if j.tooBig != 0 {
		packet = func() []byte { return j.tooBigPacket(j.dst) }
	}
	by := eth(m.hop.Src, m.hop.Dst, etherIPv4, nil) // as if it had come by the next hop
	out.out = m.wayBack(j, p, c.vni, by, packet())
	return out
}

// A lift runs from_vxlan. The kernel's test run gives a frame no tunnel's key, so a
// program of the test's own gives it one and calls from_vxlan at its end.
type lift struct {
	key, next *ebpf.Map
	program   *ebpf.Program
}

// tunnelKeySize is of struct bpf_tunnel_key (linux/bpf.h).
const tunnelKeySize = 44

func newLift(h *host, v6 bool) *lift {
	h.t.Helper()
	l := &lift{}
	var err error
	l.key, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: tunnelKeySize, MaxEntries: 1})
	h.must(err)
	l.next, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	h.must(err)
	h.must(l.next.Put(uint32(0), h.dp.objs.FromVxlan))
	flags := int32(0)
	if v6 {
		flags = 1 // BPF_F_TUNINFO_IPV6
	}
	l.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "lift", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, l.key.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Mov.Imm(asm.R3, tunnelKeySize),
		asm.Mov.Imm(asm.R4, flags),
		asm.FnSkbSetTunnelKey.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, l.next.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
		asm.Return(),
	}})
	h.must(err)
	h.t.Cleanup(func() { l.program.Close(); l.next.Close(); l.key.Close() })
	return l
}

// climb puts a frame through from_vxlan and its model; "" if they agree.
func (w *twin) climb(c climber) string {
	w.t.Helper()
	key := make([]byte, tunnelKeySize)
	binary.NativeEndian.PutUint32(key, c.vni)
	// What is set as the local end is read back as the remote one.
	if c.src.Is4() {
		a := c.src.As4()
		binary.NativeEndian.PutUint32(key[28:], binary.BigEndian.Uint32(a[:]))
	} else {
		copy(key[28:], c.src.AsSlice())
	}
	w.must(w.lift.key.Put(uint32(0), key))
	return w.compare(w.lift.program, skb{Mark: c.mark, Ifindex: uint32(w.uplink.Attrs().Index), GSOSize: uint32(c.gso), GSOSegs: 2}, c.frame, w.model.fromVXLAN(c))
}

// A backend's segments that were merged on the wire, and then pieces of one: those
// take the same way up, and the later ones have no ports by which a flow is known.
func TestPiecesOfAServiceClimb(t *testing.T) {
	a, _ := newTwins(t, false)
	var at modelKey
	var f *modelFlow
	for sport := uint16(20000); f == nil || f.nat.Addr() != caB; sport++ {
		at = modelKey{redA.id, protoTCP, caA, vips[0], sport, 8453}
		wrong := a.fromVM(redA.id, redA.frame(segment{sport: sport, dport: 8453, flags: flagSYN}.of(caA, vips[0])), 0)
		if f = a.model.flows[at]; wrong != "" || f == nil {
			t.Fatalf("to the service from port %d: counted as %q, %s", sport, a.last, wrong)
		}
	}
	answer := segment{sport: f.nat.Port(), dport: at.lport, flags: flagACK, payload: text(1400)}.of(caB, caA)
	for _, c := range []struct {
		name   string
		packet []byte
		gso    int
	}{
		{"merged", answer, 536},
		{"first piece", fragment(caB, caA, protoTCP, 0x3b6d, 0, true, answer[20:820]), 0},
		{"last piece", fragment(caB, caA, protoTCP, 0x3b6d, 800, false, answer[820:]), 0},
	} {
		wrong := a.fromWire(a.arriving(tunnel{src: redB.pa, dst: redA.pa, vni: red}.with(redB.inner(redA, c.packet))), c.gso)
		if wrong != "" || a.up == nil {
			t.Fatalf("%s: counted as %q, %s; want it sent up", c.name, a.last, wrong)
		}
		if wrong := a.climb(*a.up); wrong != "" || a.last != "none" {
			t.Errorf("%s: %q on the VXLAN device; %s", c.name, a.last, wrong)
		}
	}
}
