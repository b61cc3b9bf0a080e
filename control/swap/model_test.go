package swap

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A model is what a swap should do, written down a second time and another way:
// no table, no store, no goroutine, one function that reacts.
type model struct {
	phase        Phase // zero: none was ever started
	claimed      bool
	confirm      vnet.Confirm
	next, back   vnet.Epoch
	inForce      vnet.Epoch // of the intent
	highest      vnet.Epoch // ever given
	heard        vnet.Status
	best         vnet.StatusPhase
	said, stop   bool
	now, due     time.Duration // due 0: never
	writes       int
	atNew, ended bool // where the port is once it has ended
}

func (m *model) start(q Request) {
	next := m.highest + 1
	*m = model{phase: Reserved, claimed: q.Claim != "", confirm: q.Confirm, next: next, inForce: m.inForce, highest: next,
		now: m.now, due: m.now + 5*time.Second, writes: 1, heard: vnet.Status{Epoch: next}}
}

func (m *model) status(s vnet.Status) {
	undoing := m.phase == Undoing || m.phase == Degraded
	if m.ended || s.Epoch != m.next && !(undoing && s.Epoch == m.back) || !s.Newer(&m.heard) {
		return
	}
	if s.Epoch > m.heard.Epoch {
		m.best = 0
	}
	m.heard = s
	if s.Phase != vnet.StatusFailed && s.Phase != vnet.StatusRefused {
		m.best = max(m.best, s.Phase)
	}
	m.react()
}

func (m *model) wait(d time.Duration) {
	end := m.now + d
	for m.due > 0 && m.due <= end && !m.ended {
		m.now = m.due
		m.react()
	}
	m.now = end
}

// crash takes from the leader what it knew in memory only.
func (m *model) crash() {
	if m.ended || m.phase == 0 {
		return
	}
	m.heard, m.best, m.said, m.stop = vnet.Status{Epoch: m.next}, 0, false, false
	switch m.phase {
	case Reserved:
		m.due = m.now + 5*time.Second
	case Switched, Leased, Published:
		m.phase, m.due = Switched, m.now+25*time.Second
	case Undoing:
		m.due = m.now + 30*time.Second
	}
}

// react goes as far as what is known allows. Staged and Confirmed are passed
// through: nothing is waited for there.
func (m *model) react() {
	failed := m.heard.Phase == vnet.StatusFailed || m.heard.Phase == vnet.StatusRefused
	late := m.due > 0 && m.now >= m.due
	off := m.heard.Power == vnet.PowerOff && m.best >= vnet.StatusFlipped
	switch at := m.heard.Epoch; m.phase {
	case Reserved:
		switch {
		case m.stop, at == m.next && failed:
			m.finish(Undone, false, 1)
		case at == m.next && m.heard.Phase == vnet.StatusPrepared:
			m.phase, m.due, m.inForce = Switched, m.now+25*time.Second, m.next
			m.writes += 2
			m.react()
		case late:
			m.finish(Undone, false, 1)
		}
	case Switched, Leased, Published:
		switch {
		case m.stop, at == m.next && failed:
			m.giveUp()
		case at == m.next && (m.best >= vnet.StatusLeased || off):
			if m.phase == Switched {
				m.phase, m.due = Leased, m.now+30*time.Second
				late = false
			}
			if m.best >= vnet.StatusPublished {
				m.phase = Published
			}
			proof := map[vnet.Confirm]bool{vnet.ConfirmLease: true, vnet.ConfirmCaller: m.said,
				vnet.ConfirmGuest: off || m.best == vnet.StatusConfirmed}
			if proof[m.confirm] {
				m.finish(Committed, true, 2)
			} else if late {
				m.giveUp()
			}
		case late:
			m.giveUp()
		}
	case Undoing, Degraded:
		switch {
		case m.phase == Undoing && at == m.back && failed:
			m.phase, m.due = Degraded, 0
			m.writes++
			m.react()
		case at == m.back && (m.best >= vnet.StatusLeased || off):
			m.finish(Undone, false, 1)
		case m.phase == Undoing && late:
			m.phase, m.due = Degraded, 0
			m.writes++
		}
	}
}

func (m *model) giveUp() {
	if m.claimed {
		m.finish(Failed, true, 1)
		return
	}
	m.back = m.next + 1
	m.phase, m.due, m.inForce, m.highest = Undoing, m.now+30*time.Second, m.back, m.back
	m.writes++
	m.react()
}

func (m *model) finish(p Phase, atNew bool, writes int) {
	m.phase, m.atNew, m.ended, m.due = p, atNew, true, 0
	m.writes += writes
}

// TestAgainstModel lets everything happen in any order, and compares after each
// step (invariants 2, 3, 10; five writes).
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failure any // rapid's way to stop is a panic, which has to leave the bubble
		synctest.Test(t, func(t *testing.T) {
			defer func() { failure = recover() }()
			playMatch(t, rt)
		})
		if failure != nil {
			panic(failure)
		}
	})
}

func playMatch(t *testing.T, rt *rapid.T) {
	mem := newMemory()
	w := newWorld(t, mem.store(), mem)
	w.lead()
	defer func() { _ = w.stop() }()
	home := w.intent().Current.Epoch
	x := &match{w: w, began: time.Now(), m: &model{inForce: home, highest: home, ended: true}, at: "red 10.0.0.10"}
	// A step that doesn't apply now skips: rapid then draws another one.
	rt.Repeat(map[string]func(*rapid.T){
		"":        x.compare,
		"start":   x.start,
		"status":  x.status,
		"status2": x.status,
		"again":   x.again,
		"advance": x.advance,
		"wait":    x.wait,
		"crash":   x.crash,
		"cancel":  x.cancel,
		"confirm": x.confirm,
		"stream":  x.stream,
		"delete":  x.delete,
	})
	x.end(rt)
}

// A match is the machine and the model side by side.
type match struct {
	w       *world
	m       *model
	at      string // where the port was before the swap, "network CA"
	to      string
	sent    []vnet.Status
	deleted bool
	began   time.Time
	highest vnet.Epoch
}

func (x *match) start(t *rapid.T) {
	if x.deleted {
		t.Skip("the port is deleted")
	}
	q := x.w.request(rapid.SampledFrom([]vnet.Moniker{"red", "blue", "pool"}).Draw(t, "to"), fmt.Sprintf("10.0.0.%d", 40+x.w.started%200))
	q.Confirm = rapid.SampledFrom([]vnet.Confirm{"lease", "guest", "caller"}).Draw(t, "confirm")
	if rapid.IntRange(0, 3).Draw(t, "claim") == 3 {
		q.Claim = "cl-7"
	}
	_, err := x.w.start(q)
	if !x.m.ended {
		if !errors.Is(err, ErrBusy) {
			t.Fatalf("a second swap: %v, want %v", err, ErrBusy)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	x.to = fmt.Sprintf("%s %s", q.Network, q.CAs[0])
	x.m.start(q)
}

// status is one of any epoch, session and sequence.
func (x *match) status(t *rapid.T) {
	s := vnet.Status{Port: testPort, Host: "h2", Power: vnet.PowerOn,
		Epoch:   x.m.next + vnet.Epoch(rapid.IntRange(-1, 2).Draw(t, "epoch")),
		Session: uint64(rapid.IntRange(3, 5).Draw(t, "session")),
		Seq:     uint64(rapid.IntRange(7, 30).Draw(t, "seq")),
		Phase:   vnet.StatusPhase(rapid.IntRange(1, 7).Draw(t, "phase"))}
	if rapid.IntRange(0, 7).Draw(t, "off") == 7 {
		s.Power = vnet.PowerOff
	}
	x.send(s)
}

// advance is what a host tells next when all goes well.
func (x *match) advance(t *rapid.T) {
	s := x.m.heard
	s.Port, s.Host, s.Power, s.Seq = testPort, "h2", vnet.PowerOn, s.Seq+1
	s.Epoch = max(x.m.inForce, x.m.next)
	s.Phase = min(max(x.m.best, vnet.StatusRefused)+1, vnet.StatusConfirmed)
	if x.m.phase == Reserved {
		s.Phase = vnet.StatusPrepared
	}
	x.send(s)
}

func (x *match) send(s vnet.Status) {
	x.sent = append(x.sent, s)
	x.w.engine.OnStatus(s)
	x.m.status(s)
	synctest.Wait() // a host does not go on before it is told to
}

func (x *match) again(t *rapid.T) {
	if len(x.sent) == 0 {
		t.Skip("nothing was sent")
	}
	s := rapid.SampledFrom(x.sent).Draw(t, "again")
	x.w.engine.OnStatus(s)
	x.m.status(s)
}

func (x *match) wait(t *rapid.T) {
	d := time.Duration(rapid.SampledFrom([]int{30, 1700, 6100, 14900, 31300, 46700}).Draw(t, "ms")) * time.Millisecond
	pass(d)
	x.m.wait(d)
}

func (x *match) crash(t *rapid.T) {
	synctest.Wait()
	if err := x.w.stop(); err != nil {
		t.Fatal(err)
	}
	x.w.lead()
	x.m.crash()
}

func (x *match) cancel(t *rapid.T) {
	if x.m.phase == 0 {
		t.Skip("no swap")
	}
	r, err := x.w.engine.Cancel(context.Background(), x.w.id, "cancelled by kim")
	if !x.m.ended {
		x.m.stop = true
		x.m.react()
	}
	if errors.Is(err, ErrEnded) != (r.Phase == Committed) {
		t.Fatalf("cancel of a swap that is %s: %v", r.Phase, err)
	}
}

func (x *match) confirm(t *rapid.T) {
	if x.m.phase == 0 {
		t.Skip("no swap")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Microsecond)
	defer cancel()
	_, err := x.w.engine.Confirm(ctx, x.w.id)
	if x.m.confirm != vnet.ConfirmCaller {
		if !errors.Is(err, ErrNotAsked) {
			t.Fatalf("confirm: %v, want %v", err, ErrNotAsked)
		}
		return
	}
	if !x.m.ended {
		x.m.said = true
		x.m.react()
	}
	x.m.wait(time.Since(x.began) - x.m.now) // what it waited
	if ok := x.m.phase == Committed; ok != (err == nil) {
		t.Fatalf("confirm of a swap that is %s: %v", x.m.phase, err)
	}
}

func (x *match) stream(*rapid.T) {
	x.w.online = !x.w.online
	x.w.engine.OnHost("h2", x.w.online)
}

func (x *match) delete(t *rapid.T) {
	if x.deleted || rapid.IntRange(0, 9).Draw(t, "delete") != 9 {
		t.Skip("not now")
	}
	if x.m.ended {
		t.Skip("other managers do that")
	}
	synctest.Wait()
	if err := x.w.deletePort(x.w.engine); err != nil {
		t.Fatal(err)
	}
	x.deleted = true
	x.m.finish(Abandoned, false, 1)
}

// compare holds the machine to the model, and the store to the invariants.
func (x *match) compare(t *rapid.T) {
	synctest.Wait()
	if err := x.w.check(); err != nil {
		t.Fatal(err)
	}
	in := x.w.intent()
	if !x.deleted && in.Current.Epoch < x.highest {
		t.Fatalf("invariant 2: epoch %s after %s", in.Current.Epoch, x.highest)
	}
	x.highest = in.Current.Epoch
	if x.m.phase == 0 {
		return
	}
	r := x.w.record()
	if r.Phase != x.m.phase || r.Writes != x.m.writes {
		t.Fatalf("swap is %s after %d writes (%s), the model %s after %d", r.Phase, r.Writes, r.Error, x.m.phase, x.m.writes)
	}
	if r.Phase == Committed && r.Writes != 5 {
		t.Fatalf("committed with %d writes", r.Writes)
	}
	if x.deleted {
		return
	}
	if in.Current.Epoch != x.m.inForce {
		t.Fatalf("intent %s, want epoch %s", &in.Current, x.m.inForce)
	}
	if x.m.ended {
		if x.m.atNew {
			x.at, x.to = x.to, ""
			x.m.atNew = false
		}
		if got := fmt.Sprintf("%s %s", in.Current.Network, in.Current.Addrs[0].CA); got != x.at {
			t.Fatalf("ended %s at %s, want %s", r.Phase, got, x.at)
		}
		if in.Next != nil {
			t.Fatalf("ended with %s staged", in.Next)
		}
	}
	x.checkAddresses(t)
}

// checkAddresses: each mapping's address is the port's (invariant 10).
func (x *match) checkAddresses(t *rapid.T) {
	for _, m := range listed[vnet.Mapping](x.w, store.Mappings) {
		row, err := store.Get[caRow](context.Background(), x.w.eyes, store.CAKey(m.VNI, m.CA))
		if err != nil || row.Value.Port != m.Port || row.Value.As == "resting" {
			t.Fatalf("invariant 10: %s is mapped to %s, and the row says %+v (%v)", m.CA, m.Port, row.Value, err)
		}
	}
}

// end heals everything: now each swap must end (invariant 3).
func (x *match) end(t *rapid.T) {
	x.w.online = true
	x.w.engine.OnHost("h2", true)
	for range 3 {
		synctest.Wait()
		x.advance(t)
		x.advance(t)
		x.advance(t)
		pass(31 * time.Second)
		x.m.wait(31 * time.Second)
	}
	x.compare(t)
	if !x.m.ended && x.m.phase != 0 {
		t.Fatalf("all is healed and the swap is %s", x.m.phase)
	}
	if n := len(listed[string](x.w, store.Live)); n != 0 {
		t.Fatalf("%d live locks are left", n)
	}
}
