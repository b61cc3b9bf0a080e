package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// takeHooks puts the new programs in force and makes the draft true, or neither.
func (d *Datapath) takeHooks(spec *ebpf.CollectionSpec, p *plan) (err error) {
	hooks, err := d.hooks()
	if err != nil {
		return err
	}
	defer hooks.close()
	defer func() {
		for _, h := range hooks.all {
			if err != nil {
				err = errors.Join(err, h.giveBack())
			}
		}
	}()
	for _, h := range hooks.all {
		if err := h.take(d.program(h.name)); err != nil {
			return fmt.Errorf("switch %s to the new program: %w", h.name, err)
		}
	}
	// Frames that the old programs still had; then what they wrote since the copy.
	if err := gracePeriod(); err != nil {
		return err
	}
	if err := d.copyLive(spec, p); err != nil {
		return err
	}
	if err := d.sign(); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, draftDir(d.dir), unix.AT_FDCWD, mapDir(d.dir), unix.RENAME_EXCHANGE)
	if err != nil {
		return fmt.Errorf("exchange the draft with the maps in force: %w", err)
	}
	return nil
}

func (h *hook) take(p *ebpf.Program) error {
	err := h.update(p)
	h.taken = err == nil
	return err
}

// giveBack attaches what was attached, if it no longer is.
func (h *hook) giveBack() error {
	if !h.taken {
		return nil
	}
	if err := h.update(h.old); err != nil {
		return fmt.Errorf("switch %s back to the old program: %w", h.name, err)
	}
	h.taken = false
	return nil
}

// copyLive copies what old programs have written since the first copy: flows
// that the new map lacks or has mistaken, and what was counted.
func (d *Datapath) copyLive(spec *ebpf.CollectionSpec, p *plan) error {
	for _, name := range p.moved {
		was, is := p.old[name], d.table(spec, name)
		c, _ := p.changeOf(name)
		if c.forget != "" || was.Type() != ebpf.LRUHash && !was.perCPU() {
			continue
		}
		if c.write != nil {
			if err := was.each(func(rows []row) error { return c.write(d, was.views(rows)) }); err != nil {
				return fmt.Errorf("copy map %s again: %w", name, err)
			}
			continue
		}
		convert, err := p.converter(name, is)
		if err != nil {
			return err
		}
		err = was.each(func(rows []row) error {
			if was.perCPU() {
				rows = p.since(name, rows)
			}
			fresh, err := convert(rows)
			if err != nil {
				return err
			}
			if was.perCPU() {
				return is.add(fresh)
			}
			return is.putNew(fresh, p.copied)
		})
		if err != nil {
			return fmt.Errorf("copy map %s again: %w", name, err)
		}
	}
	return nil
}

// remember keeps counters as they are copied.
func (p *plan) remember(name string, rows []row) {
	if p.counted[name] == nil {
		p.counted[name] = map[string]row{}
	}
	for _, r := range rows {
		p.counted[name][string(r.key)] = r.clone()
	}
}

// since returns what counters have grown by since then; they are numbers of 8 bytes.
func (p *plan) since(name string, rows []row) []row {
	var grown []row
	for _, r := range rows {
		before, ok := p.counted[name][string(r.key)]
		now := r.clone()
		for cpu, v := range now.values {
			for i := 0; ok && i+8 <= len(v); i += 8 {
				store64(v[i:i+8], load64(v[i:i+8], false)-load64(before.values[cpu][i:i+8], false))
			}
		}
		if !now.zero() {
			grown = append(grown, now)
		}
	}
	return grown
}
