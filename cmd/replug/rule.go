package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	pb "replug/control/controlpb"
)

// ruleSyntax is how a rule is written on one line, and what it is made of.
const ruleSyntax = `"PRIORITY NAME in|out allow|deny WHAT [from|to WHOM]"
WHAT is any, a protocol, or tcp/443, udp/5000-5099, icmp/8; WHOM is any, a prefix, or group:NAME`

// parseRule reads a rule from one line, as in "100 https in allow tcp/443 from 10.0.0.0/8".
func parseRule(line string) (*pb.Rule, error) {
	bad := func(why string) error {
		return usageError{fmt.Errorf("rule %q: %s\nA rule is %s", line, why, ruleSyntax)}
	}
	f := strings.Fields(line)
	if len(f) != 5 && len(f) != 7 {
		return nil, bad("it has not 5 or 7 words")
	}
	priority, err := strconv.ParseUint(f[0], 10, 16)
	if err != nil {
		return nil, bad("the priority is a number, 1 to 65535")
	}
	r := &pb.Rule{Priority: uint32(priority), Name: f[1], Direction: f[2], Action: f[3]}
	if err := parseWhat(r, f[4]); err != nil {
		return nil, bad(err.Error())
	}
	if len(f) == 5 {
		return r, nil
	}
	if want := map[string]string{"in": "from", "out": "to"}[r.Direction]; f[5] != want {
		return nil, bad(fmt.Sprintf("after %q comes in ... from, or out ... to, not %q", r.Direction, f[5]))
	}
	if group, ok := strings.CutPrefix(f[6], "group:"); ok {
		r.RemoteGroup = group
	} else if f[6] != "any" {
		r.Remote = f[6]
	}
	return r, nil
}

// parseWhat reads "tcp/443", "udp/5000-5099", "icmp/8", "any".
func parseWhat(r *pb.Rule, s string) error {
	protocol, detail, more := strings.Cut(s, "/")
	if protocol != "any" {
		r.Protocol = protocol
	}
	if !more {
		return nil
	}
	low, high, isRange := strings.Cut(detail, "-")
	if !isRange {
		high = low
	}
	a, err := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	switch {
	case err != nil || err2 != nil:
		return fmt.Errorf("%q is neither a port, a range of ports, nor an ICMP type", detail)
	case strings.HasPrefix(protocol, "icmp") && !isRange:
		t := uint32(a)
		r.IcmpType = &t
	default:
		r.MinPort, r.MaxPort = uint32(a), uint32(b)
	}
	return nil
}

// readRules reads rules from lines, and those of a file: one a line, # comments.
func readRules(lines []string, file string) ([]*pb.Rule, error) {
	if file != "" {
		f := os.Stdin
		if file != "-" {
			var err error
			if f, err = os.Open(file); err != nil {
				return nil, fmt.Errorf("read rules: %w", err)
			}
			defer f.Close()
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			lines = append(lines, s.Text())
		}
	}
	var rules []*pb.Rule
	for _, line := range lines {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		r, err := parseRule(line)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// what prints protocol and ports as parseRule reads them.
func what(r *pb.Rule) string {
	s := r.Protocol
	switch {
	case r.IcmpType != nil:
		s += fmt.Sprintf("/%d", *r.IcmpType)
	case r.MinPort != 0 && r.MinPort == r.MaxPort:
		s += fmt.Sprintf("/%d", r.MinPort)
	case r.MinPort != 0:
		s += fmt.Sprintf("/%d-%d", r.MinPort, r.MaxPort)
	}
	return s
}

// whom prints the other end as parseRule reads it.
func whom(r *pb.Rule) string {
	switch {
	case r.RemoteGroup != "":
		return "group:" + r.RemoteGroup
	case r.Remote != "":
		return r.Remote
	}
	return "any"
}
