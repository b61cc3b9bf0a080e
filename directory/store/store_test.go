package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"replug/directory/store"
)

// What is too much for one transaction will be so the next time, too: the error
// doesn't read as if the store were away.
func TestTooLarge(t *testing.T) {
	_, s := openStore(t)
	many, large := &store.Txn{}, (&store.Txn{}).Put("/replug/test/large", strings.Repeat("x", 2<<20))
	for i := range 1100 {
		many.Put(fmt.Sprint("/replug/test/", i), i)
	}
	for name, txn := range map[string]*store.Txn{"writes": many, "bytes": large} {
		_, err := s.Commit(t.Context(), txn)
		if !errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("too many %s: %v", name, err)
		} else if len(err.Error()) > 500 || !strings.Contains(err.Error(), "--max-txn-ops 1024") {
			t.Errorf("too many %s: the error is not for people: %v", name, err)
		}
	}
	if _, err := s.Commit(t.Context(), (&store.Txn{}).Put("/replug/test/0", 7)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
