package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// How a release takes over the state of an older one whose maps have another
// shape, under traffic:
//
//	maps/   what is in force. Only the last step changes it
//	draft/  the new release's maps. What hasn't changed is pinned in both: two
//	        releases then share it, and nothing of it can be lost
//
//  1. Load the new programs with the draft's maps. If they don't load, the old
//     ones have never noticed.
//  2. Copy the rows of the maps that have changed, field by field by the names in
//     their types, then as changes says.
//  3. Switch hook by hook to the new programs, and copy anew what the old programs
//     still write. Until then both releases carry frames, each by its own maps,
//     which say the same but for what frames write: nobody else does meanwhile. If
//     flows are among them, one that begins within these milliseconds may have its
//     first answer refused, or delivered as from a service's backend; its next
//     packet goes right.
//  4. Exchange maps/ and draft/ in one step, and remove what is the draft now.
//
// An agent that dies before 4 leaves maps/ true and whole, and every hook with
// one release or the other. The next one, of either release, throws the draft
// away and begins anew. An error before 4 does the same at once.

// A change is what a contract did to the rows of a map that can't be read off
// their types. One of its fields is set.
type change struct {
	forget string                              // why losing the rows costs nothing
	fix    func(was, is view) error            // completes what has been copied by name
	write  func(d *Datapath, was []view) error // puts rows in place itself; of a table that frames fill, those that are missing there
}

// A view is a row with the types of its parts.
type view struct{ key, value record }

// A plan says what to do with each map of a new release.
type plan struct {
	old    map[string]table // all that are pinned
	shared []string         // taken over as they are
	moved  []string         // copied
	from   datapathLimits   // the contract of the pinned maps

	copied  time.Duration             // when, by [Now]
	counted map[string]map[string]row // counters as they were copied, by map and key
}

func draftDir(dir string) string { return filepath.Join(dir, "draft") }

// makePlan compares the pinned maps with those of spec.
func makePlan(spec *ebpf.CollectionSpec, dir string) (*plan, error) {
	p := &plan{old: map[string]table{}, from: datapathLimitsCONTRACT, counted: map[string]map[string]row{}}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName {
			continue
		}
		t, ok, err := openTable(mapDir(dir), name)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		if !ok {
			continue
		}
		// The kernel keeps no types of a map whose key is an enum, drops: its values
		// are append only.
		if t.key == nil && t.KeySize() == m.KeySize && t.ValueSize() == m.ValueSize {
			t.key, t.value = m.Key, m.Value
		}
		p.old[name] = t
	}
	if t, ok := p.old[datapathMapContract]; ok {
		if err := t.Lookup(uint32(0), &p.from); err != nil {
			return nil, errors.Join(fmt.Errorf("read the contract of the pinned maps: %w", err), p.close())
		}
	}
	if p.from == 0 { // whoever made them died before there was a row
		p.from = datapathLimitsCONTRACT
	}
	if p.from > datapathLimitsCONTRACT {
		return nil, errors.Join(fmt.Errorf("maps in %s follow contract %d, this program %d: start the newer release: %w",
			dir, p.from, datapathLimitsCONTRACT, ErrShape), p.close())
	}
	for name, t := range p.old {
		if p.same(name, spec.Maps[name], t) {
			p.shared = append(p.shared, name)
		} else if t.Type() != ebpf.RingBuf && name != datapathMapContract {
			p.moved = append(p.moved, name)
		}
	}
	// Counters last: the sooner they are followed by the switch, the better.
	slices.SortFunc(p.moved, func(a, b string) int {
		return cmp.Or(boolOrder(p.old[a].perCPU(), p.old[b].perCPU()), strings.Compare(a, b))
	})
	return p, nil
}

// same reports whether the new release can go on with a map as it is. A ring
// holds records of the release that wrote them.
func (p *plan) same(name string, m *ebpf.MapSpec, t table) bool {
	if m.Compatible(t.Map) != nil || !sameLayout(m.Key, t.key) || !sameLayout(m.Value, t.value) {
		return false
	}
	_, changed := p.changeOf(name)
	return p.from == datapathLimitsCONTRACT || !changed && t.Type() != ebpf.RingBuf && name != datapathMapContract
}

// changeOf returns what happened to a map since the plan's contract. Two changes
// of one map would have to be told as one.
func (p *plan) changeOf(name string) (change, bool) {
	for to := datapathLimitsCONTRACT; to > p.from; to-- {
		if c, ok := changes[to][name]; ok {
			return c, true
		}
	}
	return change{}, false
}

// needed reports whether maps have to be migrated at all.
func (p *plan) needed() bool { return len(p.shared) < len(p.old) }

func (p *plan) close() error {
	var errs []error
	for _, t := range p.old {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// migrate loads over maps of another shape.
func (d *Datapath) migrate(spec *ebpf.CollectionSpec, p *plan) (err error) {
	draft := draftDir(d.dir)
	if err := os.Mkdir(draft, 0o700); err != nil {
		return fmt.Errorf("make the draft of the new maps: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("migrate the datapath in %s: %w (the old one stays in force)", d.dir, err), d.Close(), os.RemoveAll(draft))
		}
	}()
	for _, step := range []func(*ebpf.CollectionSpec, *plan) error{d.fillDraft, d.copyRows, d.takeHooks} {
		if err := step(spec, p); err != nil {
			return err
		}
	}
	return os.RemoveAll(draft)
}

// fillDraft loads the new programs with the draft's maps, those that both releases
// share among them.
func (d *Datapath) fillDraft(spec *ebpf.CollectionSpec, p *plan) error {
	for _, name := range p.shared {
		if err := pinAgain(p.old[name], filepath.Join(draftDir(d.dir), name)); err != nil {
			return err
		}
	}
	return d.fill(spec, draftDir(d.dir))
}

// pinAgain gives a map that is pinned a second name: two handles of it know
// nothing of each other's.
func pinAgain(t table, path string) error {
	info, err := t.Info()
	if err != nil {
		return fmt.Errorf("look at map %s: %w", path, err)
	}
	id, _ := info.ID()
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return fmt.Errorf("open map %s again: %w", path, err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		return fmt.Errorf("pin map into the draft: %w", err)
	}
	return nil
}

// copyRows fills the maps that have changed.
func (d *Datapath) copyRows(spec *ebpf.CollectionSpec, p *plan) error {
	p.copied = Now()
	for _, name := range p.moved {
		if err := d.copyMap(p, name, d.table(spec, name)); err != nil {
			return fmt.Errorf("copy map %s: %w", name, err)
		}
	}
	return nil
}

func (d *Datapath) copyMap(p *plan, name string, is table) error {
	was := p.old[name]
	c, _ := p.changeOf(name)
	switch {
	case c.forget != "":
		return nil
	case c.write != nil:
		return was.each(func(rows []row) error { return c.write(d, was.views(rows)) })
	}
	convert, err := p.converter(name, is)
	if err != nil {
		return err
	}
	return was.each(func(rows []row) error {
		fresh, err := convert(rows)
		if err != nil {
			return err
		}
		if was.perCPU() {
			p.remember(name, rows)
		}
		return is.put(fresh)
	})
}

// converter returns what makes rows of the new shape from old ones of a map.
func (p *plan) converter(name string, is table) (func([]row) ([]row, error), error) {
	was := p.old[name]
	c, changed := p.changeOf(name)
	if was.key == nil || is.key == nil {
		return nil, fmt.Errorf("its rows have no types: %w", errLayout)
	}
	keys, err := movesBetween(was.key, is.key)
	if err != nil {
		return nil, err
	}
	values, err := movesBetween(was.value, is.value)
	if err != nil && !changed {
		return nil, err
	}
	return func(rows []row) ([]row, error) {
		fresh := make([]row, len(rows))
		for i, r := range rows {
			var err error
			if fresh[i], err = convert(r, is, keys, values); err == nil && c.fix != nil {
				err = c.fix(was.views(rows[i : i+1])[0], is.views(fresh[i : i+1])[0])
			}
			if err != nil {
				return nil, err
			}
		}
		return fresh, nil
	}, nil
}

// convert makes a row of the new shape.
func convert(r row, is table, keys, values moves) (row, error) {
	n := row{key: make([]byte, is.KeySize())}
	if err := keys.apply(r.key, n.key); err != nil {
		return n, err
	}
	if is.array() && load64(n.key, false) >= uint64(is.MaxEntries()) {
		return n, fmt.Errorf("row %d of %d: %w", load64(n.key, false), is.MaxEntries(), ErrFull)
	}
	for _, v := range r.values {
		fresh := make([]byte, is.ValueSize())
		if err := values.apply(v, fresh); err != nil {
			return n, err
		}
		n.values = append(n.values, fresh)
	}
	return n, nil
}

func (t table) views(rows []row) []view {
	all := make([]view, len(rows))
	for i, r := range rows {
		all[i] = view{record{t.key, r.key}, record{t.value, r.values[0]}}
	}
	return all
}

// table returns a map of the new release with its types.
func (d *Datapath) table(spec *ebpf.CollectionSpec, name string) table {
	of := reflect.ValueOf(d.objs.datapathMaps)
	for i := range of.NumField() {
		if of.Type().Field(i).Tag.Get("ebpf") == name {
			return table{of.Field(i).Interface().(*ebpf.Map), spec.Maps[name].Key, spec.Maps[name].Value}
		}
	}
	return table{}
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
