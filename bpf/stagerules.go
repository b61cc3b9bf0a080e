package bpf

import (
	"fmt"
	"reflect"
)

// A stagedRules is a set that stands in the rules map before a row points to it.
type stagedRules struct {
	of      *RuleSet
	in, out datapathRuleList
}

// StageRules writes the rules that the next SetPort of a higher epoch will have,
// where no row points: it finds their room taken, and need not write them. Nil
// gives the room back. It returns [ErrRule] or [ErrFull], and then nothing is
// staged. What is staged ends with the process.
func (d *Datapath) StageRules(id uint16, rules *RuleSet) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if have, ok := d.staged[id]; ok && reflect.DeepEqual(have.of, rules) {
		return nil
	}
	d.unstageRules(id)
	if rules == nil {
		return nil
	}
	in, out, err := d.writeSet(rules)
	if err != nil {
		return fmt.Errorf("port %d: %w", id, err)
	}
	d.staged[id] = stagedRules{rules, in, out}
	return nil
}

// unstageRules gives back what is staged for a port: no frame has used it.
func (d *Datapath) unstageRules(id uint16) {
	s := d.staged[id]
	d.rules.free(s.in)
	d.rules.free(s.out)
	delete(d.staged, id)
}

// ReleaseRules gives back the room of the rules that the port had before its last
// higher epoch: it won't go back to them.
func (d *Datapath) ReleaseRules(id uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unholdRules(id)
}

// holdRules keeps the rules of the row that a flip has replaced, instead of those
// that were kept before.
func (d *Datapath) holdRules(id uint16, old datapathPort) {
	d.unholdRules(id)
	if old.In.Count+old.Out.Count > 0 {
		d.held[id] = old
	}
}

// keepReplaced lets a process that is loaded anew find what is held: it looks at the
// row that isn't in force, which an edit in the same epoch has written over. No frame
// may use that row any more.
func (d *Datapath) keepReplaced(id uint16) error {
	old, held := d.held[id]
	if !held {
		return nil
	}
	slot, err := d.slot(id)
	if err != nil {
		return err
	}
	if slot.Row[1-slot.Active&1] == old {
		return nil
	}
	slot.Row[1-slot.Active&1] = old
	if err := d.objs.Ports.Put(uint32(id), slot); err != nil {
		return fmt.Errorf("write down where the rules stand that port %d may go back to: %w", id, err)
	}
	return nil
}

// reholdRules is holdRules by a new process. Whether the port may still go back it
// can't know, nor whether the rules are still what they were: see [Datapath.stand].
// Room that something else has taken since is not held.
func (d *Datapath) reholdRules(id uint16, old datapathPort) {
	if !d.rules.vacant(old.In) || !d.rules.vacant(old.Out) {
		return
	}
	d.rules.occupy(old.In)
	d.rules.occupy(old.Out)
	d.holdRules(id, old)
}

func (d *Datapath) unholdRules(id uint16) {
	old := d.held[id]
	d.rules.release(id, d.flips, old.lists()...)
	delete(d.held, id)
}

// stand reports whether exactly these rules are what a list holds.
func (d *Datapath) stand(l datapathRuleList, rules []Rule) bool {
	if int(l.Count) != len(rules) {
		return false
	}
	for i, r := range rules {
		var is datapathRule
		want, err := r.value()
		if err != nil || d.objs.Rules.Lookup(l.Base+uint32(i), &is) != nil || is != want {
			return false
		}
	}
	return true
}

// enterRules is placeRules for a row of a new epoch: what was staged for it, or was
// held since it was there before, is there already, or is of no use any more.
func (d *Datapath) enterRules(id uint16, row *datapathPort, rules *RuleSet) error {
	if s, ok := d.staged[id]; ok && rules != nil && reflect.DeepEqual(s.of, rules) {
		delete(d.staged, id)
		row.Flags |= datapathPortFlag(hasRules)
		row.In, row.Out = s.in, s.out
		return nil
	}
	d.unstageRules(id)
	if h, ok := d.held[id]; ok && rules != nil && d.stand(h.In, rules.In) && d.stand(h.Out, rules.Out) {
		delete(d.held, id)
		row.Flags |= datapathPortFlag(hasRules)
		row.In, row.Out = h.In, h.Out
		return nil
	}
	d.unholdRules(id)
	return d.placeRules(row, rules)
}
