package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A sender whose machine paused goes on at its pace, and doesn't flood the queues.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		at := map[time.Duration]int{} // calls by the ms in which they were made
		begin, calls := time.Now(), 0
		pace(ctx, 1000, func(n int) {
			if n != calls {
				t.Fatalf("call %d has number %d", calls, n)
			}
			if calls++; calls == 2000 {
				time.Sleep(3 * time.Second)
			}
			at[time.Since(begin).Truncate(time.Millisecond)]++
		})
		for when, n := range at {
			if n > burst+1 {
				t.Errorf("%d calls at once after %s", n, when)
			}
		}
		if calls < 6900 || calls > 7200 {
			t.Errorf("%d calls in 7 s", calls)
		}
	})
}
