package dataplane

import (
	"errors"
	"fmt"
)

const vxlanPort = 4789 // RFC 7348

// A firewall is what a host's rules say of VXLAN frames of one family that go up the
// stack, whoever keeps them: nftables, which has those of iptables-nft too, and
// iptables-legacy. What is said of the other family is left out.
type firewall struct {
	of     family
	chains []firewallChain
	rules  []firewallRule // those of a chain in its order
}

// A firewallChain is one that the kernel enters by itself.
type firewallChain struct {
	table, name string
	early       bool // before or at the input hook: what it drops reaches nobody here
	drops       bool // what no rule accepts
}

// A firewallRule is what matters of a rule here.
type firewallRule struct {
	table, chain string
	fits         fit    // whether a VXLAN frame is what it asks for
	port         bool   // it asks for a destination port, and UDP 4789 is among those
	hidden       string // what it asks and nothing here can read: it may be the port
	verdict      string // accept, drop, reject, return, jump, goto; "": another one
	to           string // the chain that it jumps or goes to
	tracks       bool   // it asks for the state of connections, or changes addresses
	untracked    bool   // it takes frames out of connection tracking
}

// A fit says whether a VXLAN frame is what is asked for. It may be that for one sender
// and not for another.
type fit int

const (
	never fit = iota
	maybe
	always
)

// not is the fit of the opposite.
func (f fit) not() fit { return always - f }

// yes is the fit of what is known.
func yes(is bool) fit {
	if is {
		return always
	}
	return never
}

// and adds another thing that a rule asks.
func (r *firewallRule) and(f fit) { r.fits = min(r.fits, f) }

// decides reports whether a rule's verdict counts: it is that of every VXLAN frame, or
// of those from somebody, by their port. Whoever accepts those means the hosts.
func (r firewallRule) decides() bool { return r.fits == always || r.port }

// within is a rule as it stands in a chain that another one has led to.
func (r firewallRule) within(by firewallRule) firewallRule {
	r.and(by.fits)
	switch {
	case by.port:
		r.port = true
	case by.hidden != "":
		r.port, r.hidden = false, by.hidden
	}
	return r
}

func (r firewallRule) String() string {
	return fmt.Sprintf("a rule in chain %s of table %s", r.chain, r.table)
}

// errNoRules says that nobody here can read the rules.
var errNoRules = errors.New("the kernel has rules that nothing here can list: install nftables and iptables")

// rulesOfHost reads the rules of all kinds that the kernel has for a family.
func rulesOfHost(of family) (firewall, error) {
	all := firewall{of: of}
	return all, errors.Join(all.readNFT(), all.readLegacy())
}

// judgeRules looks for what would drop a VXLAN frame that goes up the stack. A chain
// that accepts it doesn't keep another one from dropping it.
func judgeRules(all firewall, err error) (State, string) {
	if err != nil {
		return Unknown, err.Error()
	}
	state, why := Have, ""
	rules := all.byChain()
	for _, c := range all.chains {
		if !c.early {
			continue
		}
		w := way{rules: rules}
		switch s, text := w.through(c); {
		case s == Lack:
			return s, text
		case s == Unknown && state == Have:
			state, why = s, text
		}
	}
	return state, why
}

// A chainName is unique on a host.
type chainName struct{ table, name string }

func (f firewall) byChain() map[chainName][]firewallRule {
	by := map[chainName][]firewallRule{}
	for _, r := range f.rules {
		n := chainName{r.table, r.chain}
		by[n] = append(by[n], r)
	}
	return by
}

// A way is that of a VXLAN frame through a chain and those that it leads to.
type way struct {
	rules   map[chainName][]firewallRule
	spared  string // the rule that may let it out of what drops it further on
	dropped string // the rule that may drop it
}

// An end is how a chain was left.
type end int

const (
	passed end = iota // nobody decided
	accepted
	dropped
)

// through says how it ends for a frame.
func (w *way) through(c firewallChain) (State, string) {
	how, why := w.walk(chainName{c.table, c.name}, firewallRule{fits: always})
	if how == passed && c.drops {
		how, why = dropped, shut(c.table, c.name)
	}
	switch {
	case how == dropped && w.spared == "":
		return Lack, why
	case how == dropped:
		return Unknown, w.spared
	case w.dropped != "":
		return Unknown, w.dropped
	}
	return Have, ""
}

func shut(table, chain string) string {
	return fmt.Sprintf("chain %s of table %s drops what no rule accepts, and none names the port", chain, table)
}

// walk follows a chain that a rule has led to, and says why a frame is dropped. The
// kernel has seen to it that no chain leads to itself.
func (w *way) walk(in chainName, by firewallRule) (end, string) {
	for _, r := range w.rules[in] {
		r = r.within(by)
		if r.fits == never {
			continue
		}
		switch r.verdict {
		case "accept", "return":
			switch {
			case !r.decides():
				w.doubt(&w.spared, r)
			case r.verdict == "accept":
				return accepted, ""
			default:
				return passed, ""
			}
		case "drop", "reject":
			switch {
			case r.fits == always && r.port:
				return dropped, r.String()
			case r.fits == always:
				return dropped, shut(r.table, r.chain)
			}
			w.doubt(&w.dropped, r)
		case "jump", "goto":
			how, why := w.walk(chainName{r.table, r.to}, r)
			if how != passed || r.verdict == "goto" && r.fits == always {
				return how, why
			}
		}
	}
	return passed, ""
}

// doubt notes the first rule of which it can't be told whether it decides.
func (w *way) doubt(about *string, r firewallRule) {
	switch {
	case *about != "":
	case r.port:
		*about = fmt.Sprintf("%s is for some of them: it asks for more than the port", r)
	case r.hidden != "":
		*about = fmt.Sprintf("%s may be for the port: it asks for %s", r, r.hidden)
	}
}

// judgeTracking looks for rules that make the kernel track connections.
func judgeTracking(all firewall, err error) (State, string) {
	if err != nil {
		return Unknown, err.Error()
	}
	tracked := ""
	for _, r := range all.rules {
		if r.untracked && r.decides() && r.fits != never {
			return Have, "notrack"
		}
		if r.tracks {
			tracked = fmt.Sprintf("chain %s of table %s asks for states", r.chain, r.table)
		}
	}
	if tracked != "" {
		return Lack, tracked
	}
	return Have, ""
}
