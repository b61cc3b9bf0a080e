package control

import (
	"fmt"
	"slices"
	"testing"
	"time"

	pb "replug/control/controlpb"
)

// BenchmarkSwap measures what the control plane adds to a swap, with a host that
// answers at once: the median until the call is answered, and until the host is
// told to flip. The rest of an operation is the way to the committed record.
func BenchmarkSwap(b *testing.B) {
	w := newWorld(b, nil)
	w.furnish()
	w.host("h7", 7)
	w.vm("web-1", "red", "")
	op := w.as("olga")
	var call, flip []time.Duration
	for i := 0; b.Loop(); i++ {
		began := time.Now()
		s := must(op.StartSwap(w.ctx, &pb.StartSwapRequest{
			RequestId: fmt.Sprint("s", i), Tenant: "acme", Vm: "web-1", Network: []string{"blue", "red"}[i%2], Confirm: "lease",
		}))(b)
		call = append(call, time.Since(began))
		for _, h := range w.swapDone(s.Id).Timeline {
			if h.Name == "flipped" {
				flip = append(flip, h.At.AsTime().Sub(began))
			}
		}
	}
	for name, all := range map[string][]time.Duration{"ms-to-answer": call, "ms-to-flip": flip} {
		slices.Sort(all)
		if len(all) > 0 {
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name)
		}
	}
}
