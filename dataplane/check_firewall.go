package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// A firewall is the host's firewall as `nft -j list ruleset` prints it; rules of
// iptables-nft are in it.
type firewall struct {
	Items []struct {
		Chain *firewallChain `json:"chain"`
		Rule  *firewallRule  `json:"rule"`
	} `json:"nftables"`
}

type firewallChain struct {
	Family, Table, Name, Hook, Policy string
}

type firewallRule struct {
	Family, Table, Chain string
	Expr                 json.RawMessage
}

// errNoRules says that nobody here can read the rules.
var errNoRules = errors.New("nft isn't installed, but the kernel has nf_tables")

// rulesOfHost reads the firewall. A host without nft and nf_tables has none.
func rulesOfHost() (firewall, error) {
	var all firewall
	nft, err := exec.LookPath("nft")
	if err != nil {
		if b, err := os.ReadFile("/proc/modules"); err == nil && strings.Contains(string(b), "nf_tables ") {
			return all, errNoRules
		}
		return all, nil
	}
	out, err := exec.Command(nft, "-j", "list", "ruleset").Output()
	if err != nil {
		return all, fmt.Errorf("nft list ruleset: %w", err)
	}
	return all, json.Unmarshal(out, &all)
}

// judgeRules looks for what would drop a VXLAN frame that goes up the stack: a
// rule that names the port, or an input chain that drops what nobody accepts.
func judgeRules(all firewall, err error) (State, string) {
	if err != nil {
		return Unknown, err.Error()
	}
	accepted := map[string]bool{} // tables
	for _, i := range all.Items {
		if i.Rule == nil || !i.Rule.names("4789") {
			continue
		}
		if i.Rule.names(`"drop"`) || i.Rule.names(`"reject"`) {
			return Lack, fmt.Sprintf("a rule in chain %s of table %s %s", i.Rule.Chain, i.Rule.Family, i.Rule.Table)
		}
		if i.Rule.names(`"accept"`) {
			accepted[i.Rule.Family+" "+i.Rule.Table] = true
		}
	}
	for _, i := range all.Items {
		if c := i.Chain; c != nil && c.Hook == "input" && c.Policy == "drop" && !accepted[c.Family+" "+c.Table] {
			return Lack, fmt.Sprintf("chain %s of table %s %s drops what no rule accepts, and none names the port", c.Name, c.Family, c.Table)
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
	for _, i := range all.Items {
		if i.Rule == nil {
			continue
		}
		if i.Rule.names("4789") && i.Rule.names(`"notrack"`) {
			return Have, "notrack"
		}
		if i.Rule.names(`"ct"`) || i.Rule.names(`"masquerade"`) || i.Rule.names(`"snat"`) || i.Rule.names(`"dnat"`) {
			tracked = fmt.Sprintf("chain %s of table %s %s asks for states", i.Rule.Chain, i.Rule.Family, i.Rule.Table)
		}
	}
	if tracked != "" {
		return Lack, tracked
	}
	return Have, ""
}

func (r *firewallRule) names(word string) bool { return strings.Contains(string(r.Expr), word) }
