// Package bench measures what Replug promises, each figure beside a floor that
// was measured in the same run: plain routing, kernel VXLAN with a bridge, a
// bare store. It judges ratios and medians, since machines differ and are noisy.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"replug/tests/lab"
)

// Options of [Run].
type Options struct {
	Out    io.Writer
	File   string   // bench.json
	Bin    string   // directory of the programs
	Helper []string // lab.Config.Helper
	Name   string   // of the labs; "": bench
	Rounds int      // of each interleaved comparison; 0: 5
	Swaps  int      // for the percentiles; 0: 200
	Only   []string // parts to run; nil: all
}

// A Figure is one measured promise.
type Figure struct {
	ID      string    `json:"id"`
	Unit    string    `json:"unit"`
	Ours    float64   `json:"ours"`
	Against string    `json:"against"` // what theirs is
	Theirs  float64   `json:"theirs"`
	Ratio   float64   `json:"ratio"` // ours to theirs; 0: there is nothing to compare
	Must    string    `json:"must"`
	Aim     string    `json:"aim,omitempty"` // what would be very good; nothing fails without it
	OK      bool      `json:"ok"`
	Runs    []float64 `json:"runs"`            // raw values of ours, in order
	Floor   []float64 `json:"floor,omitempty"` // and of theirs, of the same rounds
}

// A part measures some figures.
type part struct {
	name    string
	measure func(context.Context, Options) ([]Figure, error)
}

var parts = []part{
	{"traffic", traffic},
	{"xdp", intoTapByXDP},
	{"packet", packet},
	{"scale", scale},
	{"order", order},
	{"swaps", swaps},
	{"memory", memory},
	{"ports", ports},
	{"metadata", metadata},
	{"dhcp", leases},
	{"claims", claims},
	{"restart", restart},
}

// aims are by a figure's id.
var aims = map[string]string{
	"tcp_tap_vs_plain": ">= 1x", "tcp_tap_vs_policy": ">= 1.2x", "tcp_tap_offload_vs_plain": ">= 1x",
	"rr_vs_plain": ">= 1.08x", "pps_vs_plain": ">= 1.15x", "pps_xdp_tap_vs_plain": ">= 1.3x", "pps_xdp_tap_vs_policy": ">= 4.5x",
	"rules_1000_cost": "<= 1", "mappings_1m_cost": "<= 1.1", "mapping_bytes": "<= 64",
}

// Parts returns the names for [Options].Only.
func Parts() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// Run measures everything, prints it, and writes the file. A figure below its
// must is an error; all others are measured and written all the same.
func Run(ctx context.Context, o Options) error {
	if err := lab.Check(); err != nil {
		return err
	}
	o = o.complete()
	var figures []Figure
	var errs []error
	for _, p := range parts {
		if o.Only != nil && !slices.Contains(o.Only, p.name) {
			continue
		}
		begin := time.Now()
		got, err := p.measure(ctx, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		for i := range got {
			got[i].Aim = aims[got[i].ID]
		}
		show(o.Out, got)
		fmt.Fprintf(o.Out, "%s measured in %.0f s\n\n", p.name, time.Since(begin).Seconds())
		figures = append(figures, got...)
	}
	for _, f := range figures {
		if !f.OK {
			errs = append(errs, fmt.Errorf("%s is %.4g %s, ratio %.2f to %s, and must be %s", f.ID, f.Ours, f.Unit, f.Ratio, f.Against, f.Must))
		}
	}
	return errors.Join(append(errs, write(o.File, figures))...)
}

func (o Options) complete() Options {
	if o.Name == "" {
		o.Name = "bench"
	}
	if o.Rounds == 0 {
		o.Rounds = 5
	}
	if o.Swaps == 0 {
		o.Swaps = 200
	}
	return o
}

func show(w io.Writer, figures []Figure) {
	for _, f := range figures {
		verdict := "ok"
		if !f.OK {
			verdict = "NOT REACHED"
		}
		beside := ""
		if f.Against != "" {
			beside = fmt.Sprintf("%10.4g %s", f.Theirs, f.Against)
		}
		ratio := ""
		if f.Ratio != 0 {
			ratio = fmt.Sprintf("ratio %.2f", f.Ratio)
		}
		aim := ""
		if f.Aim != "" {
			aim = "aim " + f.Aim
		}
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-24s %10.4g %-16s %-41s %-12s must %-9s %-12s %s", f.ID, f.Ours, f.Unit, beside, ratio, f.Must, verdict, aim), " "))
	}
}

// write puts figures in the place of those with their ids, and leaves the others of
// an earlier run as they are.
func write(file string, figures []Figure) error {
	var all []Figure
	if b, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(b, &all); err != nil {
			return fmt.Errorf("%s is not of a bench: %w: move it away", file, err)
		}
	}
	for _, f := range figures {
		if i := slices.IndexFunc(all, func(old Figure) bool { return old.ID == f.ID }); i >= 0 {
			all[i] = f
		} else {
			all = append(all, f)
		}
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// atMost is a figure with an upper bound of its own; theirs is for orientation.
func atMost(id, unit string, runs []float64, pick func([]float64) float64, must float64, against string, theirs float64) Figure {
	f := Figure{ID: id, Unit: unit, Ours: pick(runs), Against: against, Theirs: theirs, Must: fmt.Sprintf("<= %g", must), Runs: runs}
	f.OK = len(runs) > 0 && f.Ours <= must
	if theirs > 0 {
		f.Ratio = f.Ours / theirs
	}
	return f
}

// atLeast is a figure whose ratio to a floor of the same run has a lower bound.
func atLeast(id, unit string, ours []float64, against string, theirs []float64, must float64) Figure {
	f := Figure{ID: id, Unit: unit, Ours: median(ours), Against: against, Theirs: median(theirs), Must: fmt.Sprintf(">= %gx", must), Runs: ours, Floor: theirs}
	if f.Theirs > 0 {
		f.Ratio = f.Ours / f.Theirs
	}
	f.OK = f.Ratio >= must
	return f
}

func median(x []float64) float64 { return percentile(50)(x) }

// percentile is by the nearest rank.
func percentile(p int) func([]float64) float64 {
	return func(x []float64) float64 {
		if len(x) == 0 {
			return 0
		}
		s := slices.Sorted(slices.Values(x))
		return s[max(0, (len(s)*p+99)/100-1)]
	}
}

func sum(x []float64) (n float64) {
	for _, v := range x {
		n += v
	}
	return n
}
