package swap

import (
	"context"
	"errors"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Errors of this package.
var (
	ErrBusy     = errors.New("another swap of the port is running")
	ErrEnded    = errors.New("the swap has ended")
	ErrNotAsked = errors.New("the swap does not wait for its caller")
	ErrRequest  = errors.New("the request id was used for another request")
	ErrInvalid  = errors.New("not a swap")
	ErrStopped  = errors.New("this server does not drive swaps: it is not the leader")
)

// Objects is what other managers own and a swap changes. Each call adds its
// conditions and writes to txn and changes nothing itself. It is called again when
// the transaction met a conflict, so it reads its rows anew each time, and asks in
// txn that they are unchanged. It must not write the keys that the engine writes:
// the swap's record, live lock and request, the port's intent, status and epoch,
// and the mappings of the swap's places.
//
// An error that wraps [store.ErrUnavailable] or [store.ErrConflict] is tried again.
// Another error of Switch gives the swap up; of the rest, it is tried again with
// back-off, under an alarm.
type Objects interface {
	// Reserve checks that the swap is possible and holds what it needs. It fills
	// the record's Tenant, Port, VM, Host, MAC, PA and After, without an epoch;
	// it may fill Confirm. Its error goes to who called Start.
	Reserve(ctx context.Context, q Request, txn *store.Txn) (*Record, error)
	// Switch adds what changes with the flip, and notes in r what Release must put
	// back if the port comes home.
	Switch(ctx context.Context, r *Record, txn *store.Txn) error
	// Join adds what waits until the guest is proven to be at its new place.
	Join(ctx context.Context, r *Record, txn *store.Txn) error
	// Undo returns the old place, made anew from the objects as they are now,
	// without an epoch, and adds what the new place loses at once.
	Undo(ctx context.Context, r *Record, txn *store.Txn) (vnet.Place, error)
	// Settle makes After the port's place for good and lets the old one go, its
	// CA resting. The phase is Committed, or Failed: then the VM is to be
	// destroyed and its claim served anew, which must be written here too.
	Settle(ctx context.Context, r *Record, txn *store.Txn) error
	// Release lets the new place go. When Back is set the port was there, so
	// the new CA rests, and unless it is Abandoned the guest is home: what it left
	// is put back. Else the guest was never touched.
	Release(ctx context.Context, r *Record, txn *store.Txn) error
}

// An Operation is the row of a request id: what it led to.
type Operation struct {
	Kind   string `json:"kind"`   // [Kind]
	ID     string `json:"id"`     // of the swap
	Digest string `json:"digest"` // of the request, so that an id used for another one is noticed
}

// Kind is the kind of an [Operation] that is a swap.
const Kind = "swap"
