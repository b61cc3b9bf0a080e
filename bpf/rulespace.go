package bpf

import (
	"fmt"
	"slices"
)

// A ruleSpace knows which pieces of the rules map are taken, by first fit. A
// piece that a replaced row pointed to is free once no frame uses that row.
type ruleSpace struct {
	size  uint32
	taken []datapathRuleList // by Base
	left  []leftRules
}

type leftRules struct {
	port uint16
	flip uint64
	datapathRuleList
}

func (s *ruleSpace) take(n uint32) (datapathRuleList, error) {
	base := uint32(0)
	for i, t := range s.taken {
		if t.Base-base >= n {
			l := datapathRuleList{Base: base, Count: n}
			s.taken = slices.Insert(s.taken, i, l)
			return l, nil
		}
		base = t.Base + t.Count
	}
	if s.size-base < n {
		return datapathRuleList{}, fmt.Errorf("%d rules in one piece: %w (raise its capacity)", n, ErrFull)
	}
	l := datapathRuleList{Base: base, Count: n}
	s.taken = append(s.taken, l)
	return l, nil
}

func (s *ruleSpace) occupy(l datapathRuleList) {
	if l.Count == 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(s.taken, l, byBase)
	s.taken = slices.Insert(s.taken, i, l)
}

// vacant reports whether nothing has taken any of l.
func (s *ruleSpace) vacant(l datapathRuleList) bool {
	if l.Count == 0 {
		return true
	}
	i, _ := slices.BinarySearchFunc(s.taken, l, byBase) // the first that begins at or after l
	before := i == 0 || s.taken[i-1].Base+s.taken[i-1].Count <= l.Base
	after := i == len(s.taken) || l.Base+l.Count <= s.taken[i].Base
	return before && after && l.Base+l.Count <= s.size
}

func byBase(a, b datapathRuleList) int { return int(a.Base) - int(b.Base) }

func (s *ruleSpace) free(l datapathRuleList) {
	if i, ok := slices.BinarySearchFunc(s.taken, l, byBase); ok && l.Count > 0 {
		s.taken = slices.Delete(s.taken, i, i+1)
	}
}

// release says that the row that a port's flip has replaced pointed to lists.
func (s *ruleSpace) release(port uint16, flip uint64, lists ...datapathRuleList) {
	for _, l := range lists {
		if l.Count > 0 {
			s.left = append(s.left, leftRules{port, flip, l})
		}
	}
}

// settle frees what the port's flips up to one of that number have left.
func (s *ruleSpace) settle(port uint16, flip uint64) {
	s.settleIf(func(l leftRules) bool { return l.port == port && l.flip <= flip })
}

func (s *ruleSpace) settleAll(flip uint64) {
	s.settleIf(func(l leftRules) bool { return l.flip <= flip })
}

func (s *ruleSpace) settleIf(done func(leftRules) bool) {
	s.left = slices.DeleteFunc(s.left, func(l leftRules) bool {
		if !done(l) {
			return false
		}
		s.free(l.datapathRuleList)
		return true
	})
}
