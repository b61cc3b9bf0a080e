package swap

import (
	"testing"

	"replug/directory/vnet"
)

// Every way of the table, by the facts that lead there; and facts that must not.
func TestTable(t *testing.T) {
	before, next := vnet.NewEpoch(2, 6), vnet.NewEpoch(2, 7)
	back := vnet.NewEpoch(2, 8)
	heard := func(e vnet.Epoch, p vnet.StatusPhase) facts {
		f := facts{online: true}
		f.hear(vnet.Status{Epoch: e, Session: 3, Seq: 9, Phase: p, Power: vnet.PowerOn})
		return f
	}
	late := func(f facts) facts { f.late = true; return f }
	stop := func(f facts) facts { f.stop = "cancelled by kim"; return f }
	said := func(f facts) facts { f.said = true; return f }
	off := func(f facts) facts { f.heard.Power = vnet.PowerOff; return f }
	gone := func(f facts) facts { f.gone = true; return f }
	none := facts{online: true}
	const lease, guest, caller = vnet.ConfirmLease, vnet.ConfirmGuest, vnet.ConfirmCaller

	rows := []struct {
		name    string
		from    Phase
		confirm vnet.Confirm
		claim   bool
		facts   facts
		to      Phase
	}{
		{"nothing heard", Reserved, guest, false, none, Reserved},
		{"prepared", Reserved, guest, false, heard(next, 1), Staged},
		{"prepared, but of the old epoch", Reserved, guest, false, heard(before, 1), Reserved},
		{"prepared, but of a higher epoch", Reserved, guest, false, heard(back, 1), Reserved},
		{"refused", Reserved, guest, false, heard(next, 2), Undone},
		{"refused, claim", Reserved, guest, true, heard(next, 2), Undone},
		{"not staged in time", Reserved, guest, false, late(none), Undone},
		{"prepared in the last moment", Reserved, guest, false, late(heard(next, 1)), Staged},
		{"cancelled before the host answers", Reserved, guest, false, stop(none), Undone},
		{"cancelled and prepared", Reserved, guest, false, stop(heard(next, 1)), Undone},
		{"leased before it was told to go", Reserved, guest, false, heard(next, 4), Reserved},
		{"deleted", Reserved, guest, false, gone(none), Abandoned},

		{"goes on by itself", Staged, guest, false, none, Switched},
		{"could not be written in time", Staged, guest, false, late(none), Undone},
		{"could not be written in time, claim", Staged, guest, true, late(none), Undone},
		{"cancelled", Staged, guest, false, stop(none), Undone},
		{"deleted", Staged, guest, false, gone(none), Abandoned},

		{"prepared is not flipped", Switched, lease, false, heard(next, 1), Switched},
		{"flipped is not seen", Switched, lease, false, heard(next, 3), Switched},
		{"seen", Switched, lease, false, heard(next, 4), Leased},
		{"published means it was seen", Switched, lease, false, heard(next, 5), Leased},
		{"seen, but in the old epoch", Switched, lease, false, heard(before, 6), Switched},
		{"flipped under a VM that is off", Switched, guest, false, off(heard(next, 3)), Leased},
		{"not flipped under a VM that is off", Switched, guest, false, off(heard(next, 1)), Switched},
		{"ladder ended", Switched, lease, false, heard(next, 7), Undoing},
		{"ladder ended, claim", Switched, guest, true, heard(next, 7), Failed},
		{"not seen in time", Switched, lease, false, late(heard(next, 3)), Undoing},
		{"not seen in time, claim", Switched, lease, true, late(none), Failed},
		{"cancelled", Switched, lease, false, stop(none), Undoing},
		{"caller says so, nobody was seen", Switched, caller, false, said(none), Switched},
		{"deleted", Switched, lease, false, gone(none), Abandoned},

		{"to be seen was the proof", Leased, lease, false, heard(next, 4), Confirmed},
		{"guest has not read yet", Leased, guest, false, heard(next, 4), Leased},
		{"guest may read", Leased, guest, false, heard(next, 5), Published},
		{"guest reported", Leased, guest, false, heard(next, 6), Confirmed},
		{"guest is off", Leased, guest, false, off(heard(next, 3)), Confirmed},
		{"caller said so", Leased, caller, false, said(heard(next, 4)), Confirmed},
		{"guest reported to a swap that waits for its caller", Leased, caller, false, heard(next, 6), Published},
		{"not confirmed in time", Leased, guest, false, late(heard(next, 4)), Undoing},
		{"not confirmed in time, claim", Leased, guest, true, late(heard(next, 4)), Failed},
		{"deleted", Leased, guest, false, gone(heard(next, 4)), Abandoned},

		{"waits for the guest", Published, guest, false, heard(next, 5), Published},
		{"guest reported", Published, guest, false, heard(next, 6), Confirmed},
		{"confirmed in the last moment", Published, guest, false, late(heard(next, 6)), Confirmed},
		{"not confirmed in time", Published, guest, false, late(heard(next, 5)), Undoing},
		{"not confirmed in time, claim", Published, guest, true, late(heard(next, 5)), Failed},
		{"cancelled, claim", Published, guest, true, stop(heard(next, 5)), Failed},
		{"deleted", Published, guest, true, gone(heard(next, 5)), Abandoned},

		{"the proof stands", Confirmed, guest, false, heard(next, 7), Committed},
		{"commit has no deadline", Confirmed, guest, false, late(none), Committed},
		{"cancelled before the commit", Confirmed, guest, false, stop(none), Undoing},
		{"cancelled before the commit, claim", Confirmed, guest, true, stop(none), Failed},
		{"deleted", Confirmed, guest, false, gone(none), Abandoned},

		{"seen where it should not be any more", Undoing, lease, false, heard(next, 6), Undoing},
		{"cancel says nothing new", Undoing, lease, false, stop(none), Undoing},
		{"flipped back is not seen", Undoing, lease, false, heard(back, 3), Undoing},
		{"at home", Undoing, lease, false, heard(back, 4), Undone},
		{"at home, VM off", Undoing, lease, false, off(heard(back, 3)), Undone},
		{"ladder ended", Undoing, lease, false, heard(back, 7), Degraded},
		{"not at home in time", Undoing, lease, false, late(heard(back, 3)), Degraded},
		{"not at home in time, claim", Undoing, lease, true, late(heard(back, 3)), Degraded},
		{"deleted", Undoing, lease, false, gone(none), Abandoned},

		{"goes on for ever", Degraded, lease, false, late(stop(heard(back, 7))), Degraded},
		{"at home at last", Degraded, lease, false, heard(back, 5), Undone},
		{"deleted", Degraded, lease, false, gone(none), Abandoned},
	}
	for _, p := range []Phase{Committed, Undone, Failed, Abandoned} {
		rows = append(rows, struct {
			name    string
			from    Phase
			confirm vnet.Confirm
			claim   bool
			facts   facts
			to      Phase
		}{"for ever", p, guest, false, gone(late(stop(said(heard(back, 6))))), p})
	}

	walked := map[[2]Phase]bool{}
	for _, c := range rows {
		r := Record{Phase: c.from, Host: "h2", Confirm: c.confirm,
			Before: vnet.Place{Epoch: before}, After: vnet.Place{Epoch: next}}
		if c.from == Undoing || c.from == Degraded {
			r.Back = &vnet.Place{Epoch: back}
		}
		if c.claim {
			r.Claim = "cl-7"
		}
		to, why := decide(&r, c.facts)
		if to != c.to {
			t.Errorf("%s, %s: goes to %s (%s), want %s", c.from, c.name, to, why, c.to)
		}
		if to != c.from && !c.from.leadsTo(to) {
			t.Errorf("%s, %s: %s is not in the table", c.from, c.name, to)
		}
		if gaveUp := to == Undone && c.from < Switched || to == Undoing || to == Degraded || to == Failed || to == Abandoned; to != c.from && gaveUp == (why == "") {
			t.Errorf("%s, %s: to %s because %q", c.from, c.name, to, why)
		}
		walked[[2]Phase{c.from, to}] = true
	}
	for p, row := range transitions {
		if q, err := ParsePhase(p.String()); q != p || err != nil {
			t.Errorf("phase %d is called %s, which is %d (%v)", p, p, q, err)
		}
		for q := range transitions {
			if p.leadsTo(q) && !walked[[2]Phase{p, q}] {
				t.Errorf("no case walks from %s to %s", p, q)
			}
		}
		if !row.write && row.budget == nil && p != Published {
			t.Errorf("%s has neither a write nor a budget", p)
		}
	}
}

// Late and duplicate statuses, and those of an older session or epoch, change nothing.
func TestHearNewestOnly(t *testing.T) {
	e := vnet.NewEpoch(2, 7)
	var f facts
	f.hear(vnet.Status{Epoch: e, Session: 3, Seq: 9, Phase: vnet.StatusLeased})
	for _, c := range []struct {
		name  string
		s     vnet.Status
		fresh bool
		best  vnet.StatusPhase
	}{
		{"duplicate", vnet.Status{Epoch: e, Session: 3, Seq: 9, Phase: vnet.StatusFailed}, false, vnet.StatusLeased},
		{"late", vnet.Status{Epoch: e, Session: 3, Seq: 8, Phase: vnet.StatusFailed}, false, vnet.StatusLeased},
		{"older session", vnet.Status{Epoch: e, Session: 2, Seq: 70, Phase: vnet.StatusFailed}, false, vnet.StatusLeased},
		{"older epoch", vnet.Status{Epoch: e - 1, Session: 5, Seq: 70, Phase: vnet.StatusConfirmed}, false, vnet.StatusLeased},
		{"restarted agent that has only read its row back", vnet.Status{Epoch: e, Session: 4, Seq: 1, Phase: vnet.StatusFlipped}, true, vnet.StatusLeased},
		{"failure is no progress", vnet.Status{Epoch: e, Session: 4, Seq: 2, Phase: vnet.StatusFailed}, true, vnet.StatusLeased},
		{"higher epoch begins anew", vnet.Status{Epoch: e + 1, Session: 4, Seq: 3, Phase: vnet.StatusFlipped}, true, vnet.StatusFlipped},
	} {
		if fresh := f.hear(c.s); fresh != c.fresh || f.best != c.best {
			t.Errorf("%s: taken %v, best %s; want %v, %s", c.name, fresh, f.best, c.fresh, c.best)
		}
	}
}
