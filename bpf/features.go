package bpf

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// HavePrograms loads every program of the datapath and throws it away: nil if
// this kernel takes them all, else what it says, with the verifier's log.
func HavePrograms() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the memory lock limit (needs CAP_SYS_RESOURCE): %w", err)
	}
	spec, err := loadDatapath()
	if err != nil {
		return err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		if m.Type == ebpf.Hash || m.Type == ebpf.LRUHash {
			m.MaxEntries = 64 // the rows are made beforehand, and nobody wants them
		}
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	c.Close()
	return nil
}

// HaveTCX asks the kernel whether programs can be attached by tcx links (Linux
// 6.6): nil if so, [ebpf.ErrNotSupported] if not. Without it they hook in by
// filters of a clsact qdisc.
func HaveTCX() error {
	prog, err := trivial()
	if err != nil {
		return fmt.Errorf("load a program to try tcx with: %w", err)
	}
	defer prog.Close()
	// There is no such device. A kernel that looks for it knows tcx.
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("try tcx: %w", err)
}

// HaveFilters attaches a program by a clsact filter, in a network namespace of
// its own: nil if the kernel has what [HaveTCX] may lack.
func HaveFilters() error {
	return apart(func() error {
		prog, err := trivial()
		if err != nil {
			return err
		}
		defer prog.Close()
		dir, err := os.MkdirTemp("", "replug-filter-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		const loopback = 1
		return newFilter(filepath.Join(dir, "note"), uplinkPin, loopback).attach(uplinkPin, prog)
	})
}

// DecapFlag returns the flag of bpf_skb_adjust_room that takes a tunnel's state
// off a merged frame, or [ebpf.ErrNotSupported]. No released kernel has it yet:
// its number is what the kernel's own types say.
func DecapFlag() (uint64, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, fmt.Errorf("read the kernel's types: %w", err)
	}
	for t, err := range spec.All() {
		if err != nil {
			return 0, fmt.Errorf("read the kernel's types: %w", err)
		}
		e, ok := t.(*btf.Enum)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			if v.Name == "BPF_F_ADJ_ROOM_DECAP_L4_UDP" {
				return v.Value, nil
			}
		}
	}
	return 0, fmt.Errorf("BPF_F_ADJ_ROOM_DECAP_L4_UDP: %w", ebpf.ErrNotSupported)
}

// trivial is a program that lets everything pass.
func trivial() (*ebpf.Program, error) {
	const pass = 0 // TC_ACT_OK
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
}

// apart runs f in a new network namespace, on a thread that ends with it.
func apart(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace to try it in: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
