package bpf

import (
	"errors"
	"reflect"
	"testing"
)

// Rules are staged while there is room, each port's in its own, and are in force
// with the row of a higher epoch alone; room that isn't used is given back.
func TestStageRules(t *testing.T) {
	h := newRulesRoom(t)
	set, full, inForce, flip := h.set, h.full, h.inForce, h.flip
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

// Until it is told that a port won't go back, a host keeps the room of the rules that
// it would go back to; whatever others do meanwhile, it can (DESIGN section 3).
func TestRulesAreHeldForTheWayBack(t *testing.T) {
	h := newRulesRoom(t)
	h.must(h.flip(redA, 0, h.set(5)))
	h.must(h.flip(redA, 1, h.set(3)))
	h.must(h.dp.Settle())
	h.full("what it left is held", redA2, 1)
	h.must(h.flip(redA, 2, h.set(5)))
	h.inForce("gone back", redA, h.set(5))
	h.full("what it left then is held", redA2, 1)
	h.dp.ReleaseRules(redA.id)
	h.full("more than was held", redA2, 4)
	h.must(h.dp.StageRules(redA2.id, h.set(3)))
	h.must(h.dp.StageRules(redA2.id, nil))

	h.must(h.flip(redA, 3, h.set(2)))
	h.must(h.flip(redA, 4, h.set(6))) // the group has another rule than before: those held are no use
	h.inForce("other rules", redA, h.set(6))
	h.must(h.dp.DeletePort(redA.id))
	h.must(h.dp.Settle())
	h.must(h.dp.StageRules(redA2.id, h.set(8)))
}

// An agent that starts keeps that room too, until it is told; what another port has
// made of it meanwhile is neither kept nor taken for what it was.
func TestRulesAreHeldOverARestart(t *testing.T) {
	h := newRulesRoom(t)
	restart := func() {
		t.Helper()
		h.must(h.reload(func(*Options) {}))
	}
	h.must(h.flip(redA, 0, h.set(5)))
	h.must(h.flip(redA, 1, h.set(2)))
	h.must(h.dp.SetRules(redA.id, h.set(1))) // the group is edited in mid-swap
	h.must(h.dp.Settle())
	restart()
	h.full("what it left is held", redA2, 3)
	h.must(h.dp.StageRules(redA2.id, h.set(2)))
	h.must(h.flip(redA, 2, h.set(5)))
	h.inForce("gone back after a restart", redA, h.set(5))
	h.must(h.dp.StageRules(redA2.id, nil))
	restart()
	h.dp.ReleaseRules(redA.id)
	h.must(h.dp.Settle())
	h.full("more than was held", redA2, 4)

	h.must(h.dp.StageRules(redA2.id, h.set(2)))
	restart() // with which that ends
	h.must(h.flip(redA, 3, h.set(3)))
	h.inForce("gone back to rules that were written over", redA, h.set(3))
	h.dp.ReleaseRules(redA.id)
	h.must(errors.Join(h.flip(redA2, 1, h.set(1)), h.flip(redA2, 2, h.set(4)))) // where redA's were
	restart()
	h.inForce("beside a port that took the room", redA, h.set(3))
	h.inForce("in the room of another", redA2, h.set(4))
	h.dp.ReleaseRules(redA2.id)
	h.must(h.dp.DeletePort(redA.id))
	h.must(h.dp.Settle())
	h.full("what is in force is not written over", redA2, 5)
	h.must(h.dp.StageRules(redA2.id, h.set(4)))
	h.inForce("beside what is staged", redA2, h.set(4))
}

// A rulesRoom is a host with room for eight rules and two ports.
type rulesRoom struct{ *host }

func newRulesRoom(t *testing.T) rulesRoom {
	isolate(t)
	h := newHost(t, "a", hostA, prefixA, func(o *Options) { o.Rules = 8 })
	h.addPorts(redA, redA2)
	return rulesRoom{h}
}

// set is n rules.
func (rulesRoom) set(n int) *RuleSet {
	s := &RuleSet{Out: []Rule{{ID: 77, Deny: true}}}
	for i := range n - 1 {
		s.In = append(s.In, Rule{ID: uint32(41 + i), Protocol: protoTCP, MinPort: 443, MaxPort: 443})
	}
	return s
}

func (h rulesRoom) full(what string, m member, n int) {
	h.t.Helper()
	if err := h.dp.StageRules(m.id, h.set(n)); !errors.Is(err, ErrFull) {
		h.t.Errorf("%s: got %v, want ErrFull", what, err)
	}
}

func (h rulesRoom) inForce(what string, m member, want *RuleSet) {
	h.t.Helper()
	if p, err := h.dp.Port(m.id); err != nil || !reflect.DeepEqual(p.Rules, want) {
		h.t.Errorf("%s: rules %+v, %v, want %+v", what, p.Rules, err, want)
	}
}

func (h rulesRoom) flip(m member, epochs uint64, rules *RuleSet) error {
	p := m.port(h.taps[m.id])
	p.Epoch, p.Rules = m.epoch+epochs, rules
	return h.dp.SetPort(m.id, p)
}
