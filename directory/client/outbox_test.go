package client

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"replug/directory/vnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func statusOf(port string, epoch uint64, phase vnet.StatusPhase) vnet.Status {
	return vnet.Status{Port: port, Epoch: vnet.NewEpoch(3, epoch), Phase: phase}
}

func waiting(o *outbox, seq uint64) []string {
	var out []string
	all, _ := o.after(seq)
	for _, s := range all {
		out = append(out, fmt.Sprintf("%s %s %s seq %d", s.Port, s.Epoch, s.Phase, s.Seq))
	}
	return out
}

func TestOutbox(t *testing.T) {
	o := newOutbox(time.Hour)
	_, more := o.after(0)
	o.put(statusOf("p23", 5, vnet.StatusLeased))
	select {
	case <-more:
	default:
		t.Error("nobody was told that there is more")
	}
	o.put(statusOf("p23", 6, vnet.StatusPrepared))
	o.put(statusOf("p45", 7, vnet.StatusFlipped))
	o.put(statusOf("p23", 5, vnet.StatusLeased)) // replaces the first
	want := []string{"p23 3.6 prepared seq 2", "p45 3.7 flipped seq 3", "p23 3.5 leased seq 4"}
	if got := waiting(o, 0); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := waiting(o, 3); !slices.Equal(got, want[2:]) {
		t.Errorf("after 3: got %q, want %q", got, want[2:])
	}
	o.acked(3)
	if got := waiting(o, 0); !slices.Equal(got, want) {
		t.Errorf("young and taken over: got %q, want %q, since the leader may die with it", got, want)
	}

	// The last word on a port is what is in force, not what is staged.
	var digest []string
	for _, d := range o.digest() {
		digest = append(digest, fmt.Sprintf("%s %s %d", d.Port, vnet.Epoch(d.Epoch), d.Phase))
	}
	if want := []string{"p23 3.5 4", "p45 3.7 3"}; !slices.Equal(digest, want) {
		t.Errorf("digest %q, want %q", digest, want)
	}

	// Ten minutes later, what was taken over and is no port's last word is dropped.
	for _, e := range o.entries {
		e.at = e.at.Add(-2 * time.Hour)
	}
	if got, want := waiting(o, 0), []string{"p45 3.7 flipped seq 3", "p23 3.5 leased seq 4"}; !slices.Equal(got, want) {
		t.Errorf("later: got %q, want %q", got, want)
	}
	o.forget("p45")
	if got, want := waiting(o, 0), []string{"p23 3.5 leased seq 4"}; !slices.Equal(got, want) {
		t.Errorf("after the port is gone: got %q, want %q", got, want)
	}
}

// Invariant 8: reporting for ever does not grow the outbox.
func TestOutboxIsBounded(t *testing.T) {
	o := newOutbox(time.Nanosecond)
	for i := range 20_000 {
		o.put(statusOf(fmt.Sprintf("p%d", i%50), uint64(5+i/50), vnet.StatusLeased))
		o.acked(uint64(i))
	}
	if n := len(o.entries); n > 600 {
		t.Errorf("%d entries for 50 ports", n)
	}
	epochs := 0
	for _, e := range o.newest {
		epochs += len(e)
	}
	if epochs > 600 {
		t.Errorf("%d epochs for 50 ports", epochs)
	}
}
