package swap

import (
	"fmt"
	"slices"

	"replug/directory/vnet"
)

// facts are what a driver knows beside the record.
type facts struct {
	heard   vnet.Status      // the newest status of the port, of the epochs of the swap
	best    vnet.StatusPhase // the furthest that the host got in heard's epoch: once seen is seen
	said    bool             // the caller has confirmed
	stop    string           // why it is to be given up: a call, or a manager's refusal
	gone    bool             // the port's intent is gone or says so
	late    bool             // the budget of the phase is spent
	online  bool             // the host has a stream
	stale   bool             // somebody else has written the record
	trouble string           // why the last write failed, if it did
}

// hear takes over a status if it is newer than all before and of an epoch of the swap.
func (f *facts) hear(s vnet.Status) bool {
	if !s.Newer(&f.heard) {
		return false
	}
	if s.Epoch != f.heard.Epoch {
		f.best = 0
	}
	f.heard = s
	switch s.Phase {
	case vnet.StatusPrepared, vnet.StatusFlipped, vnet.StatusLeased, vnet.StatusPublished, vnet.StatusConfirmed:
		f.best = max(f.best, s.Phase)
	}
	return true
}

// reached reports whether the host got as far as p in epoch e.
func (f *facts) reached(e vnet.Epoch, p vnet.StatusPhase) bool {
	return f.heard.Epoch == e && f.best >= p
}

// stopped reports whether the port was flipped to e under a machine that is off:
// nobody is there to prove anything, and whoever boots leases in the right network.
func (f *facts) stopped(e vnet.Epoch) bool {
	off := f.heard.Power == vnet.PowerOff || f.heard.Power == vnet.PowerAbsent
	return off && f.reached(e, vnet.StatusFlipped)
}

// reset reports whether the guest was reset on its way in heard's epoch.
func (f *facts) reset() bool {
	return slices.ContainsFunc(f.heard.Hops, func(h vnet.Hop) bool { return h.Name == vnet.HopReset })
}

// seen reports whether the guest is proven to be at epoch e.
func (f *facts) seen(e vnet.Epoch) bool {
	return f.reached(e, vnet.StatusLeased) || f.stopped(e)
}

// decide returns the phase to go to now, and why if that means giving up. It
// returns the record's phase when there is only waiting. It asks nobody and
// changes nothing.
func decide(r *Record, f facts) (Phase, string) {
	if r.Phase.Ended() {
		return r.Phase, ""
	}
	if f.gone {
		return Abandoned, "the port was deleted in mid-swap"
	}
	t := transitions[r.Phase]
	undo := t.otherwise(r)
	if why := refused(r, f); why != "" && undo != 0 {
		return undo, why
	}
	for _, p := range t.next {
		if proven(p, r, f) {
			return p, ""
		}
	}
	if f.late && undo != 0 {
		return undo, overdue(r, f)
	}
	return r.Phase, ""
}

// proven reports whether what the table says of a phase is true now.
func proven(p Phase, r *Record, f facts) bool {
	switch p {
	case Staged:
		return f.heard.Epoch == r.After.Epoch && f.heard.Phase == vnet.StatusPrepared
	case Switched:
		return !f.late // it only costs a write: more of them in vain must end, too
	case Leased:
		return f.seen(r.After.Epoch)
	case Published:
		return f.reached(r.After.Epoch, vnet.StatusPublished)
	case Confirmed:
		return confirmed(r, f)
	case Committed:
		return true
	case Undone:
		return r.Back != nil && f.seen(r.Back.Epoch)
	}
	return false
}

func confirmed(r *Record, f facts) bool {
	switch r.Confirm {
	case vnet.ConfirmCaller:
		return f.said
	case vnet.ConfirmGuest:
		return f.reached(r.After.Epoch, vnet.StatusConfirmed) || f.stopped(r.After.Epoch)
	default:
		return true // that it is leased was the proof
	}
}

// refused says why a swap can't go on although there is time, or "".
func refused(r *Record, f facts) string {
	here := f.heard.Epoch == r.After.Epoch
	if r.Phase == Undoing {
		here = r.Back != nil && f.heard.Epoch == r.Back.Epoch
	} else if f.stop != "" {
		return f.stop
	}
	if r.Phase == Confirmed || r.Phase == Degraded || !here {
		return ""
	}
	switch s := f.heard; {
	case s.Phase == vnet.StatusRefused || s.Phase == vnet.StatusFailed:
		return fmt.Sprintf("host %s: %s", r.Host, orElse(s.Error, s.Phase.String()))
	case r.Phase != Undoing && r.Confirm == vnet.ConfirmGuest && guestFailed(&s):
		return "the guest could not apply its configuration: " + orElse(s.Guest.Error, "it gave no reason")
	}
	return ""
}

// guestFailed reports whether the guest said of this epoch's final document that
// it failed. A partial report never speaks of a final document (invariant 11).
func guestFailed(s *vnet.Status) bool {
	return s.Guest != nil && s.Guest.Epoch == s.Epoch && s.Guest.Kind == vnet.ReportFinal && !s.Guest.OK
}

// overdue says what was waited for in vain.
func overdue(r *Record, f facts) string {
	b := r.Budgets
	boot := ""
	if f.reset() {
		boot = fmt.Sprintf(", nor within %s of its reset", b.Boot)
	}
	switch r.Phase {
	case Reserved:
		if !f.online {
			return fmt.Sprintf("host %s is not connected and did not stage the swap within %s: nothing has changed; start its agent and swap again", r.Host, b.Stage)
		}
		return fmt.Sprintf("host %s did not stage the swap within %s: nothing has changed; see its log", r.Host, b.Stage)
	case Staged:
		return fmt.Sprintf("the switch could not be written within %s (%s): nothing has changed; swap again", b.Stage, orElse(f.trouble, "too late"))
	case Switched:
		if !f.online {
			return fmt.Sprintf("host %s was cut off and did not report the guest at %s within %s%s", r.Host, &r.After, b.Lease, boot)
		}
		return fmt.Sprintf("the guest was not seen at %s within %s%s", &r.After, b.Lease, boot)
	case Leased, Published:
		if r.Confirm == vnet.ConfirmCaller {
			return fmt.Sprintf("the caller did not confirm within %s%s", b.Confirm, boot)
		}
		return fmt.Sprintf("the guest did not report success within %s%s", b.Confirm, boot)
	default:
		return fmt.Sprintf("the guest was not seen at its old address within %s%s", b.Undo, boot)
	}
}

// alarm says what an operator should look at now, or "". Neither state ends by
// itself unless somebody or something outside is repaired.
func alarm(r *Record, f facts) string {
	switch {
	case r.Phase.Ended():
		return ""
	case r.Phase.atHost() && !f.online:
		return fmt.Sprintf("host %s is cut off: whether it has flipped can't be known; it heals by epoch once it is back", r.Host)
	case r.Phase == Degraded:
		return fmt.Sprintf("the guest is not seen at its old address %s; host %s goes on trying", r.Back, r.Host)
	case f.trouble != "":
		return "the swap can't be written: " + f.trouble
	}
	return ""
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
