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
		stripping string
		want      State
	}{{"on", Lack}, {"off", Have}} {
		if out, err := exec.Command("ethtool", "-K", "up0", "rx-vlan-offload", c.stripping).CombinedOutput(); err != nil {
			t.Fatalf("ethtool: %v: %s", err, out)
		}
		if f := found(answer(uplinkProbes("up0", pas4)), "VLAN tags before XDP"); f.State != c.want {
			t.Errorf("a NIC whose stripping of tags is %s: %v, want %s", c.stripping, f, c.want)
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
