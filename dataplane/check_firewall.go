package dataplane

import (
	"errors"
	"fmt"
	"slices"
)

// A firewall is what a host's rules say of the frames of one family that go up the
// stack, whoever keeps them: nftables, which has those of iptables-nft too, and
// iptables-legacy. What is said of the other family is left out.
type firewall struct {
	of     family
	chains []firewallChain
	rules  []firewallRule
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
	vxlan        bool   // it names UDP port 4789
	all          bool   // it asks nothing of a frame
	verdict      string // accept, drop, reject; "": another one
	tracks       bool   // it asks for the state of connections, or changes addresses
	untracked    bool   // it takes frames out of connection tracking
}

// errNoRules says that nobody here can read the rules.
var errNoRules = errors.New("the kernel has rules that nothing here can list: install nftables and iptables")

// rulesOfHost reads the rules of all kinds that the kernel has for a family.
func rulesOfHost(of family) (firewall, error) {
	all := firewall{of: of}
	return all, errors.Join(all.readNFT(), all.readLegacy())
}

// judgeRules looks for what would drop a VXLAN frame that goes up the stack: a
// rule that names the port, or a chain that drops what nobody accepts.
func judgeRules(all firewall, err error) (State, string) {
	if err != nil {
		return Unknown, err.Error()
	}
	accepted := map[string]bool{} // tables
	for _, r := range all.rules {
		switch {
		case r.vxlan && (r.verdict == "drop" || r.verdict == "reject"):
			return Lack, fmt.Sprintf("a rule in chain %s of table %s", r.chain, r.table)
		case r.vxlan && r.verdict == "accept":
			accepted[r.table] = true
		}
	}
	for _, c := range all.chains {
		shut := c.drops || slices.ContainsFunc(all.rules, func(r firewallRule) bool {
			return r.table == c.table && r.chain == c.name && r.all && (r.verdict == "drop" || r.verdict == "reject")
		})
		if c.early && shut && !accepted[c.table] {
			return Lack, fmt.Sprintf("chain %s of table %s drops what no rule accepts, and none names the port", c.name, c.table)
		}
	}
	return Have, ""
}

// judgeTracking looks for rules that make the kernel track connections.
func judgeTracking(all firewall, err error) (State, string) {
	if err != nil {
		return Unknown, err.Error()
	}
	tracked := ""
	for _, r := range all.rules {
		if r.vxlan && r.untracked {
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
