package dataplane

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

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
	f.addSaved(program, string(out))
	return nil
}

// savedWord is a word of a saved rule: a comment is quoted.
var savedWord = regexp.MustCompile(`"(?:\\.|[^"\\])*"|\S+`)

// addSaved reads the format of iptables-save (8). Of names the kind of tables.
func (f *firewall) addSaved(of, saved string) {
	table := ""
	for line := range strings.Lines(saved) {
		words := savedWord.FindAllString(line, -1)
		switch {
		case len(words) == 0:
		case strings.HasPrefix(words[0], "*"):
			table = of + " " + words[0][1:]
		case strings.HasPrefix(words[0], ":") && len(words) > 1:
			name := words[0][1:]
			f.chains = append(f.chains, firewallChain{table, name, name == "PREROUTING" || name == "INPUT", words[1] == "DROP"})
		case words[0] == "-A" && len(words) > 2:
			f.rules = append(f.rules, savedRule(table, words[1], words[2:]))
		}
	}
}

func savedRule(table, chain string, words []string) firewallRule {
	r := firewallRule{table: table, chain: chain, fits: always}
	not := false
	for i, w := range words {
		args := append(slices.Clone(words[i+1:]), "", "")
		asked := maybe
		switch w {
		case "!":
			not = true
			continue
		case "-p":
			asked = yes(args[0] == "udp" || args[0] == "17")
		case "--dport", "--dports":
			r.port, asked = true, yes(holdsVXLAN(args[0]))
		case "--ports": // the sender's will do, too
			if holdsVXLAN(args[0]) {
				r.port, asked = true, always
			}
		case "--match-set":
			if strings.Contains(args[1], "dst") {
				r.hidden = "what is in set " + args[0] + " of ipset"
			}
		case "-m":
			asked = r.matches(args[0])
		case "--comment":
			asked = always
		case "-j", "-g":
			r.target(w, args)
			return r // what follows is the target's
		default:
			if !strings.HasPrefix(w, "-") {
				continue // an argument
			}
		}
		if not {
			asked, not = asked.not(), false
		}
		r.and(asked)
	}
	return r
}

// holdsVXLAN reports whether ports such as 53,4000:5000 have VXLAN's among them.
func holdsVXLAN(ports string) bool {
	return slices.ContainsFunc(strings.Split(ports, ","), func(some string) bool {
		from, to, isRange := strings.Cut(some, ":")
		first, err := strconv.Atoi(from)
		last, err2 := first, err
		if isRange {
			last, err2 = strconv.Atoi(to)
		}
		return err == nil && err2 == nil && first <= vxlanPort && vxlanPort <= last
	})
}

// matches is what an extension asks of a frame before its options are known.
func (r *firewallRule) matches(extension string) fit {
	r.tracks = r.tracks || slices.Contains(xtTracks, extension)
	switch extension {
	case "udp", "multiport", "set", "comment":
		return always // by itself; its options say what it asks
	case "u32", "bpf":
		r.hidden = "what a program of " + extension + " says"
	}
	return maybe
}

// target takes what a rule does. An extension, such as LOG, is a jump that leads to no chain.
func (r *firewallRule) target(how string, words []string) {
	r.tracks = r.tracks || slices.Contains(xtTracks, words[0])
	switch words[0] {
	case "ACCEPT", "DROP", "REJECT", "RETURN":
		r.verdict = strings.ToLower(words[0])
	case "NOTRACK":
		r.untracked = true
	case "CT":
		r.untracked = slices.Contains(words, "--notrack")
	default:
		r.verdict, r.to = map[string]string{"-j": "jump", "-g": "goto"}[how], words[0]
	}
}

// xtTracks are the extensions of iptables that make the kernel track connections.
var xtTracks = []string{"conntrack", "state", "MASQUERADE", "SNAT", "DNAT", "REDIRECT"}

// foreign takes a match or target of iptables of which nft tells no more than the
// name, and older releases not even that.
func (r *firewallRule) foreign(what json.RawMessage) {
	var x struct{ Type, Name string }
	_ = json.Unmarshal(what, &x) // null: then it has no name
	switch r.tracks = r.tracks || slices.Contains(xtTracks, x.Name); {
	case x.Name == "REJECT":
		r.verdict = "reject"
	case x.Type == "target", x.Name == "comment":
	case slices.Contains([]string{"", "udp", "multiport", "set", "u32", "bpf"}, x.Name):
		r.hidden = strings.TrimSuffix("what only iptables-nft-save shows: "+x.Name, ": ")
		fallthrough
	default:
		r.and(maybe)
	}
}
