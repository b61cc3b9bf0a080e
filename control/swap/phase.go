package swap

import (
	"fmt"
	"slices"
	"time"
)

// A Phase is how far a swap is. Stored as its word; the numbers are for metrics:
// append, never renumber.
type Phase uint8

// The phases. What is true once each is reached is in the table below.
const (
	Reserved  Phase = 1
	Staged    Phase = 2
	Switched  Phase = 3
	Leased    Phase = 4
	Published Phase = 5
	Confirmed Phase = 6
	Committed Phase = 7
	Undoing   Phase = 8
	Undone    Phase = 9
	Degraded  Phase = 10
	Failed    Phase = 11
	Abandoned Phase = 12
)

// A transition says where a swap goes from a phase.
type transition struct {
	word   string
	next   []Phase                     // a success: the first one that is proven; none: the swap has ended
	undo   Phase                       // given up, by a refusal, a deadline or a call; zero: it is tried on
	claim  Phase                       // the same, for a claimed VM
	budget func(Budgets) time.Duration // begins when the phase is reached; nil: the running one goes on
	write  bool                        // the phase is reached by a durable write; else it is known in memory only
}

// transitions is the whole machine.
//
// Until Switched nothing has changed for the guest, and giving up is only letting
// go of what was held. Until Committed the old address stays held, so there is
// somewhere to go back to. A host leads Switched to Confirmed alone, since the
// intent holds the document: once Switched, nobody can know that a claimed VM's
// guest has not read its owner's users and keys, so it fails instead of going back.
// Once Undoing, a swap never goes forward again, and it does not end before the
// guest is seen at home. Abandoned is reached from every phase that has not ended,
// by the transaction that deletes the port.
var transitions = map[Phase]transition{
	Reserved:  {"reserved", []Phase{Staged}, Undone, Undone, stageBudget, true},
	Staged:    {"staged", []Phase{Switched}, Undone, Undone, nil, true},
	Switched:  {"switched", []Phase{Leased}, Undoing, Failed, leaseBudget, true},
	Leased:    {"leased", []Phase{Confirmed, Published}, Undoing, Failed, confirmBudget, false},
	Published: {"published", []Phase{Confirmed}, Undoing, Failed, nil, false},
	Confirmed: {"confirmed", []Phase{Committed}, Undoing, Failed, noBudget, true},
	Undoing:   {"undoing", []Phase{Undone}, Degraded, Degraded, undoBudget, true},
	Degraded:  {"degraded", []Phase{Undone}, 0, 0, noBudget, true},

	Committed: {word: "committed", write: true},
	Undone:    {word: "undone", write: true},
	Failed:    {word: "failed", write: true},
	Abandoned: {word: "abandoned", write: true},
}

func stageBudget(b Budgets) time.Duration   { return b.Stage }
func leaseBudget(b Budgets) time.Duration   { return b.Lease }
func confirmBudget(b Budgets) time.Duration { return b.Confirm }
func undoBudget(b Budgets) time.Duration    { return b.Undo }
func noBudget(Budgets) time.Duration        { return 0 }

// otherwise is where a swap goes from a phase if it is given up.
func (t transition) otherwise(r *Record) Phase {
	if r.Claim != "" {
		return t.claim
	}
	return t.undo
}

// Ended reports whether a swap stays in p for ever.
func (p Phase) Ended() bool { return len(transitions[p].next) == 0 }

// leadsTo reports whether the table has a way from p to q in one step.
func (p Phase) leadsTo(q Phase) bool {
	t := transitions[p]
	if p.Ended() {
		return false
	}
	return q == Abandoned || slices.Contains(t.next, q) || q != 0 && (q == t.undo || q == t.claim)
}

// atHost reports whether the host has been told to go, and has not yet been heard
// to have arrived for good.
func (p Phase) atHost() bool {
	return p >= Switched && p <= Published || p == Undoing || p == Degraded
}

// String returns the phase's word in logs, rows and the API.
func (p Phase) String() string {
	if t, ok := transitions[p]; ok {
		return t.word
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// ParsePhase reads what [Phase.String] prints.
func ParsePhase(s string) (Phase, error) {
	for p, t := range transitions {
		if t.word == s {
			return p, nil
		}
	}
	return 0, fmt.Errorf("%q is not a phase of a swap", s)
}

// MarshalText prints p as [Phase.String] does.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what [ParsePhase] reads.
func (p *Phase) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePhase(string(b))
	return err
}
