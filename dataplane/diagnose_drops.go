package dataplane

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// drops tells which frames are refused.
func (d *diagnosis) drops(ctx context.Context, q ask.Drops, say func(any) error) error {
	t := newTally(q, d)
	for _, name := range q.Ports {
		switch r, err := d.find(name); {
		case err == nil:
			t.only[r.id] = r
		case q.Some:
			t.missing = append(t.missing, name)
		default:
			return err
		}
	}
	look, err := d.copies.open(0, t.wants)
	if err != nil {
		return err
	}
	defer d.copies.close(look)
	tick := time.NewTicker(max(q.Every, 100*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case c := <-look.frames:
			t.add(c)
			continue
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		r, err := t.report(d.copies.lost(look))
		if err != nil {
			return err
		}
		if q.Follow && len(r.Rows) == 0 && r.Lost == 0 {
			continue
		}
		if err := say(r); err != nil || !q.Follow {
			return err
		}
	}
}

// A tally counts refused frames that are alike.
type tally struct {
	*diagnosis
	ask.Drops
	only    map[vnet.PortID]resident
	missing []string // ports that aren't in force
	rows    map[alike]uint64
	over    uint64 // frames of kinds that had no room
	told    uint64 // losses that were told before
}

type alike struct {
	port   vnet.PortID
	reason string
	tuple  string
}

func newTally(q ask.Drops, d *diagnosis) *tally {
	return &tally{diagnosis: d, Drops: q, only: map[vnet.PortID]resident{}, rows: map[alike]uint64{}}
}

// all reports whether the question is about all that the host refuses.
func (t *tally) all() bool { return len(t.Ports) == 0 }

func (t *tally) wants(c *Copy) bool {
	if c.Point != ask.PointDrop {
		return false
	}
	if t.all() {
		return c.Sender == 0 // its sender's copy counts
	}
	_, named := t.only[c.Port]
	_, sender := t.only[c.Sender]
	return named && !sender
}

// add counts one. A scan of many addresses must not grow without bound.
func (t *tally) add(c Copy) {
	const most = 2000
	k := alike{c.Port, c.Drop, between(c.Frame, t.all())}
	if _, known := t.rows[k]; !known && len(t.rows) >= most {
		t.over++
		return
	}
	t.rows[k]++
}

// between says between whom a frame was: inside of VXLAN, the inner one. All:
// with the underlay's addresses.
func between(b []byte, all bool) string {
	inner, vni, ok := frame.Inner(b)
	if !ok {
		return words(b)
	}
	if !all {
		return words(inner)
	}
	outer, _ := frame.TupleOf(b)
	return fmt.Sprintf("%s in VNI %d, %s > %s", words(inner), vni, outer.Src.Addr(), outer.Dst.Addr())
}

// words is the tuple, or of what is no IP the last header.
func words(b []byte) string {
	if tuple, ok := frame.TupleOf(b); ok {
		return tuple.String()
	}
	lines := frame.Words(b)
	return strings.Join(lines[max(0, len(lines)-2):], ", ")
}

// report is what was counted since the last one, most first.
func (t *tally) report(lost uint64) (ask.Refused, error) {
	for _, r := range t.only {
		if err := t.same(r); err != nil {
			return ask.Refused{}, err
		}
	}
	for _, name := range t.missing {
		if _, err := t.find(name); err == nil && t.Follow {
			return ask.Refused{}, fmt.Errorf("port %q has come into force: ask again", name)
		}
	}
	r := ask.Refused{Lost: lost - t.told + t.over}
	t.told, t.over = lost, 0
	for k, n := range t.rows {
		r.Rows = append(r.Rows, ask.DropRow{Reason: k.reason, Why: t.witness.DropText(k.reason), Port: t.ref(k.port), Tuple: k.tuple, Count: n})
	}
	clear(t.rows)
	slices.SortFunc(r.Rows, func(a, b ask.DropRow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Tuple, b.Tuple))
	})
	r.Rows, r.Lost = bounded(r.Rows, r.Lost)
	if !t.all() {
		return r, nil // the host's totals are for those who may see all of it
	}
	totals, err := t.witness.DropTotals()
	for reason, n := range totals {
		if n > 0 {
			r.Totals = append(r.Totals, ask.Total{Reason: reason, Count: n})
		}
	}
	slices.SortFunc(r.Totals, func(a, b ask.Total) int { return cmp.Compare(a.Reason, b.Reason) })
	return r, err
}

// bounded keeps an answer small enough for the stream.
func bounded(rows []ask.DropRow, lost uint64) ([]ask.DropRow, uint64) {
	const most = 200
	for ; len(rows) > most; rows = rows[:len(rows)-1] {
		lost += rows[len(rows)-1].Count
	}
	return rows, lost
}
