package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	pb "replug/control/controlpb"
)

// A timeline prints each hop of an operation once, as it comes, in ms after the
// first.
type timeline struct {
	w     io.Writer
	shown map[string]bool
	begin time.Time
}

func newTimeline(cmd *cobra.Command, visible bool) *timeline {
	if !visible {
		return timelineTo(io.Discard)
	}
	return timelineTo(cmd.OutOrStdout())
}

func timelineTo(w io.Writer) *timeline { return &timeline{w: w, shown: make(map[string]bool)} }

func (l *timeline) show(hops []*pb.Hop) {
	for _, h := range hops {
		key := h.By + " " + h.Name + h.At.String()
		if l.shown[key] {
			continue
		}
		l.shown[key] = true
		if l.begin.IsZero() {
			l.begin = h.At.AsTime()
		}
		fmt.Fprintf(l.w, "%10.1f ms  %-24s %s\n", ms(h.At.AsTime().Sub(l.begin)), h.Name, h.By)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
