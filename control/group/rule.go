package group

import (
	"fmt"
	"regexp"
	"slices"

	"replug/directory/vnet"
)

var ruleForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// complete checks the rules of a group and fills in what was left open. Groups are
// the names that a rule may say of the other end.
func complete(rules []vnet.Rule, groups map[string]bool) ([]vnet.Rule, error) {
	rules = slices.Clone(rules)
	names := make(map[string]bool, len(rules))
	count := make(map[vnet.Direction]int)
	for i := range rules {
		r := &rules[i]
		if err := check(r, groups); err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Name, err)
		}
		if names[r.Name] {
			return nil, fmt.Errorf("%w rule %q: two have the name", ErrInvalid, r.Name)
		}
		names[r.Name] = true
		if count[r.Direction]++; count[r.Direction] > vnet.MaxRules {
			return nil, fmt.Errorf("%w: more than %d rules %q; sum some up in one prefix or port range", ErrExhausted, vnet.MaxRules, r.Direction)
		}
	}
	return rules, nil
}

func check(r *vnet.Rule, groups map[string]bool) error {
	switch {
	case !ruleForm.MatchString(r.Name):
		return fmt.Errorf("%w name: lower-case letters, digits and dashes, 1 to 63", ErrInvalid)
	case r.Priority == 0:
		return fmt.Errorf("%w priority 0: 1 to 65535, the lowest decides", ErrInvalid)
	case r.Direction != vnet.In && r.Direction != vnet.Out:
		return fmt.Errorf("%w direction %q: in or out, as the VM sees it", ErrInvalid, r.Direction)
	case r.Action != vnet.Allow && r.Action != vnet.Deny:
		return fmt.Errorf("%w action %q: allow or deny", ErrInvalid, r.Action)
	}
	if err := checkRemote(r, groups); err != nil {
		return err
	}
	return checkWhat(r)
}

// checkRemote checks what a rule says of the other end.
func checkRemote(r *vnet.Rule, groups map[string]bool) error {
	p := r.Remote
	switch {
	case r.RemoteGroup != "" && p.IsValid():
		return fmt.Errorf("%w: both prefix %s and group %s are the other end; make two rules", ErrInvalid, p, r.RemoteGroup)
	case r.RemoteGroup != "" && !groups[r.RemoteGroup]:
		return fmt.Errorf("%w: there is no group %s in the network; create it first", ErrInvalid, r.RemoteGroup)
	case !p.IsValid():
		return nil
	case p.Addr().Is4In6() || p.Addr().Zone() != "":
		return fmt.Errorf("%w prefix %s: neither an IPv4 prefix nor a plain IPv6 one", ErrInvalid, p)
	case p != p.Masked():
		return fmt.Errorf("%w prefix %s: host bits are set; write %s", ErrInvalid, p, p.Masked())
	case r.Protocol == vnet.ICMP && p.Addr().Is6(), r.Protocol == vnet.ICMPv6 && p.Addr().Is4():
		return fmt.Errorf("%w: %s has no packets from or to %s; icmp is of IPv4, icmpv6 of IPv6", ErrInvalid, r.Protocol, p)
	}
	return nil
}

// checkWhat checks protocol, ports and ICMP type.
func checkWhat(r *vnet.Rule) error {
	if r.MaxPort == 0 {
		r.MaxPort = r.MinPort
	}
	switch {
	case r.MaxPort != 0 && !r.Protocol.HasPorts():
		return fmt.Errorf("%w: %s has no ports; leave them out, or say tcp, udp or sctp", ErrInvalid, r.Protocol)
	case r.MinPort > r.MaxPort || r.MinPort == 0 && r.MaxPort != 0:
		return fmt.Errorf("%w ports %d-%d: the first is at least 1 and not above the second", ErrInvalid, r.MinPort, r.MaxPort)
	case r.ICMPType != nil && r.Protocol != vnet.ICMP && r.Protocol != vnet.ICMPv6:
		return fmt.Errorf("%w: %s has no ICMP type; leave it out, or say icmp or icmpv6", ErrInvalid, r.Protocol)
	}
	return nil
}
