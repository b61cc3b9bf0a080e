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
		if c := i.Chain; c != nil && c.Hook != "" && f.sees(c.Family) {
			f.chains = append(f.chains, firewallChain{c.Family + " " + c.Table, c.Name,
				slices.Contains([]string{"ingress", "prerouting", "input"}, c.Hook), c.Policy == "drop"})
		}
		if r := i.Rule; r != nil && f.sees(r.Family) {
			f.rules = append(f.rules, f.nftRule(r.Family+" "+r.Table, r.Chain, r.Expr))
		}
	}
	return nil
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

// nftRule reads a rule. One for frames of the other family alone says nothing here but
// that the kernel tracks connections: it then does so for all families of the table.
func (f *firewall) nftRule(table, chain string, expr []json.RawMessage) firewallRule {
	r := firewallRule{table: table, chain: chain, all: true}
	may := true
	for _, e := range expr {
		s := string(e)
		has := func(word string) bool { return strings.HasPrefix(s, `{"`+word+`":`) }
		switch {
		case has("match"):
			fits, nothingElse := nftMatches(e, f.of)
			may, r.all = may && fits, r.all && nothingElse
			r.vxlan = r.vxlan || strings.Contains(s, "4789")
			r.tracks = r.tracks || strings.Contains(s, `"ct"`)
		case has("accept"), has("drop"), has("reject"):
			r.verdict = s[2 : strings.Index(s[2:], `"`)+2]
		case has("notrack"):
			r.untracked = true
		case has("masquerade"), has("snat"), has("dnat"), has("redirect"):
			r.tracks = true
		case has("xt"): // a match or target of iptables-nft that nft can't put in its own words
			r.all = r.all && !strings.Contains(s, `"match"`)
			r.tracks = r.tracks || slices.ContainsFunc(xtTracks, func(name string) bool { return strings.Contains(s, `"`+name+`"`) })
		}
	}
	if !may {
		return firewallRule{table: table, chain: chain, tracks: r.tracks}
	}
	return r
}

// xtTracks are the extensions of iptables that make the kernel track connections.
var xtTracks = []string{"conntrack", "state", "MASQUERADE", "SNAT", "DNAT", "REDIRECT"}

// An nftField is what a match of nftables looks at.
type nftField struct {
	Payload struct{ Protocol string }
	Meta    struct{ Key string }
	Concat  []nftField
}

// nftMatches reports whether a frame of a family may fit a match, and whether its
// family is all that it is asked for.
func nftMatches(expr json.RawMessage, of family) (fits, nothingElse bool) {
	var e struct {
		Match struct {
			Op    string
			Left  nftField
			Right json.RawMessage
		}
	}
	if json.Unmarshal(expr, &e) != nil {
		return true, false // of a shape that no family has
	}
	m := e.Match
	if m.Left.Meta.Key == "nfproto" || m.Left.Meta.Key == "protocol" {
		named := slices.ContainsFunc(nftNames[of], func(name string) bool { return strings.Contains(string(m.Right), name) })
		return named != (m.Op == "!="), true
	}
	for _, field := range append(m.Left.Concat, m.Left) {
		switch field.Payload.Protocol {
		case "ip", "icmp", "igmp":
			return of == ipv4, false
		case "ip6", "icmpv6":
			return of == ipv6, false
		}
	}
	return true, false
}

// nftNames are those of a family as nft prints them, of nfproto and of protocol.
var nftNames = [...][]string{ipv4: {`"ipv4"`, `"ip"`}, ipv6: {`"ipv6"`, `"ip6"`}}

// readLegacy adds what iptables-legacy keeps, beside nftables and unseen by it. A
// kernel without its tables isn't asked: that would load them.
func (f *firewall) readLegacy() error {
	tables, program := "ip_tables_names", "iptables-legacy"
	if f.of == ipv6 {
		tables, program = "ip6_tables_names", "ip6tables-legacy"
	}
	b, err := os.ReadFile("/proc/thread-self/net/" + tables)
	if err != nil || len(b) == 0 {
		return nil
	}
	save, err := exec.LookPath(program + "-save")
	if err != nil {
		return errNoRules
	}
	out, err := exec.Command(save).Output()
	if err != nil {
		return fmt.Errorf("%s: %w", save, err)
	}
	f.addLegacy(program, string(out))
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
