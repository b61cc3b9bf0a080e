package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
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
	before := Look(t.TempDir(), "up0")
	for what, do := range wrong {
		if f := found(before, what); f.State != Lack || f.Cost == "" || !strings.Contains(f.Do, do) {
			t.Errorf("wrong, but: %v; want lack with %q", f, do)
		}
	}
	run("ip", "link", "set", "up0", "mtu", "1550")
	run("ethtool", "-K", "up0", "gro", "on")
	sysctl("2")
	run("nft", "insert rule inet host in udp dport 4789 accept; add chain inet host raw { type filter hook prerouting priority -300; }; add rule inet host raw udp dport 4789 notrack")
	after := Look(t.TempDir(), "up0")
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

func TestRulesAgainstVXLAN(t *testing.T) {
	for name, c := range map[string]struct {
		rules string
		want  State
	}{
		"none":                {"", Have},
		"policy accept":       {"add chain inet t in { type filter hook input priority 0; policy accept; }", Have},
		"policy drop":         {"add chain inet t in { type filter hook input priority 0; policy drop; }", Lack},
		"drop, but this port": {"add chain inet t in { type filter hook input priority 0; policy drop; }; add rule inet t in udp dport { 53, 4789 } accept", Have},
		"of forwarded frames": {"add chain inet t f { type filter hook forward priority 0; policy drop; }", Have},
		"by its port":         {"add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 4789 drop", Lack},
		"rejected":            {"add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 4789 reject", Lack},
	} {
		t.Run(name, func(t *testing.T) {
			aHost(t)
			if out, err := exec.Command("nft", "add table inet t; "+c.rules).CombinedOutput(); err != nil {
				t.Fatalf("nft: %v: %s", err, out)
			}
			if got, why := judgeRules(rulesOfHost()); got != c.want {
				t.Errorf("got %s (%s), want %s", got, why, c.want)
			}
		})
	}
	if got, _ := judgeRules(firewall{}, errNoRules); got != Unknown {
		t.Errorf("rules that can't be read: got %s, want unknown", got)
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
