package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// A hook is a device that a program of the datapath is attached to. There may be
// ten thousand, so a hook holds nothing open but the program that all of its kind
// share.
type hook struct {
	name   string
	old    *ebpf.Program // what was attached
	update func(*ebpf.Program) error
	taken  bool // the new program is attached
}

// hooks are all that is attached, with the programs that were when it was looked at.
type hooks struct {
	all []*hook
	old map[ebpf.ProgramID]*ebpf.Program
}

// hooks lists what is attached, but for devices that are gone. Who reads what
// others leave in a frame comes first: from_vxlan the mark of from_wire. The
// uplink comes before the taps because there is one of it and many of them.
func (d *Datapath) hooks() (*hooks, error) {
	h := &hooks{old: map[ebpf.ProgramID]*ebpf.Program{}}
	if err := errors.Join(h.addLinks(d.dir), h.addFilters(d.dir)); err != nil {
		h.close()
		return nil, err
	}
	order := []string{vxlanPin, uplinkPin, nicPin, imdsPin}
	slices.SortFunc(h.all, func(a, b *hook) int {
		return cmp.Compare(uint(slices.Index(order, a.name)), uint(slices.Index(order, b.name)))
	})
	return h, nil
}

func (h *hooks) close() {
	for _, p := range h.old {
		_ = p.Close()
	}
}

func (h *hooks) addLinks(dir string) error {
	pins, err := os.ReadDir(linkDir(dir))
	if err != nil {
		return fmt.Errorf("list pinned links: %w", err)
	}
	for _, p := range pins {
		pin := filepath.Join(linkDir(dir), p.Name())
		id, device, err := linked(pin)
		if err != nil {
			return fmt.Errorf("look at pinned link %s: %w", pin, err)
		}
		if device == 0 {
			continue
		}
		if err := h.add(p.Name(), id, func(to *ebpf.Program) error { return relink(pin, to) }); err != nil {
			return err
		}
	}
	return nil
}

func (h *hooks) addFilters(dir string) error {
	attached, err := filters(dir)
	if err != nil {
		return err
	}
	for name, f := range attached {
		id, err := f.program()
		if err != nil {
			return err
		}
		if id == 0 {
			continue
		}
		if err := h.add(name, id, func(to *ebpf.Program) error { return f.attach(name, to) }); err != nil {
			return err
		}
	}
	return nil
}

func (h *hooks) add(name string, id ebpf.ProgramID, update func(*ebpf.Program) error) error {
	if h.old[id] == nil {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return fmt.Errorf("open the program of %s: %w", name, err)
		}
		h.old[id] = p
	}
	h.all = append(h.all, &hook{name: name, old: h.old[id], update: update})
	return nil
}

// linked returns what a pinned link attaches to which device; 0: it is gone.
func linked(pin string) (ebpf.ProgramID, int, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return 0, 0, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, 0, err
	}
	device, err := deviceOf(l)
	return info.Program, device, err
}

func relink(pin string, to *ebpf.Program) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Update(to)
}

// program returns what belongs to the hook of that name.
func (d *Datapath) program(name string) *ebpf.Program {
	switch name {
	case uplinkPin:
		return d.objs.FromWire
	case vxlanPin:
		return d.objs.FromVxlan
	case imdsPin:
		return d.objs.FromHost
	case nicPin:
		return d.objs.FromNic
	default:
		return d.objs.FromVm
	}
}
