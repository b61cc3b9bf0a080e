package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// ErrMissing says that this machine can't be a host; the text says what it lacks.
var ErrMissing = errors.New("this machine lacks something")

// A State is how it stands with something.
type State string

// What a probe may find.
const (
	Have    State = "have"
	Lack    State = "lack"
	Unknown State = "unknown" // it can't be found out without disturbing something
)

// A Finding is one thing that the agent needs or can use. Nothing is concluded
// from a version: it has been tried, or read from whoever knows.
type Finding struct {
	What   string `json:"what"`
	State  State  `json:"state"`
	Needed bool   `json:"needed"`         // nothing works without
	Seen   string `json:"seen,omitempty"` // what the probe saw, if there is more to say
	Cost   string `json:"cost,omitempty"` // what it means to be without
	Do     string `json:"do,omitempty"`   // what to do about it
}

// A probe is a question with what a bad answer means. Cost and do are told only
// then.
type probe struct {
	what     string
	needed   bool
	cost, do string
	ask      func() (State, string)
}

// Look looks at everything that the agent needs or can use. Uplink is the device
// to the underlay, "" for that of the default route; pas are the addresses that are
// routed to this host, which say of what family the underlay is, or invalid. It disturbs
// nothing: what has to be tried is tried in a network namespace of its own.
func Look(bpffs, uplink string, pas netip.Prefix) []Finding {
	return answer(append(append(basics(bpffs), abilities()...), uplinkProbes(uplink, pas)...))
}

// Missing returns [ErrMissing] with all that is needed and not there.
func Missing(bpffs string) error {
	var errs []error
	for _, f := range answer(basics(bpffs)) {
		if f.Needed && f.State == Lack {
			what := f.What
			if f.Seen != "" {
				what += " (" + f.Seen + ")"
			}
			errs = append(errs, fmt.Errorf("%w: %s: %s: %s", ErrMissing, what, f.Cost, f.Do))
		}
	}
	return errors.Join(errs...)
}

func answer(probes []probe) []Finding {
	all := make([]Finding, len(probes))
	for i, p := range probes {
		state, seen := p.ask()
		all[i] = Finding{What: p.what, State: state, Needed: p.needed, Seen: seen}
		if state != Have {
			all[i].Cost, all[i].Do = p.cost, p.do
		}
	}
	return all
}

// Report writes findings for a person, or as JSON. It returns [ErrMissing] if
// something needed is lacking.
func Report(w io.Writer, findings []Finding, asJSON bool) error {
	missing := 0
	for _, f := range findings {
		if f.Needed && f.State == Lack {
			missing++
		}
	}
	if err := list(w, findings, asJSON); err != nil {
		return err
	}
	if missing > 0 {
		return fmt.Errorf("%w: %d of what is needed", ErrMissing, missing)
	}
	return nil
}

func list(w io.Writer, findings []Finding, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(findings)
	}
	for _, f := range findings {
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	return nil
}

// String is a finding on a line, and two more if there is something to do.
func (f Finding) String() string {
	state := string(f.State)
	if f.Needed && f.State == Lack {
		state = "LACK"
	}
	s := fmt.Sprintf("%-8s %s", state, f.What)
	if f.Seen != "" {
		s += " (" + f.Seen + ")"
	}
	if f.Cost != "" {
		s += "\n         cost: " + f.Cost
	}
	if f.Do != "" {
		s += "\n         do:   " + f.Do
	}
	return s
}

// is turns a yes or no into a state.
func is(yes bool) State {
	if yes {
		return Have
	}
	return Lack
}
