package swap

import (
	"context"
	"errors"
	"fmt"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A change is one durable step of a swap: the record, the intent and the
// transaction that makes both true.
type change struct {
	record Record
	intent *vnet.Intent // nil: as it is
	txn    store.Txn
}

// compose makes the transaction that takes d to a phase. What a phase writes is
// here and nowhere else.
func (d *driver) compose(ctx context.Context, to Phase, why string) (*change, error) {
	c := &change{record: d.rec.with(func(r *Record) {
		r.enter(to, why, d.engine.now())
		r.Writes++
	})}
	if err := d.place(ctx, c); err != nil {
		return nil, err
	}
	if err := d.objects(ctx, c); err != nil {
		return nil, err
	}
	r := &c.record
	r.brief()
	if r.Phase.Ended() {
		c.txn.Delete(store.Live + r.Port)
	}
	if d.heardOf(r) && (r.Phase == Confirmed || r.Phase.Ended() && r.Phase != Abandoned) {
		c.txn.Put(store.StatusKey(r.Host, r.Port), d.known.heard)
	}
	if c.intent != nil {
		c.txn.Unchanged(d.intent.Key, d.intent.Revision).Put(d.intent.Key, c.intent)
	}
	c.txn.Unchanged(r.key(), d.rev).Put(r.key(), r)
	return c, nil
}

// place adds what the phase says of where the port is: intent, mappings, epoch.
func (d *driver) place(ctx context.Context, c *change) error {
	r := &c.record
	switch r.Phase {
	case Switched:
		staged := d.intent.Value.Next // with the document, of which the record has the brief only
		if staged == nil {
			return fmt.Errorf("port %s has no place to switch to: %w", r.Port, store.ErrConflict)
		}
		c.intent = d.intentWith(func(i *vnet.Intent) {
			i.Current, i.Next = r.After, nil
			i.Current.Document = staged.Document
			i.Current.Undoable = transitions[Switched].otherwise(r) == Undoing
		})
		c.txn.Delete(EpochKey(r.Port))
		r.move(&c.txn, &r.Before, &r.After)
	case Committed:
		if d.intent.Value.Current.Undoable { // the host keeps what the way back needs
			c.intent = d.intentWith(func(i *vnet.Intent) { i.Current.Undoable = false })
		}
	case Undoing:
		home, err := d.engine.Objects.Undo(ctx, r, &c.txn)
		if err != nil {
			return fmt.Errorf("make the old place of port %s anew: %w", r.Port, err)
		}
		home = r.at(home, d.engine.after(r.After.Epoch), true)
		r.Back = &home
		c.intent = d.intentWith(func(i *vnet.Intent) { i.Current, i.Next = home, nil })
		r.move(&c.txn, &r.After, &home)
	case Undone:
		if r.Back == nil { // the epoch was staged, and is never given again
			c.intent = d.intentWith(func(i *vnet.Intent) { i.Next = nil })
			c.txn.Put(EpochKey(r.Port), r.After.Epoch)
		}
	case Abandoned:
		r.forget(&c.txn)
	}
	return nil
}

// objects adds what the other managers own.
func (d *driver) objects(ctx context.Context, c *change) error {
	r, o := &c.record, d.engine.Objects
	var err error
	switch r.Phase {
	case Switched:
		err = o.Switch(ctx, r, &c.txn)
		if err != nil && !again(err) {
			err = &refusal{err}
		}
	case Confirmed:
		err = o.Join(ctx, r, &c.txn)
	case Committed, Failed:
		err = o.Settle(ctx, r, &c.txn)
	case Undone, Abandoned:
		err = o.Release(ctx, r, &c.txn)
	}
	if err != nil {
		return fmt.Errorf("compose %s of port %s: %w", r.Phase, r.Port, err)
	}
	return nil
}

func (d *driver) intentWith(f func(*vnet.Intent)) *vnet.Intent {
	i := d.intent.Value
	f(&i)
	return &i
}

func (d *driver) heardOf(r *Record) bool {
	e := d.known.heard.Epoch
	return d.known.heard.Phase != 0 && e == r.After.Epoch || r.Back != nil && e == r.Back.Epoch
}

// move takes the port's mappings from one place to another. A mapping that is
// somebody else's is never replaced: at most one is live per (VNI, CA) (invariant 2).
func (r *Record) move(txn *store.Txn, from, to *vnet.Place) {
	old, now := r.mappings(from), r.mappings(to)
	for key, m := range now {
		if _, mine := old[key]; !mine {
			txn.Absent(key)
		}
		txn.Put(key, m)
	}
	for key := range old {
		if _, stays := now[key]; !stays {
			txn.Delete(key)
		}
	}
}

// forget removes all that the directory says of a port that is deleted.
func (r *Record) forget(txn *store.Txn) {
	keys := map[string]bool{EpochKey(r.Port): true}
	for _, p := range r.places() {
		for key := range r.mappings(p) {
			keys[key] = true
		}
	}
	for key := range keys {
		txn.Delete(key)
	}
}

// A refusal is the last word of a manager, or of the store: trying again would not help.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// again reports whether an error may be gone at the next try.
func again(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrConflict) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
