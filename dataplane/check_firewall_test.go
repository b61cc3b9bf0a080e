package dataplane

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The rules of either family judge VXLAN over it, and say nothing of the other.
func TestRulesAgainstVXLAN(t *testing.T) {
	const in, drops = "add chain inet t in { type filter hook input priority 0; }; ", "add chain inet t in { type filter hook input priority 0; policy drop; }; "
	const ports, aside = "add set inet t ports { type inet_service; flags interval; elements = { 53, 4700-4800 }; }; ", "add chain inet t aside; "
	for name, c := range map[string]struct {
		nft, iptables string
		over4, over6  State
	}{
		"none":                      {"", "", Have, Have},
		"policy accept":             {in, "", Have, Have},
		"policy drop":               {drops, "", Lack, Lack},
		"drop, but this port":       {drops + "add rule inet t in udp dport { 53, 4789 } accept", "", Have, Have},
		"before the input chain":    {"add chain inet t pre { type filter hook prerouting priority -300; policy drop; }", "", Lack, Lack},
		"of forwarded frames":       {"add chain inet t f { type filter hook forward priority 0; policy drop; }", "", Have, Have},
		"of the host's own frames":  {"add chain inet t o { type filter hook output priority 0; policy drop; }", "", Have, Have},
		"by its port":               {in + "add rule inet t in udp dport 4789 drop", "", Lack, Lack},
		"rejected":                  {in + "add rule inet t in udp dport 4789 reject", "", Lack, Lack},
		"all that is left":          {in + "add rule inet t in tcp dport 22 accept; add rule inet t in counter reject with icmpx admin-prohibited", "", Lack, Lack},
		"all that is left of TCP":   {in + "add rule inet t in meta l4proto tcp drop", "", Have, Have},
		"all, where nobody goes":    {"add chain inet t aside; add rule inet t aside drop", "", Have, Have},
		"of ARP":                    {"add table arp t; add chain arp t in { type filter hook input priority 0; policy drop; }", "", Have, Have},
		"a table of IPv4":           {"add table ip t; add chain ip t in { type filter hook input priority 0; policy drop; }", "", Lack, Have},
		"a table of IPv6":           {"add table ip6 t; add chain ip6 t in { type filter hook input priority 0; }; add rule ip6 t in udp dport 4789 drop", "", Have, Lack},
		"IPv4 in a common table":    {in + "add rule inet t in meta nfproto ipv4 udp dport 4789 drop", "", Lack, Have},
		"all IPv6 in one":           {in + "add rule inet t in meta nfproto ipv6 drop", "", Have, Lack},
		"all but IPv6 in one":       {in + "add rule inet t in meta protocol != ip6 drop", "", Lack, Have},
		"all of both in one":        {in + "add rule inet t in meta nfproto { ipv4, ipv6 } drop", "", Lack, Lack},
		"drop, but from IPv4 peers": {drops + "add rule inet t in ip saddr 10.0.0.0/8 udp dport 4789 accept", "", Have, Lack},
		"drop, but from IPv6 peers": {drops + "add rule inet t in ip6 saddr . udp dport { fd64::7 . 4789 } accept", "", Lack, Have},
		"a range":                   {in + "add rule inet t in udp dport 4000-5000 drop", "", Lack, Lack},
		"a range beside it":         {in + "add rule inet t in udp dport 4790-5000 drop", "", Have, Have},
		"a set of a range":          {in + "add rule inet t in udp dport { 4700-4800 } drop", "", Lack, Lack},
		"a set, and a range":        {in + "add rule inet t in udp dport { 53, 4700-4800 } drop", "", Lack, Lack},
		"a set without it":          {in + "add rule inet t in udp dport { 53, 4700-4788, 4790-4800 } drop", "", Have, Have},
		"elements with counters":    {in + "add rule inet t in udp dport { 53 counter, 4700-4800 counter } drop", "", Lack, Lack},
		"all ports but one":         {in + "add rule inet t in udp dport != 53 drop", "", Lack, Lack},
		"all ports but a range":     {in + "add rule inet t in udp dport != 4000-5000 drop", "", Have, Have},
		"ports from it on":          {in + "add rule inet t in udp dport >= 4789 drop", "", Lack, Lack},
		"ports above it":            {in + "add rule inet t in udp dport > 4789 drop", "", Have, Have},
		"ports up to it":            {in + "add rule inet t in udp dport <= 4789 drop", "", Lack, Lack},
		"ports below it":            {in + "add rule inet t in udp dport < 4789 drop", "", Have, Have},
		"a set with a name":         {ports + in + "add rule inet t in udp dport @ports drop", "", Lack, Lack},
		"all but those of one":      {ports + in + "add rule inet t in udp dport != @ports drop", "", Have, Have},
		"pairs with a name":         {"add set inet t pairs { type inet_proto . inet_service; flags interval; elements = { tcp . 4000-5000, udp . 4700-4800 }; }; " + in + "add rule inet t in meta l4proto . th dport @pairs drop", "", Lack, Lack},
		"pairs of TCP":              {in + "add rule inet t in meta l4proto . th dport { tcp . 4000-5000, udp . 53 } drop", "", Have, Have},
		"a port of TCP":             {in + "add rule inet t in tcp dport 4000-5000 drop", "", Have, Have},
		"a port of several":         {in + "add rule inet t in meta l4proto { tcp, udp } th dport 4000-5000 drop", "", Lack, Lack},
		"a sender's port":           {in + "add rule inet t in udp sport 4789 drop", "", Have, Have},
		"all of UDP":                {in + "add rule inet t in meta l4proto udp drop", "", Lack, Lack},
		"drop, but a range":         {drops + "add rule inet t in udp dport 4000-5000 accept", "", Have, Have},
		"drop, but a named set":     {ports + drops + "add rule inet t in udp dport @ports accept", "", Have, Have},
		"drop, but another range":   {drops + "add rule inet t in udp dport 4790-5000 accept", "", Lack, Lack},
		"accepted, then dropped":    {in + "add rule inet t in ip saddr 10.0.0.0/8 udp dport 4789 accept; add rule inet t in udp dport 1024-65535 drop", "", Have, Lack},
		"dropped, then accepted":    {in + "add rule inet t in udp dport 1024-65535 drop; add rule inet t in udp dport 4789 accept", "", Lack, Lack},
		"accepted, dropped later":   {in + "add rule inet t in udp dport 4789 accept; add chain inet t late { type filter hook input priority 7; policy drop; }", "", Lack, Lack},
		"dropped for some":          {in + "add rule inet t in ip saddr 10.0.0.0/8 udp dport 4000-5000 drop", "", Unknown, Have},
		"all of some":               {in + "add rule inet t in ip saddr 10.0.0.0/8 drop", "", Have, Have},
		"all above a rate":          {in + "add rule inet t in limit rate over 7/second drop", "", Have, Have},
		"bits of the port":          {in + "add rule inet t in udp dport & 0xff00 == 0x1200 drop", "", Unknown, Unknown},
		"a chain for it":            {aside + in + "add rule inet t in udp dport 4000-5000 jump aside; add rule inet t aside ip saddr 10.0.0.0/8 return; add rule inet t aside drop", "", Have, Lack},
		"a chain for TCP":           {aside + in + "add rule inet t in meta l4proto tcp goto aside; add rule inet t aside drop", "", Have, Have},
		"a chain for a device":      {aside + drops + "add rule inet t in iifname up0 jump aside; add rule inet t aside udp dport 4789 accept", "", Have, Have},
		"a chain, then the rest":    {aside + in + "add rule inet t in goto aside; add rule inet t in drop; add rule inet t aside tcp dport 22 accept", "", Have, Have},
		"verdicts of ports":         {in + "add rule inet t in udp dport vmap { 53 : accept, 4000-5000 : drop }", "", Lack, Lack},
		"verdicts of other ports":   {in + "add rule inet t in udp dport vmap { 4000-4788 : drop, 4789 : accept }; add rule inet t in drop", "", Have, Have},
		"verdicts of states":        {in + "add rule inet t in ct state vmap { established : accept, invalid : drop }", "", Have, Have},
		"verdicts with a name":      {"add map inet t what { type inet_service : verdict; flags interval; elements = { 4000-5000 : drop }; }; " + in + "add rule inet t in udp dport vmap @what", "", Lack, Lack},
		"verdicts of protocols":     {aside + in + "add rule inet t in meta l4proto vmap { tcp : drop, udp : jump aside }; add rule inet t aside udp dport 4000-5000 drop", "", Lack, Lack},
		"iptables-nft, states":      {"", "iptables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP", Have, Have},
		"iptables-nft, policy":      {"", "ip6tables-nft -P INPUT DROP", Have, Lack},
		"iptables-nft, a range":     {"", "iptables-nft -A INPUT -p udp --dport 4000:5000 -j DROP", Lack, Have},
		"iptables-nft, ports":       {"", "iptables-nft -A INPUT -p udp -m multiport --dports 53,4700:4800 -j DROP", Lack, Have},
		"ip6tables-nft, ports":      {"", "ip6tables-nft -A INPUT -p udp -m multiport --dports 4789 -j DROP", Have, Lack},
		"iptables-nft, others":      {"", "iptables-nft -A INPUT -p udp -m multiport --dports 53,4790:4800 -j DROP", Have, Have},
		"iptables-nft, all but it":  {"", "iptables-nft -A INPUT -p udp -m multiport ! --dports 53,4700:4800 -j DROP", Have, Have},
		"iptables-nft, of TCP":      {"", "iptables-nft -A INPUT -p tcp -m multiport --dports 4700:4800 -j DROP", Have, Have},
		"iptables-nft, but ports":   {"", "iptables-nft -P INPUT DROP\niptables-nft -A INPUT -p udp -m multiport --dports 53,4700:4800 -j ACCEPT", Have, Have},
		"iptables-nft, the rest":    {"", "iptables-nft -A INPUT -j REJECT", Lack, Have},
		"iptables-nft, a chain":     {"", "iptables-nft -N aside\niptables-nft -A INPUT -p udp -m multiport --dports 4700:4800 -g aside\niptables-nft -A aside -j REJECT", Lack, Have},
		"iptables-nft beside nft":   {"", "iptables-nft -A INPUT -p udp -m multiport --dports 53 -j DROP\nnft add rule ip filter INPUT udp dport { 53, 67 } drop", Have, Have},
		"legacy, policy":            {"", "iptables-legacy -P INPUT DROP", Lack, Have},
		"legacy, policy, and port":  {"", "iptables-legacy -P INPUT DROP\niptables-legacy -A INPUT -p udp --dport 4789 -j ACCEPT", Have, Have},
		"legacy, all that is left":  {"", "iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT\niptables-legacy -A INPUT -j REJECT", Lack, Have},
		"legacy, by its port":       {"", "iptables-legacy -A INPUT -p udp -m multiport --dports 53,4789 -j DROP", Lack, Have},
		"legacy, a range":           {"", "iptables-legacy -A INPUT -p udp --dport 4000:5000 -j DROP", Lack, Have},
		"legacy, all but one":       {"", "iptables-legacy -A INPUT -p udp ! --dport 53 -j DROP", Lack, Have},
		"legacy, all but a range":   {"", "iptables-legacy -A INPUT -p udp -m multiport ! --dports 53,4700:4800 -j DROP", Have, Have},
		"legacy, either port":       {"", "iptables-legacy -A INPUT -p udp -m multiport --ports 53,4700:4800 -j DROP", Lack, Have},
		"legacy, of TCP":            {"", "iptables-legacy -A INPUT -p tcp --dport 4789 -j DROP", Have, Have},
		"legacy, accepted before":   {"", "iptables-legacy -A INPUT -p udp --dport 4789 -j ACCEPT\niptables-legacy -A INPUT -p udp --dport 1024:65535 -j DROP", Have, Have},
		"legacy, a chain for it":    {"", "iptables-legacy -N aside\niptables-legacy -A INPUT -p udp --dport 4000:5000 -j aside\niptables-legacy -A aside -s 10.0.0.0/8 -j RETURN\niptables-legacy -A aside -j DROP", Have, Have},
		"legacy, a chain, no rest":  {"", "iptables-legacy -N aside\niptables-legacy -A INPUT -g aside\niptables-legacy -A INPUT -j DROP\niptables-legacy -A aside -p tcp -j DROP", Have, Have},
		"legacy, dropped for some":  {"", "iptables-legacy -A INPUT -s 10.0.0.0/8 -p udp --dport 4789 -j DROP", Unknown, Have},
		"legacy, another port":      {"", "iptables-legacy -A INPUT -p udp --dport 14789 -j DROP", Have, Have},
		"legacy, of forwarded ones": {"", "iptables-legacy -P FORWARD DROP", Have, Have},
		"legacy, before":            {"", "iptables-legacy -t raw -A PREROUTING -p udp --dport 4789 -j DROP", Lack, Have},
	} {
		t.Run(name, func(t *testing.T) {
			aHost(t)
			enforce(t, c.nft, c.iptables)
			for of, want := range []State{ipv4: c.over4, ipv6: c.over6} {
				if got, why := judgeRules(rulesOfHost(family(of))); got != want {
					t.Errorf("%s: got %s (%s), want %s", family(of), got, why, want)
				}
			}
		})
	}
	if got, _ := judgeRules(firewall{}, errNoRules); got != Unknown {
		t.Errorf("rules that can't be read: got %s, want unknown", got)
	}
}

// enforce puts rules in force: of nft in its table inet t, and by iptables of any kind.
func enforce(t *testing.T, nft, iptables string) {
	t.Helper()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run("nft", "add table inet t; "+nft)
	for line := range strings.Lines(iptables) {
		run(strings.Fields(line)...)
	}
}

// Connections are tracked for each family of the table in which a rule asks for their
// state, whatever frames the rule is for.
func TestRulesThatTrack(t *testing.T) {
	const in, raw = "add chain inet t in { type filter hook input priority 0; }; ", "add chain inet t raw { type filter hook prerouting priority -300; }; "
	const states = in + "add rule inet t in ct state established accept; "
	for name, c := range map[string]struct {
		nft, iptables string
		over4, over6  State
	}{
		"nobody asks":                {in, "", Have, Have},
		"states":                     {states, "", Lack, Lack},
		"states of IPv6, by both":    {in + "add rule inet t in meta nfproto ipv6 ct state established accept", "", Lack, Lack},
		"states, a table of IPv6":    {"add table ip6 t; add chain ip6 t in { type filter hook input priority 0; }; add rule ip6 t in ct state established accept", "", Have, Lack},
		"states, not of it":          {states + raw + "add rule inet t raw udp dport 4789 notrack", "", Have, Have},
		"states, not of it by IPv4":  {states + raw + "add rule inet t raw meta nfproto ipv4 udp dport 4789 notrack", "", Have, Lack},
		"states, a verdict for each": {in + "add rule inet t in ct state vmap { established : accept, invalid : drop }", "", Lack, Lack},
		"states, not of any UDP":     {states + raw + "add rule inet t raw meta l4proto udp notrack", "", Have, Have},
		"states, not of a range":     {states + raw + "add rule inet t raw udp dport 4000-5000 notrack", "", Have, Have},
		"states, not of another":     {states + raw + "add rule inet t raw udp dport 4000-4788 notrack", "", Lack, Lack},
		"iptables-nft, states":       {"", "iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", Lack, Have},
		"iptables-nft, not of it":    {"", "iptables-nft -A INPUT -m conntrack --ctstate NEW -j ACCEPT\niptables-nft -t raw -A PREROUTING -p udp -m multiport --dports 4789 -j CT --notrack", Have, Have},
	} {
		t.Run(name, func(t *testing.T) {
			aHost(t)
			enforce(t, c.nft, c.iptables)
			for of, want := range []State{ipv4: c.over4, ipv6: c.over6} {
				if got, why := judgeTracking(rulesOfHost(family(of))); got != want {
					t.Errorf("%s: got %s (%s), want %s", family(of), got, why, want)
				}
			}
		})
	}
}

// What iptables-save prints, where no kernel of this test has it: IPv6, comments,
// tracking.
func TestLegacyRules(t *testing.T) {
	for name, c := range map[string]struct {
		saved           string
		rules, tracking State
	}{
		"IPv6":               {"*filter\n:INPUT DROP [0:0]\nCOMMIT\n", Lack, Have},
		"with a comment":     {"*filter\n:INPUT ACCEPT [7:9]\n-A INPUT -m comment --comment rest -j DROP\nCOMMIT\n", Lack, Have},
		"of one device":      {"*filter\n:INPUT ACCEPT [7:9]\n-A INPUT -i lo -j DROP\nCOMMIT\n", Have, Have},
		"states":             {"*filter\n:INPUT ACCEPT [7:9]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", Have, Lack},
		"states, not of it":  {"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp -m udp --dport 4789 -j CT --notrack\nCOMMIT\n*filter\n:INPUT ACCEPT [7:9]\n-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n", Have, Have},
		"addresses":          {"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n", Have, Lack},
		"a set of ipset":     {"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m set --match-set ports dst -j DROP\nCOMMIT\n", Unknown, Have},
		"a set of senders":   {"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m set --match-set crowd src -j DROP\nCOMMIT\n", Have, Have},
		"drop, but a set":    {"*filter\n:INPUT DROP [0:0]\n-A INPUT -p udp -m set --match-set ports dst -j ACCEPT\nCOMMIT\n", Unknown, Have},
		"comment with words": {"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport 4000:5000 -m comment --comment \"not \\\"-j ACCEPT\\\" -s 10/8\" -j DROP\nCOMMIT\n", Lack, Have},
		"a chain of its own": {"*filter\n:INPUT ACCEPT [0:0]\n:ufw-input - [0:0]\n-A ufw-input -j DROP\nCOMMIT\n", Have, Have},
	} {
		var f firewall
		f.addSaved("ip6tables-legacy", c.saved)
		if got, why := judgeRules(f, nil); got != c.rules {
			t.Errorf("%s: rules %s (%s), want %s", name, got, why, c.rules)
		}
		if got, why := judgeTracking(f, nil); got != c.tracking {
			t.Errorf("%s: tracking %s (%s), want %s", name, got, why, c.tracking)
		}
	}
}

// Without iptables-nft-save nothing shows what a match of iptables-nft asks, and the
// check says so. Nor is it believed for a chain that has changed meanwhile.
func TestForeignRules(t *testing.T) {
	for name, c := range map[string]struct {
		iptables string
		want     State
		says     string
	}{
		"a drop by ports":    {"iptables-nft -A INPUT -p udp -m multiport --dports 53 -j DROP", Unknown, "a rule in chain INPUT of table ip filter may be for the port: it asks for what only iptables-nft-save shows: multiport"},
		"of TCP":             {"iptables-nft -A INPUT -p tcp -m multiport --dports 53 -j DROP", Have, ""},
		"ports, and a drop":  {"iptables-nft -A INPUT -p udp -m multiport --dports 53 -j ACCEPT\niptables-nft -A INPUT -p udp --dport 4000:5000 -j DROP", Unknown, "multiport"},
		"a drop, and ports":  {"iptables-nft -A INPUT -p udp --dport 4000:5000 -j DROP\niptables-nft -A INPUT -p udp -m multiport --dports 53 -j ACCEPT", Lack, "a rule in chain INPUT"},
		"a chain for ports":  {"iptables-nft -N aside\niptables-nft -A INPUT -p udp -m multiport --dports 53 -j aside\niptables-nft -A aside -p udp --dport 4789 -j DROP", Unknown, "chain aside"},
		"drop, but a chain":  {"iptables-nft -P INPUT DROP\niptables-nft -N aside\niptables-nft -A INPUT -p udp -m multiport --dports 53 -j aside\niptables-nft -A aside -p udp --dport 4789 -j ACCEPT", Unknown, "chain aside"},
		"all that is left":   {"iptables-nft -A INPUT -m comment --comment rest -j REJECT", Lack, "chain INPUT"},
		"of local addresses": {"iptables-nft -A INPUT -m addrtype --dst-type BROADCAST -j DROP", Have, ""},
	} {
		t.Run(name, func(t *testing.T) {
			aHost(t)
			enforce(t, "", c.iptables)
			nft, err := exec.LookPath("nft")
			if err != nil {
				t.Fatal(err)
			}
			only := t.TempDir()
			if err := os.Symlink(nft, filepath.Join(only, "nft")); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", only)
			if got, why := judgeRules(rulesOfHost(ipv4)); got != c.want || !strings.Contains(why, c.says) {
				t.Errorf("got %s (%s), want %s with %q", got, why, c.want, c.says)
			}
			save := "#!/bin/sh\necho '*filter'; echo '-A INPUT -j RETURN'; echo '-A INPUT -j RETURN'; echo '-A INPUT -j RETURN'\n"
			if err := os.WriteFile(filepath.Join(only, "iptables-nft-save"), []byte(save), 0o700); err != nil {
				t.Fatal(err)
			}
			if got, why := judgeRules(rulesOfHost(ipv4)); got != c.want || !strings.Contains(why, c.says) {
				t.Errorf("another chain saved: got %s (%s), want %s with %q", got, why, c.want, c.says)
			}
		})
	}
	t.Setenv("PATH", t.TempDir())
	old := firewall{of: ipv4} // of nft 0.9, which doesn't tell an extension's name
	err := old.addNFT([]byte(`{"nftables":[{"chain":{"family":"ip","table":"filter","name":"INPUT","hook":"input","policy":"accept"}},
		{"rule":{"family":"ip","table":"filter","chain":"INPUT","expr":[{"xt":null},{"drop":null}]}}]}`))
	if got, why := judgeRules(old, err); got != Unknown || !strings.Contains(why, "iptables-nft-save") {
		t.Errorf("an extension without a name: got %s (%s), want unknown", got, why)
	}
}
