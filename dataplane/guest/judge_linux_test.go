package guest

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"replug/directory/vnet"
)

// A guest is waited for in the families that it had: one without IPv6 is not thrown
// back again and again in a network that has both.
func TestComplete(t *testing.T) {
	prefixes := func(s string) (all []netip.Prefix) {
		for f := range strings.FieldsSeq(s) {
			all = append(all, netip.MustParsePrefix(f))
		}
		return all
	}
	const old4, old6, new4, new6 = "10.17.34.51/24", "fd17:2839::51/128", "10.23.45.62/22", "fd28:394a::62/128"
	for _, c := range []struct {
		name, old, moved, good string
		want                   bool // at once; later, if the host said nothing, anything will do
	}{
		{"both of both", old4 + " " + old6, new4 + " " + new6, new4 + " " + new6, true},
		{"IPv4 of both", old4 + " " + old6, new4 + " " + new6, new4, false},
		{"IPv6 of both", old4 + " " + old6, new4 + " " + new6, new6, false},
		{"no IPv6 in the guest", old4, new4 + " " + new6, new4, true},
		{"no IPv4 in the guest", old6, new4 + " " + new6, new6, true},
		{"no IPv6 in the new network", old4 + " " + old6, new4, new4, true},
		{"another family", old4, new6, new6, true},
		{"another family, not yet", old4, new6, "", false},
		{"nothing known of the guest", "", new4 + " " + new6, new4, true},
		{"nothing", "", new4, "", false},
		{"the host said nothing", old4, "", new4, true},
		{"the host said nothing, both of both", old4 + " " + old6, "", new6 + " " + new4, true},
		{"the host said nothing, one of both", old4 + " " + old6, "", new6, false},
		{"the host said nothing, nothing leads to it", old4, "", "", false},
	} {
		j := judge{old: prefixes(c.old)}
		if c.moved != "" {
			j.moved = &vnet.Moved{Addrs: prefixes(c.moved)}
		}
		if got := j.complete(prefixes(c.good), false); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
		if got := j.complete(prefixes(c.good), true); got != (c.want || c.moved == "" && c.good != "") {
			t.Errorf("%s, late: %t", c.name, got)
		}
	}
}

// dhcpcd is not told while it is at work, however slow it is; one that only waits is.
func TestClientAtWork(t *testing.T) {
	w := newWorld(t)
	dev, err := netlink.LinkByName(w.nic)
	check(t, err)
	n, err := newNIC()
	check(t, err)
	defer n.close()
	news, err := watchAddrs()
	check(t, err)
	defer news.close()
	for name, work := range map[string]string{"at work": "while :; do :; done", "waits": "exec sleep 1000"} {
		p := exec.Command("sh", "-c", work)
		check(t, p.Start())
		j := judge{nic: n, index: dev.Attrs().Index, moved: &vnet.Moved{Addrs: []netip.Prefix{netip.MustParsePrefix("10.37.91.66/24")}}, patience: time.Second}
		if name == "at work" {
			timer := time.AfterFunc(2*time.Second, func() { check(t, n.nl.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(j.moved.Addrs[0])})) })
			defer timer.Stop()
		}
		_, ok := j.awaitWork(t.Context(), news, []otherClient{{name: dhcpcd, pids: []int{p.Process.Pid}}})
		check(t, p.Process.Kill())
		_ = p.Wait()
		if ok != (name == "at work") {
			t.Errorf("%s: its address was waited for: %t", name, ok)
		}
		if ok {
			check(t, n.clear(j.index, netip.Prefix{}))
		}
	}
}

// The big managers say in a file whether a NIC is theirs. One that has not said it yet
// may have started a moment ago: the agent keeps its hands off.
func TestManages(t *testing.T) {
	m := newMachine(t.TempDir())
	st := linkState{index: 7, name: "eth0"}
	for _, c := range []struct {
		client, file, says string
		want               bool
	}{
		{networkd, "run/systemd/netif/links/7", "", true},
		{networkd, "run/systemd/netif/links/7", "ADMIN_STATE=pending\n", true},
		{networkd, "run/systemd/netif/links/7", "ADMIN_STATE=unmanaged\n", false},
		{networkManager, "run/NetworkManager/devices/7", "", true},
		{networkManager, "run/NetworkManager/devices/7", "[device]\nmanaged=true\n", true},
		{networkManager, "run/NetworkManager/devices/7", "[device]\nmanaged=false\n", false},
	} {
		if c.says != "" {
			check(t, os.MkdirAll(filepath.Dir(m.path(c.file)), 0o755))
			check(t, os.WriteFile(m.path(c.file), []byte(c.says), 0o644))
		}
		if got := m.manages(otherClient{name: c.client, args: []string{c.client}}, st); got != c.want {
			t.Errorf("%s that says %q: %t", c.client, c.says, got)
		}
	}
}

// Who is left alone first, and how long.
func TestTheirs(t *testing.T) {
	one, two := []otherClient{{name: dhcpcd}}, []otherClient{{name: dhcpcd}, {name: dhclient}}
	for _, c := range []struct {
		name    string
		clients []otherClient
		why     reason
		start   bool
		six     bool
		want    time.Duration
	}{
		{"at the start", two, reason{}, true, false, judgeProbing},
		{"dhcpcd at a flap", one, reason{}, false, false, 0},
		{"dhcpcd at a flap, with IPv6", one, reason{}, false, true, judgeProbing},
		{"networkd at a flap", []otherClient{{name: networkd}}, reason{}, false, false, judgeSeen},
		{"both at a flap", []otherClient{{name: networkd}, {name: dhcpcd}}, reason{}, false, false, 0},
		{"dhcpcd without a flap", one, reason{moved: &vnet.Moved{}}, false, false, 0},
		{"dhcpcd at the start, in another network", one, reason{moved: &vnet.Moved{}}, true, false, 0},
		{"one that is deaf to its link", two, reason{}, false, false, 0},
		{"silence", two, reason{stale: 1}, false, false, judgeSilence},
	} {
		l := &linux{six: c.six}
		if got := l.theirs(c.clients, c.why, c.start); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
