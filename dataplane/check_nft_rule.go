package dataplane

import (
	"encoding/json"
	"slices"
	"strings"
)

// An nftReader reads rules of one chain of nftables as libnftables-json (5) describes
// them. A rule for frames of the other family alone says nothing but that the kernel
// tracks connections: it then does so for all families of the table.
type nftReader struct {
	of   family
	sets nftSets
	in   chainName
}

// rule reads a rule: a verdict map makes one for each of its elements.
func (n nftReader) rule(expr []json.RawMessage) []firewallRule {
	var all []firewallRule
	r := firewallRule{table: n.in.table, chain: n.in.name, fits: always}
	for _, e := range expr {
		var one map[string]json.RawMessage
		if json.Unmarshal(e, &one) != nil {
			r.and(maybe)
		}
		for word, what := range one {
			switch word {
			case "accept", "drop", "reject", "return", "jump", "goto":
				r.decide(word, what)
			case "match":
				n.match(&r, what)
			case "vmap":
				all = append(all, n.verdicts(r, what)...)
				r.tracks = r.tracks || strings.Contains(string(what), `"ct"`)
			case "xt":
				r.foreign(what)
			case "notrack":
				r.untracked = true
			case "masquerade", "snat", "dnat", "redirect":
				r.tracks = true
			case "counter", "log", "mangle":
			default: // a limit, a quota, what a later release knows
				r.and(maybe)
			}
		}
	}
	return append(all, r)
}

func (r *firewallRule) decide(verdict string, what json.RawMessage) {
	var to struct{ Target string }
	_ = json.Unmarshal(what, &to) // null, or how to reject: there is no target
	r.verdict, r.to = verdict, to.Target
}

// An nftField is what nftables looks at.
type nftField struct {
	Payload struct{ Protocol, Field, Base string }
	Meta    struct{ Key string }
	Concat  []nftField
}

func (n nftReader) match(r *firewallRule, what json.RawMessage) {
	var m struct {
		Op    string
		Left  json.RawMessage
		Right any
	}
	if json.Unmarshal(what, &m) != nil {
		r.and(maybe)
		return
	}
	r.tracks = r.tracks || strings.Contains(string(what), `"ct"`)
	n.ask(r, m.Left, m.Op, m.Right)
}

// verdicts are the rules that a verdict map is, behind what its own rule asks.
func (n nftReader) verdicts(r firewallRule, what json.RawMessage) []firewallRule {
	var m struct {
		Key  json.RawMessage
		Data any
	}
	if json.Unmarshal(what, &m) != nil {
		return nil
	}
	var all []firewallRule
	elements, _ := n.elements(m.Data)
	for _, e := range elements {
		pair, _ := e.([]any)
		if len(pair) != 2 {
			continue
		}
		one := r
		n.ask(&one, m.Key, "==", pair[0])
		verdict, _ := pair[1].(map[string]any)
		for word, to := range verdict {
			b, _ := json.Marshal(to) // it comes from JSON
			one.decide(word, b)
		}
		all = append(all, one)
	}
	return all
}

// elements are those of a set or map that is written out, or has a name.
func (n nftReader) elements(of any) (all []any, isSet bool) {
	switch v := of.(type) {
	case []any:
		return v, true
	case string:
		if name, ok := strings.CutPrefix(v, "@"); ok {
			return n.sets[chainName{n.in.table, name}], true
		}
	case map[string]any:
		all, isSet = v["set"].([]any)
	}
	return all, isSet
}

// ask adds to a rule that a field is compared with a value.
func (n nftReader) ask(r *firewallRule, left json.RawMessage, op string, right any) {
	var field nftField
	if json.Unmarshal(left, &field) != nil {
		r.and(maybe)
		return
	}
	fields := field.Concat
	if fields == nil {
		fields = []nftField{field}
	}
	port := false
	for _, f := range fields {
		if f.foreign(n.of) {
			r.and(never)
			return
		}
		port = port || f.isPort()
	}
	if r.port = r.port || port; !port && (field.Payload.Base == "th" || strings.Contains(string(left), `"dport"`)) {
		r.hidden = "bits of the port"
	}
	r.and(n.compare(fields, op, right))
}

// compare is the outcome of a comparison for a VXLAN frame.
func (n nftReader) compare(fields []nftField, op string, right any) fit {
	switch op {
	case "==", "in":
		return n.holds(right, fields)
	case "!=":
		return n.holds(right, fields).not()
	}
	than, isNumber := right.(float64)
	if !isNumber || !fields[0].isPort() {
		return maybe
	}
	switch op {
	case "<":
		return yes(vxlanPort < than)
	case "<=":
		return yes(vxlanPort <= than)
	case ">":
		return yes(vxlanPort > than)
	case ">=":
		return yes(vxlanPort >= than)
	}
	return maybe
}

// foreign reports whether a field is one that a VXLAN frame of a family doesn't have.
func (f nftField) foreign(of family) bool {
	switch f.Payload.Protocol {
	case "ip":
		return of != ipv4
	case "ip6":
		return of != ipv6
	}
	return slices.Contains([]string{"tcp", "icmp", "igmp", "icmpv6", "sctp", "dccp", "udplite", "esp", "ah", "comp", "gre"}, f.Payload.Protocol)
}

func (f nftField) isPort() bool {
	return f.Payload.Field == "dport" && (f.Payload.Protocol == "udp" || f.Payload.Protocol == "th")
}

// known is what a VXLAN frame has in a field, in all ways to say it; nothing where that
// depends on the frame.
func (f nftField) known(of family) []any {
	switch {
	case f.isPort():
		return []any{float64(vxlanPort)}
	case f.Meta.Key == "l4proto", f.Payload.Protocol == "ip" && f.Payload.Field == "protocol", f.Payload.Protocol == "ip6" && f.Payload.Field == "nexthdr":
		return []any{"udp", 17.}
	case f.Meta.Key == "nfproto":
		return [][]any{ipv4: {"ipv4", 2.}, ipv6: {"ipv6", 10.}}[of]
	case f.Meta.Key == "protocol":
		return [][]any{ipv4: {"ip", float64(0x0800)}, ipv6: {"ip6", float64(0x86dd)}}[of]
	}
	return nil
}

// holds reports whether a value, or one of a set, is what a frame has in its fields.
func (n nftReader) holds(value any, fields []nftField) fit {
	if all, ok := n.elements(value); ok {
		best := never
		for _, one := range all {
			best = max(best, n.holds(one, fields))
		}
		return best
	}
	v, _ := value.(map[string]any)
	if elem, ok := v["elem"].(map[string]any); ok { // with a counter, a comment or a time
		return n.holds(elem["val"], fields)
	}
	if each, ok := v["concat"].([]any); ok {
		worst := always
		for i, f := range fields[:min(len(fields), len(each))] {
			worst = min(worst, n.holds(each[i], []nftField{f}))
		}
		return worst
	}
	return fields[0].is(value, n.of)
}

// is reports whether a frame has a value, or one of a range, in a field.
func (f nftField) is(value any, of family) fit {
	known := f.known(of)
	switch {
	case value == "*":
		return always
	case known == nil:
		return maybe
	}
	v, _ := value.(map[string]any)
	if ends, _ := v["range"].([]any); len(ends) == 2 {
		first, _ := ends[0].(float64)
		last, _ := ends[1].(float64)
		return yes(slices.ContainsFunc(known, func(k any) bool { x, ok := k.(float64); return ok && first <= x && x <= last }))
	}
	return yes(slices.Contains(known, value))
}
