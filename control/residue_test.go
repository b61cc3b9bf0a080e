package control

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	pb "replug/control/controlpb"
)

// Invariant 8: after many swaps the store's keys are those from before, once the
// addresses have rested. Swaps there and back, claims, and undone ones.
func TestResidue(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Rest = 50 * time.Millisecond })
	w.furnish()
	h := w.host("h7", 7)
	w.vm("web-1", "red", "")
	// A port's last status is kept, one row, from its first swap on.
	w.swapped(&pb.StartSwapRequest{RequestId: "first", Vm: "web-1", Network: "blue"})
	w.swapped(&pb.StartSwapRequest{RequestId: "first-home", Vm: "web-1", Network: "red"})
	var before string
	w.wait("the first addresses have rested", func() error {
		if before = kinds(w.rows()); strings.Contains(before, "cas:1 ") {
			return nil
		}
		return errors.New(before)
	})
	for i, network := range []string{"blue", "red", "blue", "blue", "red", "blue", "red"} {
		h.behave(manners{})
		if i == 2 {
			h.behave(manners{refuse: "full"})
		}
		s := w.swapped(&pb.StartSwapRequest{RequestId: fmt.Sprint("s", i), Vm: "web-1", Network: network, Confirm: "lease"})
		if s.Ok != (i != 2) {
			t.Fatalf("swap %d: %v", i, s)
		}
	}
	key := requestKey("operator:olga", "s0") // which goes by itself
	if r := must(w.db.Client().Get(w.ctx, key))(t); len(r.Kvs) != 1 || r.Kvs[0].Lease == 0 {
		t.Errorf("request %s: %v, want a row with a lease", key, r.Kvs)
	}
	w.wait("the store's keys are back", func() error {
		if after := kinds(w.rows()); after != before {
			return fmt.Errorf("%s, was %s", after, before)
		}
		return nil
	})
}

// kinds counts the rows of each kind but the receipts of ended swaps, which are
// kept for a day.
func kinds(rows map[string]string) string {
	n := make(map[string]int)
	for k := range rows {
		if kind := strings.Split(k, "/")[2]; kind != "swaps" {
			n[kind]++
		}
	}
	var out strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(n)) {
		fmt.Fprintf(&out, "%s:%d ", kind, n[kind])
	}
	return out.String()
}
