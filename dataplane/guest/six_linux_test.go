package guest

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// prefix is a prefix information option (RFC 4861, section 4.6.2).
func prefix(flags byte, valid byte, addr string, bits byte) []byte {
	a := netip.MustParseAddr(addr).As16()
	return append([]byte{3, 4, bits, flags, 0, 0, 0, valid, 0, 0, 0, valid, 0, 0, 0, 0}, a[:]...)
}

// What a router says is read to the letter, and nobody but a neighbour is one.
func TestParseAdvert(t *testing.T) {
	router := netip.MustParseAddr("fe80::52:50:17")
	head := func(flags, lifetime byte) []byte {
		return []byte{134, 0, 0, 0, 64, flags, 0, lifetime, 0, 0, 0, 0, 0, 0, 0, 0}
	}
	for _, c := range []struct {
		name string
		from netip.Addr
		b    []byte
		ok   bool
		want advert
	}{
		{"managed", router, head(0x80, 9), true, advert{router: router, lifetime: 9 * time.Second, managed: true}},
		{"prefix", router, append(head(0, 9), prefix(0xc0, 7, "fd00:17::", 64)...), true,
			advert{router: router, lifetime: 9 * time.Second, prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:17::/64")}}},
		{"on link only", router, append(head(0, 9), prefix(0x80, 7, "fd00:17::", 64)...), true, advert{router: router, lifetime: 9 * time.Second}},
		{"prefix that is over", router, append(head(0, 9), prefix(0xc0, 0, "fd00:17::", 64)...), true, advert{router: router, lifetime: 9 * time.Second}},
		{"no router any more", router, head(0, 0), true, advert{router: router}},
		{"name servers", router, slices.Concat(head(0, 9), servers(7, "fd00:17::53", "fd00:17::54"), servers(0, "fd00:17::55"), []byte{25, 1, 0, 0, 0, 0, 0, 9}, []byte{25, 3, 0, 0, 0, 0, 0, 9}), true,
			advert{router: router, lifetime: 9 * time.Second, dns: []netip.Addr{netip.MustParseAddr("fd00:17::53"), netip.MustParseAddr("fd00:17::54")}}},
		{"option without a length", router, append(head(0, 9), 3, 0, 64, 0xc0, 0, 0, 0, 0), true, advert{router: router, lifetime: 9 * time.Second}},
		{"cut off", router, head(0, 9)[:15], false, advert{}},
		{"not a neighbour", netip.MustParseAddr("fd00::7"), head(0x80, 9), false, advert{}},
		{"another message", router, append([]byte{136}, head(0x80, 9)[1:]...), false, advert{}},
	} {
		got, ok := parseAdvert(c.from, c.b)
		if ok != c.ok || got.router != c.want.router || got.managed != c.want.managed || got.lifetime != c.want.lifetime ||
			!slices.Equal(got.dns, c.want.dns) || len(got.prefixes) != len(c.want.prefixes) || len(got.prefixes) > 0 && got.prefixes[0] != c.want.prefixes[0] {
			t.Errorf("%s: %+v, %t, want %+v", c.name, got, ok, c.want)
		}
	}
}

// A reply gives an address that a guest can have, or it is an error.
func TestReadLease6(t *testing.T) {
	for addr, ok := range map[string]bool{"fd00:17::9": true, "fe80::9": false, "::": false, "ff02::9": false, "": false} {
		m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
		ia := &dhcpv6.OptIANA{T1: 40 * time.Second}
		if addr != "" {
			ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(addr), ValidLifetime: 90 * time.Second, PreferredLifetime: 70 * time.Second})
		}
		m.AddOption(ia)
		l, err := readLease6(m)
		if (err == nil) != ok || ok && (l.addr.String() != addr || l.valid != 90*time.Second || l.renew != 40*time.Second) {
			t.Errorf("%q: %+v, %v", addr, l, err)
		}
	}
}

// With the last IPv6 address of a prefix goes the route to it, whoever made it: dhcpcd
// makes its own.
func TestRouteGoesWithItsAddress(t *testing.T) {
	w := newWorld(t)
	check(t, setUpByName(w.nic))
	n, err := newNIC()
	check(t, err)
	defer n.close()
	i, err := net.InterfaceByName(w.nic)
	check(t, err)
	ip := func(args string) string {
		t.Helper()
		out, err := exec.Command("ip", strings.Fields("-6 "+args+" dev "+w.nic)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
		return string(out)
	}
	for _, a := range []string{"fd53:6a7b:1::17/64", "fd53:6a7b:2::17/64", "fd53:6a7b:2::18/64"} {
		ip("addr add " + a + " nodad noprefixroute")
	}
	for _, prefix := range []string{"fd53:6a7b:1::/64", "fd53:6a7b:2::/64"} {
		ip("route add " + prefix + " proto ra metric 1002")
	}
	check(t, n.remove(i.Index, netip.MustParsePrefix("fd53:6a7b:1::17/64")))
	check(t, n.remove(i.Index, netip.MustParsePrefix("fd53:6a7b:2::17/64")))
	if got := ip("route show"); strings.Contains(got, "fd53:6a7b:1::") || !strings.Contains(got, "fd53:6a7b:2::/64") {
		t.Errorf("routes\n%s", got)
	}
}
