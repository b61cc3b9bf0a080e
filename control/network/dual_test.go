package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"replug/directory/store"
	"replug/directory/vnet"
)

func ca(s string) vnet.CA { return vnet.CA{Addr: netip.MustParseAddr(s)} }

func cas(s ...string) []vnet.CA {
	var all []vnet.CA
	for _, a := range s {
		all = append(all, ca(a))
	}
	return all
}

func TestSubnets(t *testing.T) {
	for _, c := range []struct {
		name, prefix, gateway string
		want                  string // gateway; or
		says                  string // what the refusal says
	}{
		{"IPv4", "10.17.34.0/24", "", "10.17.34.1", ""},
		{"IPv4, another gateway", "10.17.34.0/24", "10.17.34.254", "10.17.34.254", ""},
		{"IPv4, gateway outside", "10.17.34.0/24", "10.17.35.1", "", "not a host address"},
		{"IPv4, too small", "10.17.34.4/31", "", "", "8 to 30"},
		{"IPv4, the metadata service", "169.254.0.0/16", "", "", "RFC 3927"},
		{"IPv4, Azure's wire server", "168.63.128.0/22", "", "", "Azure"},
		{"IPv6", "fd17:34::/64", "", "fe80::5250:4c00:1:1171", ""},
		{"IPv6, largest", "fd17:34:56::/48", "", "fe80::5250:4c00:1:1171", ""},
		{"IPv6, smallest", "fd17:34::4/126", "", "fe80::5250:4c00:1:1171", ""},
		{"IPv6, too large", "fd17:34::/47", "", "", "RFC 6177"},
		{"IPv6, too small", "fd17:34::4/127", "", "", "RFC 4291"},
		{"IPv6, a gateway of one's own", "fd17:34::/64", "fd17:34::1", "", "RFC 6059"},
		{"IPv6, host bits", "fd17:34::7/64", "", "", "write fd17:34::/64"},
		{"IPv6, link-local", "fe80:17::/64", "", "", "link-local"},
		{"IPv6, the metadata service", "fd00:ec2::/64", "", "", "metadata"},
		{"IPv6, metadata callers", "fd52:5047:17::/64", "", "", "metadata callers"},
		{"IPv4 in IPv6", "::ffff:10.17.34.0/120", "", "", "neither"},
	} {
		n := Network{Moniker: "red", VNI: 70001, Subnets: []Subnet{{Prefix: netip.MustParsePrefix(c.prefix)}}}
		if c.gateway != "" {
			n.Subnets[0].Gateway = netip.MustParseAddr(c.gateway)
		}
		err := n.complete()
		n.settle()
		if c.says != "" {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v; want it to say %q", c.name, err, c.says)
			}
		} else if err != nil || n.Subnets[0].Gateway.String() != c.want {
			t.Errorf("%s: gateway %s, %v; want %s", c.name, n.Subnets[0].Gateway, err, c.want)
		}
	}
}

func TestServersAndMTU(t *testing.T) {
	for _, c := range []struct {
		name, prefix, server string
		mtu                  uint16
		says                 string
	}{
		{"IPv6 server", "fd17:34::/64", "fd17:34::53", 1400, ""},
		{"IPv4 server of an IPv6 network", "fd17:34::/64", "10.17.34.53", 0, "ipv6 subnets only"},
		{"link-local server", "fd17:34::/64", "fe80::53", 0, "unicast"},
		{"IPv6 needs 1280", "fd17:34::/64", "fd17:34::53", 1279, "1280"},
		{"IPv4 needs 576", "10.17.34.0/24", "10.17.34.53", 576, ""},
	} {
		n := Network{Moniker: "red", Subnets: []Subnet{{Prefix: netip.MustParsePrefix(c.prefix)}}, DNS: []netip.Addr{netip.MustParseAddr(c.server)}, MTU: c.mtu}
		if err := n.complete(); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want it to say %q", c.name, err, c.says)
		}
	}
}

// A port of a dual network has one address of each family, asked for or the next
// free ones.
func TestTakeDual(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	n := b.network("red", "10.17.34.0/24", "fd17:34::/64")
	v4 := b.network("blue", "10.17.34.0/24")
	h := Holder{Port: "p7", State: Used}
	for _, c := range []struct {
		name string
		n    store.Row[Network]
		want []vnet.CA
		need Families
		got  string
		err  error
	}{
		{"the next free ones", n, nil, Dual, "[10.17.34.2 fd17:34::1]", nil},
		{"one is asked for", n, cas("fd17:34::9"), Dual, "[10.17.34.3 fd17:34::9]", nil},
		{"both, in any order", n, cas("fd17:34::a", "10.17.34.99"), Dual, "[10.17.34.99 fd17:34::a]", nil},
		{"one of the families", n, nil, V6, "[fd17:34::2]", nil},
		{"taken", n, cas("fd17:34::9"), Dual, "", ErrTaken},
		{"two of one family", n, cas("fd17:34::77", "fd17:34::78"), Dual, "", ErrInvalid},
		{"a family the port does not have", n, cas("fd17:34::77"), V4, "", ErrFamily},
		{"a family the network does not have", v4, nil, Dual, "", ErrFamily},
		{"an address of a family that it does not have", v4, cas("fd17:34::9"), Dual, "", ErrOutside},
		{"the anycast address of routers", n, cas("fd17:34::"), Dual, "", ErrOutside},
	} {
		got, txn, err := b.Take(ctx, c.n, c.want, c.need, vnet.MAC{}, h)
		if err == nil {
			err = b.commit(txn)
		}
		if !errors.Is(err, c.err) || err == nil && fmt.Sprint(got) != c.got {
			t.Errorf("%s: got %v, %v; want %s, %v", c.name, got, err, c.got, c.err)
		}
	}
}

// Where guests make their address themselves, it is the one of their MAC.
func TestSLAAC(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	for prefix, says := range map[string]string{"10.17.34.0/24": "of IPv6", "fd17:34::/60": "/64 only"} {
		n := Network{Moniker: "bad", Subnets: []Subnet{{Prefix: netip.MustParsePrefix(prefix), SLAAC: true}}}
		if err := n.complete(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want it to say %q", prefix, err, says)
		}
	}
	_, txn, err := b.Create(ctx, Network{Moniker: "red", Tenant: "acme", Subnets: []Subnet{
		{Prefix: netip.MustParsePrefix("10.17.34.0/24")}, {Prefix: netip.MustParsePrefix("fd17:34::/64"), SLAAC: true}, {Prefix: netip.MustParsePrefix("fd17:35::/64")},
	}})
	b.must(txn, err)
	red, _ := b.Get(ctx, "acme", "red")
	mac := vnet.MAC{0x02, 0x52, 0x17, 0x34, 0x56, 0x78}
	for _, c := range []struct {
		want []vnet.CA
		got  string
		err  error
	}{
		{nil, "[10.17.34.2 fd17:34::52:17ff:fe34:5678]", nil},
		{cas("fd17:34::52:17ff:fe34:5678"), "[10.17.34.2 fd17:34::52:17ff:fe34:5678]", nil},
		{cas("fd17:34::9"), "", ErrOutside},
		{cas("fd17:35::9"), "[10.17.34.2 fd17:35::9]", nil},
	} {
		got, _, err := b.Take(ctx, red, c.want, Dual, mac, Holder{Port: "p7"})
		if !errors.Is(err, c.err) || err == nil && fmt.Sprint(got) != c.got {
			t.Errorf("asked for %v: %v, %v; want %s, %v", c.want, got, err, c.got, c.err)
		}
	}
	p := b.port("p7", red, host)
	if made, _ := p.MAC.EUI64(red.Value.Subnets[1].Prefix); p.Current.Addrs[0].SLAAC || !p.Current.Addrs[1].SLAAC || p.Current.Addrs[1].CA != made {
		t.Errorf("place %+v of MAC %s", p.Current.Addrs, p.MAC)
	}
}

// The next free address is found among the taken ones, not by walking the subnet.
func TestNextFreeOfMany(t *testing.T) {
	b := newBench(t)
	n := b.network("red", "fd17:34::/48")
	a, txn := netip.MustParseAddr("fd17:34::1"), &store.Txn{}
	for range 100 {
		txn.Put(store.CAKey(n.Value.VNI, vnet.CA{Addr: a}), Holder{Port: "p7", State: Used})
		a = a.Next()
	}
	b.must(txn, nil)
	b.must((&store.Txn{}).Put(store.CAKey(n.Value.VNI, ca("fd17:34:0:ffff:ffff:ffff:ffff:ffff")), Holder{Port: "p9", State: Used}), nil)
	got, _, err := b.Take(context.Background(), n, nil, V6, vnet.MAC{}, Holder{Port: "p11"})
	if err != nil || got[0].Addr != a {
		t.Errorf("got %v, %v; want %s", got, err, a)
	}
}

// When all are taken, one that has rested will do before it is swept, and no other.
func TestNextFreeOfRested(t *testing.T) {
	b := newBench(t)
	n := b.network("red", "10.17.34.248/30")
	b.must(b.Retire(n.Value.VNI, ca("10.17.34.250"), "p7"), nil)
	if _, err := b.take(n, "", Holder{Port: "p9", State: Used}); !errors.Is(err, ErrExhausted) {
		t.Errorf("while it rests: %v", err)
	}
	b.now = b.now.Add(b.Rest)
	if got, err := b.take(n, "", Holder{Port: "p9", State: Used}); got != "10.17.34.250" || err != nil {
		t.Errorf("rested: %s, %v", got, err)
	}
}

// A dual port has a mapping for each address, a place with both gateways, and is
// gone without a trace.
func TestDualPort(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	red := b.network("red", "10.17.34.0/24", "fd17:34::/64")
	p := b.port("p7", red, host)
	want := []vnet.Addr{
		{CA: ca("10.17.34.2"), Bits: 24, Gateway: netip.MustParseAddr("10.17.34.1")},
		{CA: ca("fd17:34::1"), Bits: 64, Gateway: netip.MustParseAddr("fe80::5250:4c00:1:1171")},
	}
	if !slices.Equal(p.Current.Addrs, want) {
		t.Errorf("addresses %v, want %v", p.Current.Addrs, want)
	}
	for _, a := range p.Current.Addrs {
		m, err := store.Get[vnet.Mapping](ctx, b.Store, store.MappingKey(70001, a.CA))
		if err != nil || m.Value.PA != p.PA || m.Value.Epoch != p.Current.Epoch {
			t.Errorf("mapping of %s: %+v, %v", a.CA, m.Value, err)
		}
	}
	b.must(b.RemovePort(ctx, &p))
	rows, _, err := store.List[vnet.Mapping](ctx, b.Store, store.Mappings)
	if err != nil || len(rows) != 0 {
		t.Errorf("mappings left: %v, %v", rows, err)
	}
	held, _, err := store.List[Holder](ctx, b.Store, store.CAs)
	if err != nil || len(held) != 2 || held[0].Value.State != Resting || held[1].Value.State != Resting {
		t.Errorf("addresses left: %v, %v", held, err)
	}
}
