package guests

import (
	"context"
	"fmt"
	"strings"
)

var sprint = fmt.Sprintf

// A Client is a way in which a guest gets its addresses.
type Client struct {
	Name    string
	Agent   bool              // replug-guest runs beside it, or alone
	watches bool              // it follows its link by itself
	files   map[string]string // by their paths in the guest
	start   string            // a script that returns, in a machine with systemd
	room    string            // the same where there is none; "": it doesn't work there
	rest    string            // a script that returns when it has nothing more to do; "": it never is late
}

// Ought reports whether a guest of the client has to follow: with the agent, by
// itself, or because the kernel makes its address.
func (c Client) Ought(f Family) bool { return c.Agent || c.watches || f.SLAAC }

// mayKeep reports whether the guest may keep its old address: one that it has made of
// a prefix stays until its lifetime is over, deprecated (RFC 4862, section 5.5.3), if
// the new router is heard before the cut of the link.
func (c Client) mayKeep(f Family) bool { return f.SLAAC && !c.Agent }

// swaps returns how many of so many swaps the client's line has. One that follows by
// itself has its figures from the line without the agent: half of them show that the
// two get on.
func (c Client) swaps(runs int) int {
	if c.Agent && c.watches {
		return (runs + 1) / 2
	}
	return runs
}

// fitsRoom reports whether it runs without a machine. networkd (252) was seen there to
// take no prefix any more after its first swap, in one of some seven runs and on each
// rung, for a cause that is not known; in machines it wasn't.
func (c Client) fitsRoom(f Family) bool {
	return c.start == "" || c.room != "" && !(f.SLAAC && c.Name == "systemd-networkd")
}

// bare starts networkd where there is neither systemd nor udev: it takes a NIC for
// ready when it can't write to /sys, and knows itself by the machine's id. The agent
// finds it by the bus.
const bare = `tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
mount -o remount,ro /sys 2>/dev/null || mount -t sysfs -o ro none /sys
mkdir -p /run/dbus /run/systemd/netif
chown systemd-network: /run/systemd/netif
dbus-daemon --system --fork
setsid /lib/systemd/systemd-networkd >/run/networkd.log 2>&1 </dev/null &
`

const udhcpcScript = `#!/bin/sh
# What the example that comes with busybox does.
case $1 in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound|renew)
	ip addr flush dev $interface
	ip addr add $ip/${mask:-24} dev $interface
	set -- $staticroutes
	while [ $# -ge 2 ]; do
		if [ $2 = 0.0.0.0 ]; then ip route replace $1 dev $interface; else ip route replace $1 via $2 dev $interface; fi
		shift 2
	done
	[ -n "$staticroutes" ] || [ -z "$router" ] || ip route replace default via ${router%% *} dev $interface ;;
esac
`

// dhcpcdRests waits, for 20 s at most, until dhcpcd has run none of its scripts for half
// a second. It runs one for each advertisement of a router, an emulated guest takes most
// of a second for it, and only then it hears of its link.
const dhcpcdRests = `n=0 i=0
while [ $n -lt 5 ] && [ $i -lt 200 ]; do
	n=$((n + 1)) i=$((i + 1))
	! pgrep -f '[d]hcpcd-run-hooks' >/dev/null || n=0
	sleep 0.1
done`

// linkLocal waits until a DHCPv6 client can speak.
const linkLocal = "ip link set eth0 up; until ip -6 addr show dev eth0 scope link -tentative | grep -q inet6; do sleep 0.1; done\n"

// Clients returns the clients of the table: each alone, then with the agent.
func Clients(f Family) []Client {
	dhclient := ""
	if f.V6 {
		dhclient += linkLocal
	}
	if f.V4 {
		dhclient += "dhclient -4 -pf /run/dhclient4.pid eth0\n"
	}
	if f.V6 && !f.SLAAC {
		dhclient += "dhclient -6 -pf /run/dhclient6.pid -lf /var/lib/dhcp/dhclient6.leases eth0\n"
	}
	udhcpc := "busybox udhcpc -i eth0 -s /etc/udhcpc.script -t 20 -T 1 -A 1 -b -S\n"
	all := []Client{
		{Name: "replug-guest", Agent: true},
		{Name: "systemd-networkd", watches: true, files: map[string]string{"/etc/systemd/network/10-eth0.network": networkd(f)}, start: "systemctl start systemd-networkd", room: bare},
		{Name: "NetworkManager", watches: true, files: map[string]string{"/etc/NetworkManager/system-connections/wired.nmconnection": manager(f)}, start: "systemctl start NetworkManager"},
		{Name: "dhcpcd", watches: true, files: map[string]string{"/etc/dhcpcd.conf": dhcpcd(f)}, start: "systemctl start dhcpcd", room: "dhcpcd -b -q --nodev", rest: dhcpcdRests},
		{Name: "ifupdown with dhclient", files: map[string]string{"/etc/network/interfaces": interfaces(f)}, start: "ifup eth0", room: "mkdir -p /run/network; ifup eth0"},
	}
	if !f.SLAAC {
		all = append(all, Client{Name: "dhclient", start: dhclient, room: dhclient})
	}
	if f.V4 && !f.V6 {
		all = append(all, Client{Name: "busybox udhcpc", files: map[string]string{"/etc/udhcpc.script": udhcpcScript}, start: udhcpc, room: udhcpc})
	}
	for _, c := range all[1:] {
		c.Agent = true
		all = append(all, c)
	}
	return all
}

func networkd(f Family) string {
	return sprint("[Match]\nName=eth0\n[Network]\nDHCP=%s\nIPv6AcceptRA=%s\n", f.pick("ipv4", "ipv6", "yes", "no"), f.pick("no", "yes", "yes", "yes"))
}

func manager(f Family) string {
	return sprint("[connection]\nid=wired\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=%s\n[ipv6]\nmethod=%s\naddr-gen-mode=eui64\n",
		f.pick("auto", "disabled", "auto", "disabled"), f.pick("disabled", "auto", "auto", "auto"))
}

// dhcpcd is Debian's file, with the family, and with the address that the MAC makes
// in place of one that nobody knows.
func dhcpcd(f Family) string {
	return sprint("hostname\nduid\npersistent\noption rapid_commit\noption domain_name_servers, domain_name, domain_search\noption classless_static_routes\n"+
		"option interface_mtu\noption host_name\nrequire dhcp_server_identifier\nslaac hwaddr\nallowinterfaces eth0\n%s\n", f.pick("ipv4only", "ipv6only", "", "ipv6only"))
}

func interfaces(f Family) string {
	return "auto eth0\n" + f.pick("iface eth0 inet dhcp\n", "iface eth0 inet6 dhcp\n", "iface eth0 inet dhcp\niface eth0 inet6 dhcp\n", "iface eth0 inet6 auto\n")
}

// String names the client as the table does.
func (c Client) String() string {
	if c.Agent && c.start != "" { // not alone
		return c.Name + " and replug-guest"
	}
	return c.Name
}

// begin starts the client in the guest, and the agent after it.
func (c Client) begin(ctx context.Context, g machine) error {
	var b strings.Builder
	b.WriteString("set -e\n")
	for path, content := range c.files {
		mode := "644"
		switch {
		case strings.HasPrefix(content, "#!"):
			mode = "755"
		case strings.HasSuffix(path, ".nmconnection"):
			mode = "600"
		}
		fmt.Fprintf(&b, "mkdir -p $(dirname %s)\ncat >%s <<'END'\n%sEND\nchmod %s %s\n", path, path, content, mode, path)
	}
	b.WriteString(g.script(c))
	if out, err := g.sh(ctx, b.String()); err != nil {
		return fmt.Errorf("%s: %w: %s", c, err, out)
	}
	if !c.Agent {
		return nil
	}
	dhcp := "auto"
	if c.start == "" {
		dhcp = "own"
	}
	return g.agent(ctx, dhcp)
}
