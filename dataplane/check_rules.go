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

func (f *firewall) addNFT(list []byte) error {
	var all struct {
		Items []struct {
			Chain *struct{ Family, Table, Name, Hook, Policy string }
			Rule  *struct {
				Family, Table, Chain string
				Expr                 []json.RawMessage
			}
		} `json:"nftables"`
	}
	if err := json.Unmarshal(list, &all); err != nil {
		return fmt.Errorf("read what nft lists: %w", err)
	}
	for _, i := range all.Items {
		if c := i.Chain; c != nil && c.Hook != "" {
			f.chains = append(f.chains, firewallChain{c.Family + " " + c.Table, c.Name,
				slices.Contains([]string{"ingress", "prerouting", "input"}, c.Hook), c.Policy == "drop"})
		}
		if r := i.Rule; r != nil {
			f.rules = append(f.rules, nftRule(r.Family+" "+r.Table, r.Chain, r.Expr))
		}
	}
	return nil
}

func nftRule(table, chain string, expr []json.RawMessage) firewallRule {
	r := firewallRule{table: table, chain: chain, all: true}
	for _, e := range expr {
		s := string(e)
		has := func(word string) bool { return strings.HasPrefix(s, `{"`+word+`":`) }
		switch {
		case has("match"):
			r.all = false
			r.vxlan = r.vxlan || strings.Contains(s, "4789")
			r.tracks = r.tracks || strings.Contains(s, `"ct"`)
		case has("accept"), has("drop"), has("reject"):
			r.verdict = s[2 : strings.Index(s[2:], `"`)+2]
		case has("notrack"):
			r.untracked = true
		case has("masquerade"), has("snat"), has("dnat"), has("redirect"):
			r.tracks = true
		}
	}
	return r
}

// readLegacy adds what iptables-legacy keeps, beside nftables and unseen by it. A
// kernel without its tables isn't asked: that would load them.
func (f *firewall) readLegacy() error {
	for _, family := range []struct{ tables, save string }{{"ip_tables_names", "iptables-legacy-save"}, {"ip6_tables_names", "ip6tables-legacy-save"}} {
		b, err := os.ReadFile("/proc/thread-self/net/" + family.tables)
		if err != nil || len(b) == 0 {
			continue
		}
		save, err := exec.LookPath(family.save)
		if err != nil {
			return errNoRules
		}
		out, err := exec.Command(save).Output()
		if err != nil {
			return fmt.Errorf("%s: %w", family.save, err)
		}
		f.addLegacy(strings.TrimSuffix(family.save, "-save"), string(out))
	}
	return nil
}

// addLegacy reads the format of iptables-save (8).
func (f *firewall) addLegacy(program, saved string) {
	table := ""
	for line := range strings.Lines(saved) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case strings.HasPrefix(words[0], "*"):
			table = program + " " + words[0][1:]
		case strings.HasPrefix(words[0], ":") && len(words) > 1:
			name := words[0][1:]
			f.chains = append(f.chains, firewallChain{table, name, name == "PREROUTING" || name == "INPUT", words[1] == "DROP"})
		case words[0] == "-A" && len(words) > 2:
			f.rules = append(f.rules, legacyRule(table, words[1], words[2:]))
		}
	}
}

func legacyRule(table, chain string, words []string) firewallRule {
	r := firewallRule{table: table, chain: chain, all: true}
	for i, w := range words {
		next := ""
		if i+1 < len(words) {
			next = words[i+1]
		}
		switch w {
		case "-j":
			switch next {
			case "ACCEPT", "DROP", "REJECT":
				r.verdict = strings.ToLower(next)
			case "NOTRACK":
				r.untracked = true
			case "CT":
				r.untracked = slices.Contains(words, "--notrack")
			case "MASQUERADE", "SNAT", "DNAT", "REDIRECT":
				r.tracks = true
			}
			return r // what follows is the verdict's
		case "--dport", "--dports":
			r.vxlan = slices.Contains(strings.Split(next, ","), "4789")
			r.all = false
		case "--ctstate", "--state":
			r.tracks, r.all = true, false
		case "-m", "--comment", "comment":
		default:
			r.all = r.all && i > 0 && words[i-1] == "--comment"
		}
	}
	return r
}
