package demo

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"time"
)

// A printer tells the story to a person: plain text, one thought a line.
type printer struct {
	w     io.Writer
	begin time.Time
}

func newPrinter(w io.Writer) *printer { return &printer{w: w, begin: time.Now()} }

func (p *printer) scene(n int, title string) {
	fmt.Fprintf(p.w, "\n%6.1f s  %d. %s\n", time.Since(p.begin).Seconds(), n, title)
}

func (p *printer) line(format string, args ...any) {
	fmt.Fprintf(p.w, "          "+format+"\n", args...)
}

// quote shows what a command printed.
func (p *printer) quote(command, output string) {
	p.line("$ %s", command)
	for l := range strings.Lines(strings.TrimRight(output, "\n")) {
		fmt.Fprintf(p.w, "            %s\n", strings.TrimRight(l, "\n"))
	}
}

// timeline prints phases in the order of their times, with a bar to scale.
func (p *printer) timeline(phases map[string]float64) {
	names := make([]string, 0, len(phases))
	longest := 1.0
	for name, ms := range phases {
		names = append(names, name)
		longest = max(longest, ms)
	}
	sort.Slice(names, func(i, j int) bool {
		if phases[names[i]] != phases[names[j]] {
			return phases[names[i]] < phases[names[j]]
		}
		return names[i] < names[j]
	})
	const width = 40
	for _, name := range names {
		fmt.Fprintf(p.w, "          %9.1f ms  %-12s %s\n", phases[name], name, strings.Repeat("=", int(phases[name]/longest*width))+"|")
	}
}

func (p *printer) move(what string, m *Move) {
	p.timeline(m.Phases)
	p.line("%s: %s %s -> %s %s, %s -> %s", what, m.NetworkBefore, m.CABefore, m.NetworkAfter, m.CAAfter, m.hostnameBefore, m.hostnameAfter)
	p.line("same MAC %s, same PA %s, same boot id %s: no reboot", m.MACAfter, m.PAAfter, m.BootIDAfter)
	p.line("flipped after %.1f ms, leased %.1f, reachable %.1f, confirmed %.1f; blackout %.1f ms (dataplane), trigger %s",
		m.MSToFlip, m.MSToLease, m.MSToReachable, m.MSToConfirmed, m.BlackoutMS, m.rung)
}

func (p *printer) receipt(r *Result) {
	fmt.Fprintf(p.w, "\n%6.1f s  Receipt\n", time.Since(p.begin).Seconds())
	p.line("claim from the pool   %8.0f ms until the guest confirmed", r.Claim.MSToConfirmed)
	p.line("VM from scratch       %8.0f ms: the claim was %.0f times faster", r.ScratchMSToConfirmed, r.ScratchMSToConfirmed/max(r.Claim.MSToConfirmed, 1))
	p.line("live swap             %8.0f ms until reachable, %.0f until confirmed, blackout %.0f ms", r.Swap.MSToReachable, r.Swap.MSToConfirmed, r.Swap.BlackoutMS)
	p.line("undone by itself      %8.0f ms, reachable at its old address: %v", r.Rollback.MS, r.Rollback.ReachableAtOld)
	for _, f := range r.Faults {
		p.line("%-22s%8.0f ms, %s", f.Killed, f.MS, f.Outcome)
	}
	p.line("bystanders            %8d frames, %d lost", r.Bystander.Sent, r.Bystander.Lost)
	p.line("probes around flips   %8d, in the wrong network: %d", r.Leaks.Probes, r.Leaks.OldAfterFlip+r.Leaks.NewBeforeFlip)
	p.line("left behind           %8d things", len(r.Residue))
}
