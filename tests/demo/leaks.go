package demo

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
	"replug/tests/lab"
)

// A flip is when a VM changed its network, as its host's steps tell. The frames on the
// VM's wire can't be compared with the step itself, which is noted a moment after the
// datapath was switched. But it was not before the step that came before it, nor after
// the one that followed.
type flip struct {
	notBefore, done, notAfter time.Time
}

func flipOf(s *pb.Swap) (flip, error) {
	var steps []*pb.Hop
	for _, h := range s.Timeline {
		if h.By == "host" {
			steps = append(steps, h)
		}
	}
	i := slices.IndexFunc(steps, func(h *pb.Hop) bool { return h.Name == "flip" })
	if i < 1 || i == len(steps)-1 {
		return flip{}, fmt.Errorf("swap %s has no flip among its host's steps: %v", s.Id, steps)
	}
	return flip{steps[i-1].At.AsTime(), steps[i].At.AsTime(), steps[i+1].At.AsTime()}, nil
}

// countLeaks counts probes on the VM's own wire that came on the wrong side of the flip.
// Within its bounds the frames' own order says where it was: what counts is what is wrong
// wherever it is taken to have been. Probes of a network that is neither the old nor the
// new one are leaks always.
func countLeaks(frames []lab.Frame, mac vnet.MAC, at flip, before, after string) (l Leaks, arrived map[string]int) {
	var networks []string
	first, last := 0, -1 // frames before the flip, at least and at most
	arrived = make(map[string]int)
	for _, f := range frames {
		i := bytes.Index(f.Data, []byte(probeText))
		if i < 0 || len(f.Data) < 14 || !bytes.Equal(f.Data[:6], mac[:]) {
			continue
		}
		if f.At.After(at.notAfter) && last < 0 {
			last = len(networks)
		}
		network := string(bytes.TrimRight(f.Data[i+len(probeText):], "\x00"))
		networks = append(networks, network)
		arrived[network]++
		if f.At.Before(at.notBefore) {
			first = len(networks)
		}
	}
	if last < 0 {
		last = len(networks)
	}
	fewest := -1
	for n := first; n <= max(first, last); n++ {
		early, late := others(networks[:n], before), others(networks[n:], after)
		if fewest < 0 || early+late < fewest {
			fewest, l.NewBeforeFlip, l.OldAfterFlip = early+late, early, late
		}
	}
	return l, arrived
}

// others counts the probes that are not of the network.
func others(networks []string, network string) (n int) {
	for _, other := range networks {
		if other != network {
			n++
		}
	}
	return n
}
