package bpf

import (
	"errors"
	"reflect"
	"testing"
)

// Rules are staged while there is room, each port's in its own, and are in force
// with the row of a higher epoch alone; room that isn't used is given back.
func TestStageRules(t *testing.T) {
	isolate(t)
	h := newHost(t, "a", hostA, prefixA, func(o *Options) { o.Rules = 8 })
	h.addPorts(redA, redA2)
	set := func(n int) *RuleSet {
		s := &RuleSet{Out: []Rule{{ID: 77, Deny: true}}}
		for i := range n - 1 {
			s.In = append(s.In, Rule{ID: uint32(41 + i), Protocol: protoTCP, MinPort: 443, MaxPort: 443})
		}
		return s
	}
	full := func(what string, m member, n int) {
		t.Helper()
		if err := h.dp.StageRules(m.id, set(n)); !errors.Is(err, ErrFull) {
			t.Errorf("%s: got %v, want ErrFull", what, err)
		}
	}
	inForce := func(what string, m member, want *RuleSet) {
		t.Helper()
		if p, err := h.dp.Port(m.id); err != nil || !reflect.DeepEqual(p.Rules, want) {
			t.Errorf("%s: rules %+v, %v, want %+v", what, p.Rules, err, want)
		}
	}
	flip := func(m member, epochs uint64, rules *RuleSet) error {
		p := m.port(h.taps[m.id])
		p.Epoch, p.Rules = m.epoch+epochs, rules
		return h.dp.SetPort(m.id, p)
	}
	full("more than there is", redA, 9)
	h.must(h.dp.StageRules(redA.id, set(5)))
	h.must(h.dp.StageRules(redA.id, set(5))) // the same again takes no more
	full("beside the other's", redA2, 4)
	h.must(h.dp.StageRules(redA2.id, set(3)))
	inForce("staged", redA, nil)
	h.must(h.dp.SetRules(redA2.id, nil))
	h.must(flip(redA, 0, nil)) // its place stays
	full("held through an edit of what is in force", redA2, 4)

	h.must(h.dp.StageRules(redA2.id, nil))
	h.must(flip(redA, 1, set(5)))
	inForce("flipped", redA, set(5))
	full("held by the row", redA2, 4)
	h.must(h.dp.StageRules(redA2.id, set(3)))
	inForce("another's staging", redA, set(5))

	h.must(flip(redA2, 1, set(2))) // the group was edited in between
	inForce("other rules than staged", redA2, set(2))
	h.must(h.dp.StageRules(redA2.id, set(1)))
	h.must(h.dp.DeletePort(redA2.id))
	h.must(h.dp.Settle())
	h.must(h.dp.StageRules(redA.id, set(3)))
}
