package guests

import (
	"net/netip"
	"testing"

	"replug/directory/vnet"
)

// What is of the old network is found in each kind of setting, and what is of the new
// one is not taken for it.
func TestLeftovers(t *testing.T) {
	red, blue := vnet.VNI(0xabcdef), vnet.VNI(0x123457)
	for line, old := range map[string]bool{
		"default via 10.60.0.1 proto dhcp src 10.60.0.7 metric 1024":                      true,
		"10.60.0.0/16 proto kernel scope link src 10.60.0.7":                              true,
		"broadcast 10.60.255.255 table local proto kernel scope link src 10.60.0.7":       true,
		"10.9.8.0/24 via 10.60.0.9 table 77":                                              true,
		"fd00:60::/64 proto ra metric 1024 expires 1750sec pref medium":                   true,
		"default via " + red.Gateway6().String() + " proto ra metric 1024 expires 50sec":  true,
		"/etc/resolv.conf: nameserver 10.60.0.53":                                         true,
		"/run/systemd/netif/links/2: DNS=10.70.0.53 fd00:60::35":                          true,
		"default via 10.70.0.1 proto dhcp src 10.70.0.7 metric 1024":                      false,
		"10.6.0.0/16 via 10.70.0.9":                                                       false,
		"fd00:70::/64 proto ra metric 1024 expires 1750sec pref medium":                   false,
		"default via " + blue.Gateway6().String() + " proto ra metric 1024 expires 50sec": false,
		"fe80::/64 proto kernel metric 256 pref medium":                                   false,
		"/run/systemd/netif/links/2: DNS=10.70.0.53 fd00:70::35":                          false,
		"fd00:60::7 proto kernel metric 256 expires 86390sec pref medium":                 true,
		"fd00:60::7 proto static metric 256 pref medium":                                  true,
		"addr 10.60.0.7/24": true,
		"addr 10.70.0.7/24": false,
		"":                  false,
	} {
		w := &World{Family: Families[3], routers: map[string]netip.Addr{"red": red.Gateway6(), "blue": blue.Gateway6()}}
		s := &Subject{World: w, at: "blue"}
		got, have := s.leftovers("addr fd00:70::7/128\nfe80::/64 proto kernel\n" + line + "\n")
		want := ""
		if old {
			want = "it has " + line
		}
		if got != want {
			t.Errorf("of %q: %q", line, got)
		}
		if err := s.lacks(have, []netip.Addr{netip.MustParseAddr("fd00:70::7")}); err != nil {
			t.Errorf("beside %q: %v", line, err)
		}
	}
}
