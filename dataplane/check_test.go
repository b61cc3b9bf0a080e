package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// aHost puts the test into a network namespace with an uplink of its own.
func aHost(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v (needs root)", err)
	}
	do := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	do(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0", MTU: 1400}, PeerName: "peer0"}))
	up, err := netlink.LinkByName("up0")
	do(err)
	addr, err := netlink.ParseAddr("172.31.9.37/24")
	do(err)
	do(errors.Join(netlink.AddrAdd(up, addr), netlink.LinkSetUp(up)))
}

func found(all []Finding, what string) Finding {
	for _, f := range all {
		if strings.HasPrefix(f.What, what) {
			return f
		}
	}
	return Finding{What: what + ": nobody looked"}
}

// The check sees what is wrong with a host, says what to do, and stops when that
// has been done.
func TestCheckSeesWhatIsWrong(t *testing.T) {
	aHost(t)
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	sysctl := func(value string) {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/up0/rp_filter", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	sysctl("1")
	run("ethtool", "-K", "up0", "gro", "off")
	run("nft", "add table inet host; add chain inet host in { type filter hook input priority 0; policy drop; }; add rule inet host in ct state established accept")
	wrong := map[string]string{ // to what to do about it
		"MTU of up0": "mtu 1550", "merging of received frames": "rx-gro on", "no strict reverse path filter": "rp_filter=2",
		"no firewall rule against UDP 4789": "4789", "no connection tracking": "notrack",
	}
	before := Look(t.TempDir(), "up0", netip.Prefix{})
	for what, do := range wrong {
		if f := found(before, what); f.State != Lack || f.Cost == "" || !strings.Contains(f.Do, do) {
			t.Errorf("wrong, but: %v; want lack with %q", f, do)
		}
	}
	run("ip", "link", "set", "up0", "mtu", "1550")
	run("ethtool", "-K", "up0", "gro", "on")
	sysctl("2")
	run("nft", "insert rule inet host in udp dport 4789 accept; add chain inet host raw { type filter hook prerouting priority -300; }; add rule inet host raw udp dport 4789 notrack")
	after := Look(t.TempDir(), "up0", netip.Prefix{})
	for what := range wrong {
		if f := found(after, what); f.State != Have || f.Cost != "" {
			t.Errorf("put right, but: %v", f)
		}
	}
	for _, what := range []string{"every program of the datapath loads", "clsact filters", "VXLAN devices", "veth devices"} {
		if f := found(after, what); f.State != Have {
			t.Errorf("this kernel: %v, want have", f)
		}
	}
}

// The rules of either family judge VXLAN over it, and say nothing of the other.
func TestRulesAgainstVXLAN(t *testing.T) {
	const in, drops = "add chain inet t in { type filter hook input priority 0; }; ", "add chain inet t in { type filter hook input priority 0; policy drop; }; "
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
		"iptables-nft, states":      {"", "iptables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP", Have, Have},
		"iptables-nft, policy":      {"", "ip6tables-nft -P INPUT DROP", Have, Lack},
		"legacy, policy":            {"", "iptables-legacy -P INPUT DROP", Lack, Have},
		"legacy, policy, and port":  {"", "iptables-legacy -P INPUT DROP\niptables-legacy -A INPUT -p udp --dport 4789 -j ACCEPT", Have, Have},
		"legacy, all that is left":  {"", "iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT\niptables-legacy -A INPUT -j REJECT", Lack, Have},
		"legacy, by its port":       {"", "iptables-legacy -A INPUT -p udp -m multiport --dports 53,4789 -j DROP", Lack, Have},
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
		"nobody asks":               {in, "", Have, Have},
		"states":                    {states, "", Lack, Lack},
		"states of IPv6, by both":   {in + "add rule inet t in meta nfproto ipv6 ct state established accept", "", Lack, Lack},
		"states, a table of IPv6":   {"add table ip6 t; add chain ip6 t in { type filter hook input priority 0; }; add rule ip6 t in ct state established accept", "", Have, Lack},
		"states, not of it":         {states + raw + "add rule inet t raw udp dport 4789 notrack", "", Have, Have},
		"states, not of it by IPv4": {states + raw + "add rule inet t raw meta nfproto ipv4 udp dport 4789 notrack", "", Have, Lack},
		"iptables-nft, states":      {"", "iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", Lack, Have},
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
		"a chain of its own": {"*filter\n:INPUT ACCEPT [0:0]\n:ufw-input - [0:0]\n-A ufw-input -j DROP\nCOMMIT\n", Have, Have},
	} {
		var f firewall
		f.addLegacy("ip6tables-legacy", c.saved)
		if got, why := judgeRules(f, nil); got != c.rules {
			t.Errorf("%s: rules %s (%s), want %s", name, got, why, c.rules)
		}
		if got, why := judgeTracking(f, nil); got != c.tracking {
			t.Errorf("%s: tracking %s (%s), want %s", name, got, why, c.tracking)
		}
	}
}

// An uplink of both families is judged by the rules of the one that the underlay has.
// One is too small for IPv6, and one is too small for anything.
func TestCheckUplink(t *testing.T) {
	aHost(t)
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	six, err := netlink.ParseAddr("fd31:9::37/64")
	if err != nil {
		t.Fatal(err)
	}
	six.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(up, six); err != nil {
		t.Fatal(err)
	}
	pas4, pas6 := netip.MustParsePrefix("100.64.9.0/24"), netip.MustParsePrefix("fd64:9::/112")
	const against, tracks = "no firewall rule against UDP 4789 over ", "no connection tracking of UDP 4789 over "
	enforce(t, "add table ip6 t; add chain ip6 t in { type filter hook input priority 0; policy drop; }; add rule ip6 t in ct state established accept", "")
	for _, c := range []struct {
		pas    netip.Prefix
		family string
		want   State
	}{{pas4, "IPv4", Have}, {pas6, "IPv6", Lack}} {
		all := answer(uplinkProbes("up0", c.pas))
		for _, what := range []string{against + c.family, tracks + c.family} {
			if f := found(all, what); f.State != c.want || f.State == Lack && !strings.Contains(f.Do, c.family) {
				t.Errorf("%s of an underlay of %s: %v, want %s", what, c.pas, f, c.want)
			}
		}
	}
	for _, c := range []struct {
		mtu    int
		pas    netip.Prefix
		needed bool
		cost   string
	}{{1400, netip.Prefix{}, false, "MTU of 1350"}, {1400, pas4, false, "MTU of 1350"}, {1400, pas6, false, "MTU of 1330"}, {1349, pas6, false, "IPv6"},
		{1329, pas4, false, "IPv6"}, {625, pas4, true, "doesn't start"}} {
		if err := netlink.LinkSetMTU(up, c.mtu); err != nil {
			t.Fatal(err)
		}
		all := answer(uplinkProbes("up0", c.pas))
		if f := found(all, "MTU of up0"); f.State != Lack || f.Needed != c.needed || !strings.Contains(f.Cost, c.cost) {
			t.Errorf("MTU %d: %v (needed %t), want %q", c.mtu, f, f.Needed, c.cost)
		}
	}
	if f := answer(uplinkProbes("up7", netip.Prefix{}))[0]; f.State != Lack || !f.Needed || !strings.Contains(f.Do, "--uplink") {
		t.Errorf("no such uplink: %v", f)
	}
}

// Without the capabilities that it needs a root's agent doesn't start, and says which.
func TestCheckCapabilities(t *testing.T) {
	runtime.LockOSThread() // the thread ends with the test: it keeps less than it had
	if state, why := capabilities(os.ReadFile("/proc/thread-self/status")); state != Have {
		t.Fatalf("the test itself is %s %s", state, why)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	drop := func(c int) { data[c/32].Effective &^= 1 << (c % 32) }
	for _, c := range []struct {
		drop []int
		want string
	}{{[]int{unix.CAP_BPF}, ""}, {[]int{unix.CAP_SYS_ADMIN, unix.CAP_NET_RAW}, "without CAP_NET_RAW, CAP_BPF"}} {
		for _, n := range c.drop {
			drop(n)
		}
		if err := unix.Capset(&head, &data[0]); err != nil {
			t.Fatal(err)
		}
		state, why := capabilities(os.ReadFile("/proc/thread-self/status"))
		if state != is(c.want == "") || why != c.want {
			t.Errorf("without %v: %s %q, want %q", c.drop, state, why, c.want)
		}
	}
	if err := Missing(t.TempDir()); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "CAP_NET_RAW") {
		t.Errorf("an agent without them: %v", err)
	}
}

func TestLockdown(t *testing.T) {
	for mode, want := range map[string]bool{"[none] integrity confidentiality\n": false, "none [integrity] confidentiality\n": false, "none integrity [confidentiality]\n": true} {
		if got := lockdown([]byte(mode), nil); strings.Contains(got, "lockdown=integrity") != want {
			t.Errorf("%s: says %q", mode, got)
		}
	}
	if got := lockdown(nil, os.ErrNotExist); got != "" {
		t.Errorf("a kernel without: says %q", got)
	}
}

func TestReport(t *testing.T) {
	all := []Finding{{What: "tun devices", State: Lack, Needed: true, Cost: "no taps", Do: "modprobe tun"}, {What: "tcx", State: Have, Seen: "tried"}}
	var text, machine bytes.Buffer
	if err := Report(&text, all, false); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want ErrMissing", err)
	}
	if want := "LACK     tun devices\n         cost: no taps\n         do:   modprobe tun\nhave     tcx (tried)\n"; text.String() != want {
		t.Errorf("got\n%swant\n%s", &text, want)
	}
	if err := Report(&machine, all[1:], true); err != nil {
		t.Errorf("nothing is missing: got %v", err)
	}
	var back []Finding
	if err := json.Unmarshal(machine.Bytes(), &back); err != nil || len(back) != 1 || back[0] != all[1] {
		t.Errorf("as JSON: got %v, %v, want %v", back, err, all[1:])
	}
}
