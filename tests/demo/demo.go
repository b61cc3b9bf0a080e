// Package demo plays Replug's story in a lab: a VM waits in the pool, becomes a
// customer's, moves live to another network, comes back by itself when a move
// goes wrong, and survives the death of the programs that move it. All that it
// prints and writes was measured while it played.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"replug/tests/lab"
)

// Options of [Run].
type Options struct {
	Out    io.Writer // for the person
	File   string    // demo.json
	Bin    string    // directory of the programs
	Helper []string  // lab.Config.Helper
	Name   string    // of the lab; "": demo
	Guest  string    // the image that plays: "" is the small one with our agent, or "debian"
}

// Run plays the story once. It leaves nothing behind, also when ctx ends.
func Run(ctx context.Context, o Options) (err error) {
	if o.Name == "" {
		o.Name = "demo"
	}
	if err := lab.Check(); err != nil {
		return err
	}
	p := &player{o: o, print: newPrinter(o.Out), result: Result{Residue: []string{}, Faults: []Fault{}}}
	defer func() {
		err = errors.Join(err, p.leave())
		if err == nil {
			err = p.end()
		}
	}()
	return p.play(ctx)
}

// A player is the story under way.
type player struct {
	o      Options
	print  *printer
	world  *world
	result Result
}

// play goes through the scenes.
func (p *player) play(ctx context.Context) error {
	scenes := []struct {
		title string
		play  func(context.Context) error
	}{
		{"Two hosts, one tenant, two networks with the same addresses", p.build},
		{"Pool: two VMs boot before anybody asks for them", p.pool},
		{"From scratch: one more VM, for comparison", p.scratch},
		{"Claim: a pooled VM becomes acme's web-1", p.claim},
		{"Swap: web-1 moves live from red to blue", p.swap},
		{"A swap that goes wrong: the guest's DHCP is dead", p.rollback},
		{"Faults: kill -9 in the middle of swaps", p.faults},
	}
	for i, s := range scenes {
		p.print.scene(i, s.title)
		if err := s.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return nil
}

// leave takes the lab down and looks for what is left.
func (p *player) leave() error {
	if p.world == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p.result.Bystander = p.world.bystanders()
	err := p.world.down(ctx)
	p.result.Residue = append(p.result.Residue, lab.Residue(p.o.Name)...)
	return err
}

// end prints the receipt, writes the file, and judges.
func (p *player) end() error {
	p.print.receipt(&p.result)
	if err := p.result.Write(p.o.File); err != nil {
		return err
	}
	p.print.line("Written to %s.", p.o.File)
	return p.result.Judge()
}

// Judge returns what in the result is not as it has to be.
func (r *Result) Judge() error {
	var errs []error
	demand := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for name, m := range map[string]*Move{"claim": &r.Claim, "swap": &r.Swap} {
		demand(m.BootIDBefore != "" && m.BootIDBefore == m.BootIDAfter, "%s: the VM was rebooted: %s, then %s", name, m.BootIDBefore, m.BootIDAfter)
		demand(m.MACBefore != "" && m.MACBefore == m.MACAfter, "%s: the MAC changed: %s, then %s", name, m.MACBefore, m.MACAfter)
		demand(m.PABefore != "" && m.PABefore == m.PAAfter, "%s: the PA changed: %s, then %s", name, m.PABefore, m.PAAfter)
		demand(m.CABefore != "" && m.CABefore != m.CAAfter, "%s: the address stayed %s", name, m.CABefore)
	}
	demand(r.Rollback.OK && r.Rollback.ReachableAtOld, "the failed swap was not undone: %s", r.Rollback.why)
	demand(len(r.Faults) >= 4, "%d faults were played, not at least 4", len(r.Faults))
	for _, f := range r.Faults {
		demand(f.Outcome == "committed" || f.Outcome == "undone", "%s killed: the swap ended %s", f.Killed, f.Outcome)
	}
	demand(r.Bystander.Sent > 0 && r.Bystander.Lost == 0, "the bystanders lost %d of %d frames", r.Bystander.Lost, r.Bystander.Sent)
	demand(r.Leaks.OldAfterFlip+r.Leaks.NewBeforeFlip == 0, "%d frames of the old network after the flip, %d of the new one before it", r.Leaks.OldAfterFlip, r.Leaks.NewBeforeFlip)
	demand(r.Leaks.Probes >= 10000, "only %d probes were sent around the flips", r.Leaks.Probes)
	demand(r.ScratchMSToConfirmed > r.Claim.MSToConfirmed, "a claim took %.0f ms, a VM from scratch only %.0f", r.Claim.MSToConfirmed, r.ScratchMSToConfirmed)
	demand(len(r.Residue) == 0, "left behind: %v", r.Residue)
	return errors.Join(errs...)
}
