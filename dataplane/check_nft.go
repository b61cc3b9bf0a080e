package dataplane

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// readNFT adds what `nft -j list ruleset` prints.
func (f *firewall) readNFT() error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		if b, err := os.ReadFile("/proc/modules"); err == nil && strings.Contains(string(b), "nf_tables ") {
			return errNoRules
		}
		return nil
	}
	out, err := exec.Command(nft, "-j", "list", "ruleset").Output()
	if err != nil {
		return fmt.Errorf("nft list ruleset: %w", err)
	}
	return f.addNFT(out)
}

// An nftRule is one as nft lists it.
type nftRule struct {
	Family, Table, Chain string
	Expr                 []json.RawMessage
}

// nftSets are the elements of the sets and maps that have names.
type nftSets map[chainName][]any

func (f *firewall) addNFT(list []byte) error {
	type set struct {
		Family, Table, Name string
		Elem                []any
	}
	var all struct {
		Items []struct {
			Chain    *struct{ Family, Table, Name, Hook, Policy string }
			Set, Map *set
			Rule     *nftRule
		} `json:"nftables"`
	}
	if err := json.Unmarshal(list, &all); err != nil {
		return fmt.Errorf("read what nft lists: %w", err)
	}
	sets := nftSets{}
	var rules []nftRule
	for _, i := range all.Items {
		if c := i.Chain; c != nil && c.Hook != "" && f.sees(c.Family) {
			f.chains = append(f.chains, firewallChain{c.Family + " " + c.Table, c.Name,
				slices.Contains([]string{"ingress", "prerouting", "input"}, c.Hook), c.Policy == "drop"})
		}
		for _, s := range []*set{i.Set, i.Map} {
			if s != nil {
				sets[chainName{s.Family + " " + s.Table, s.Name}] = s.Elem
			}
		}
		if r := i.Rule; r != nil && f.sees(r.Family) {
			rules = append(rules, *r)
		}
	}
	return f.addNFTRules(rules, sets)
}

// sees reports whether a table of nftables gets frames of the firewall's family.
func (f *firewall) sees(table string) bool {
	switch table {
	case "ip":
		return f.of == ipv4
	case "ip6":
		return f.of == ipv6
	case "arp":
		return false
	}
	return true // inet, netdev, bridge
}

// addNFTRules adds rules. What nft doesn't show of those of iptables-nft is read from
// iptables-nft-save, rule by rule: that one in turn prints nft's own rules wrongly.
func (f *firewall) addNFTRules(rules []nftRule, sets nftSets) error {
	var saved map[chainName][]firewallRule
	if slices.ContainsFunc(rules, nftRule.foreign) {
		var err error
		if saved, err = f.savedNFT(); err != nil {
			return err
		}
	}
	count, at := map[chainName]int{}, map[chainName]int{}
	for _, r := range rules {
		count[r.in()]++
	}
	for _, r := range rules {
		same := saved[r.in()]
		if i := at[r.in()]; r.foreign() && len(same) == count[r.in()] {
			f.rules = append(f.rules, same[i])
		} else {
			f.rules = append(f.rules, nftReader{f.of, sets, r.in()}.rule(r.Expr)...)
		}
		at[r.in()]++
	}
	return nil
}

func (r nftRule) in() chainName { return chainName{r.Family + " " + r.Table, r.Chain} }

// foreign reports whether a rule has a match or target of iptables that nft can't put
// in its own words.
func (r nftRule) foreign() bool {
	return slices.ContainsFunc(r.Expr, func(e json.RawMessage) bool { return strings.HasPrefix(string(e), `{"xt":`) })
}

// savedNFT reads what iptables-nft-save prints, if that is here.
func (f *firewall) savedNFT() (map[chainName][]firewallRule, error) {
	program, tables := "iptables-nft-save", "ip"
	if f.of == ipv6 {
		program, tables = "ip6tables-nft-save", "ip6"
	}
	save, err := exec.LookPath(program)
	if err != nil {
		return nil, nil
	}
	out, err := exec.Command(save).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", save, err)
	}
	var all firewall
	all.addSaved(tables, string(out))
	return all.byChain(), nil
}
