package lab

import (
	"errors"
	"fmt"
	"math"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// A Loss drops frames of a device by chance, both ways or one. The kernel needs
// no netem: a small tcx program draws the lots, before every other program on
// the way in and on the way out.
type Loss struct {
	state *ebpf.Map
	links []link.Link
}

// Direction of frames at a device, seen from the namespace.
type Direction string

// The directions.
const (
	In   Direction = "in"
	Out  Direction = "out"
	Both Direction = "both"
)

// Slots of a Loss's map.
const (
	slotChance  = iota // of 2^32, compared with a random u32
	slotDropped        // frames
)

// Lose makes a device lose that share of its frames, from 0 to 1, until Clear
// or this process's end. Many can be on one device.
func (n *Node) Lose(dev string, d Direction, share float64) (*Loss, error) {
	l := &Loss{}
	err := n.Do(func() error { return l.attach(dev, d) })
	if err == nil {
		err = l.Set(share)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lose frames of %s in %s: %w", dev, n.Name, err), l.Clear())
	}
	return l, nil
}

// Partition cuts a host or the server off the underlay, both ways, until Clear
// or this process's end. It is done at the router: on the host all stays as it
// was, and nobody is told.
func (n *Node) Partition() (*Loss, error) { return n.lab.Router().Lose(n.Name, Both, 1) }

// Set changes the share that is lost; 0 loses nothing.
func (l *Loss) Set(share float64) error {
	if share < 0 || share > 1 || math.IsNaN(share) {
		return fmt.Errorf("%v is no share: it is between 0 and 1", share)
	}
	if err := l.state.Put(uint32(slotChance), uint64(share*(1<<32))); err != nil {
		return fmt.Errorf("set loss: %w", err)
	}
	return nil
}

// Dropped returns how many frames were lost.
func (l *Loss) Dropped() (uint64, error) {
	var n uint64
	err := l.state.Lookup(uint32(slotDropped), &n)
	return n, err
}

// Clear ends the loss.
func (l *Loss) Clear() error {
	var errs []error
	for _, at := range l.links {
		errs = append(errs, at.Close())
	}
	l.links = nil
	if l.state != nil {
		errs = append(errs, l.state.Close())
	}
	return errors.Join(errs...)
}

func (l *Loss) attach(dev string, d Direction) error {
	on, err := net.InterfaceByName(dev)
	if err != nil {
		return err
	}
	l.state, err = ebpf.NewMap(&ebpf.MapSpec{Name: "lab_loss", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		return fmt.Errorf("make map: %w", err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_loss", Type: ebpf.SchedCLS, License: "GPL", Instructions: lots(l.state.FD()),
	})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer prog.Close()
	for way, at := range map[Direction]ebpf.AttachType{In: ebpf.AttachTCXIngress, Out: ebpf.AttachTCXEgress} {
		if d != Both && d != way {
			continue
		}
		anchor := link.Head() // before the datapath on the way in, after it on the way out
		if way == Out {
			anchor = link.Tail()
		}
		tcx, err := link.AttachTCX(link.TCXOptions{Interface: on.Index, Program: prog, Attach: at, Anchor: anchor})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		l.links = append(l.links, tcx)
	}
	if len(l.links) == 0 {
		return fmt.Errorf("unknown direction %q", d)
	}
	return nil
}

// lots draws a random number for each frame and drops it if that is below the
// chance in the map: TCX_DROP, or TCX_NEXT for the next program.
func lots(state int) asm.Instructions {
	const drop, next = 2, -1
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, slotChance, asm.Word),
		asm.LoadMapPtr(asm.R1, state),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "go on"),
		asm.LoadMem(asm.R6, asm.R0, 0, asm.DWord),
		asm.FnGetPrandomU32.Call(),
		asm.JGE.Reg(asm.R0, asm.R6, "go on"),
		asm.StoreImm(asm.RFP, -4, slotDropped, asm.Word),
		asm.LoadMapPtr(asm.R1, state),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "go on"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, drop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, next).WithSymbol("go on"),
		asm.Return(),
	}
}
