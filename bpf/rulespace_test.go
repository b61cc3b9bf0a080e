package bpf

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is taken and given back: pieces never overlap, the lowest gap that is
// large enough is taken, and a piece that a replaced row pointed to is not given
// out before its port's flip has settled.
func TestRuleSpace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 64
		s := ruleSpace{size: size}
		held := []datapathRuleList{}
		waiting := []leftRules{}
		flips := uint64(0)
		busy := func() []datapathRuleList {
			all := slices.Clone(held)
			for _, w := range waiting {
				all = append(all, w.datapathRuleList)
			}
			slices.SortFunc(all, byBase)
			return all
		}
		// Skip is rapid's way to say that a step doesn't apply now: another one is drawn.
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := rapid.Uint32Range(1, 23).Draw(t, "n")
				want, fits := lowestGap(busy(), n, size)
				got, err := s.take(n)
				if !fits {
					if !errors.Is(err, ErrFull) {
						t.Fatalf("take %d: got %v, %v, want ErrFull", n, got, err)
					}
					return
				}
				if err != nil || got.Base != want || got.Count != n {
					t.Fatalf("take %d: got %+v, %v, want it at %d", n, got, err, want)
				}
				held = append(held, got)
			},
			"free": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "i")
				s.free(held[i])
				held = slices.Delete(held, i, i+1)
			},
			"release": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "i")
				flips++
				port := rapid.Uint16Range(1, 3).Draw(t, "port")
				s.release(port, flips, held[i], datapathRuleList{})
				waiting = append(waiting, leftRules{port, flips, held[i]})
				held = slices.Delete(held, i, i+1)
			},
			"occupy": func(t *rapid.T) {
				l := datapathRuleList{Base: rapid.Uint32Max(size).Draw(t, "base"), Count: rapid.Uint32Range(1, 23).Draw(t, "n")}
				want := l.Base+l.Count <= size && !slices.ContainsFunc(busy(), func(b datapathRuleList) bool {
					return b.Base < l.Base+l.Count && l.Base < b.Base+b.Count
				})
				if got := s.vacant(l); got != want {
					t.Fatalf("%+v is vacant: %t, want %t", l, got, want)
				}
				if want {
					s.occupy(l)
					held = append(held, l)
				}
			},
			"settle": func(t *rapid.T) {
				port := rapid.Uint16Range(1, 3).Draw(t, "port")
				upto := rapid.Uint64Range(0, flips).Draw(t, "flip")
				s.settle(port, upto)
				waiting = slices.DeleteFunc(waiting, func(l leftRules) bool { return l.port == port && l.flip <= upto })
			},
			"settle all": func(t *rapid.T) {
				s.settleAll(flips)
				waiting = nil
			},
			"": func(t *rapid.T) {
				if got := slices.SortedFunc(slices.Values(s.taken), byBase); !slices.Equal(got, busy()) {
					t.Fatalf("taken %+v, want %+v", got, busy())
				}
			},
		})
	})
}

// lowestGap finds n free places among sorted pieces.
func lowestGap(pieces []datapathRuleList, n, size uint32) (uint32, bool) {
	taken := make([]bool, size)
	for _, p := range pieces {
		for i := range p.Count {
			taken[p.Base+i] = true
		}
	}
	run := uint32(0)
	for i, t := range taken {
		if run++; t {
			run = 0
		}
		if run == n {
			return uint32(i) + 1 - n, true
		}
	}
	return 0, false
}
