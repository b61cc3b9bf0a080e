package nd_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"replug/dataplane/nd"
	"replug/directory/vnet"
)

var (
	guestMAC = vnet.MAC{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}
	guestCA  = vnet.CA{Addr: ip("fd9a:8b7c:6d5e:4f31:2a1b:3c4d:5e6f:7a89")}
	guestLL  = ip("fe80::7c2b:91e4:5d3a:86f7")
	gateway  = ip("fe80::5250:4c00:ab:cdef")
	nobody   = netip.Addr{}
)

// red and blue are two networks in which no two octets of an address are alike.
func red() *vnet.Place {
	return &vnet.Place{
		VNI: 0xABCDEF, MTU: 1333,
		Addrs: []vnet.Addr{
			{CA: vnet.CA{Addr: ip("10.23.45.67")}, Bits: 20},
			{CA: guestCA, Bits: 61},
			{CA: vnet.CA{Addr: ip("fd9a:8b7c:6d5e:4f32::b6c7")}, Bits: 61}, // of the same subnet
			{CA: vnet.CA{Addr: ip("fd17:2839:4a5b:6c7d:52:1aff:fe2b:3c4d")}, Bits: 64, SLAAC: true},
		},
		DHCP: vnet.DHCP{DNS: []netip.Addr{ip("203.0.113.53"), ip("fd53:6a7b::8c9d"), ip("fd53:6a7b::1e2f")}, Domain: "red.example"},
	}
}

func blue() *vnet.Place {
	return &vnet.Place{
		VNI:   0x123457,
		Addrs: []vnet.Addr{{CA: vnet.CA{Addr: ip("fd28:394a:5b6c:7d8e::93a4")}, Bits: 64}},
		DHCP:  vnet.DHCP{DNS: []netip.Addr{ip("fd53:6a7b::1e2f")}, Domain: "blue.example"},
	}
}

func router(t *testing.T, p *vnet.Place) nd.Router {
	t.Helper()
	r, ok := nd.RouterOf(p, 1462)
	if !ok {
		t.Fatal("a place with IPv6 has no router")
	}
	return r
}

// The frames in testdata were read with tcpdump -vvv and tshark -V. A file that
// is missing is written if WRITE_GOLDEN is set, never one that is there.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".bin")
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && os.Getenv("WRITE_GOLDEN") != "" {
		err = os.WriteFile(path, got, 0o644)
		want = got
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func TestGolden(t *testing.T) {
	now := router(t, blue())
	for name, frame := range map[string][]byte{
		"advertise":         router(t, red()).Advertise(guestMAC, nobody),
		"advertise_unicast": now.Advertise(guestMAC, guestLL),
		"withdraw":          router(t, red()).Withdraw(now, guestMAC, nobody),
		"probe":             nd.Probe(0xABCDEF, guestCA, guestMAC),
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, frame) })
	}
}

// A heard is what a guest takes from an advertisement.
type heard struct {
	Router, To string
	Flags      byte // managed, other
	Seconds    uint16
	MTU        uint32
	Prefixes   []string
	DNS        string // lifetime and servers
	Domain     string
}

// hear reads an advertisement by another way than the code tested, checks its
// checksum, and that its options fill it.
func hear(t *testing.T, f []byte) heard {
	t.Helper()
	checkSum(t, f)
	b := f[54:]
	h := heard{Router: net.IP(f[22:38]).String(), To: net.HardwareAddr(f[:6]).String() + " " + net.IP(f[38:54]).String(), Flags: b[5], Seconds: binary.BigEndian.Uint16(b[6:])}
	for o := b[16:]; len(o) > 0; o = o[int(o[1])*8:] {
		life := netip.AddrFrom4([4]byte(o[4:])).String()
		switch o[0] {
		case 1:
			if !bytes.Equal(o[2:8], vnet.GatewayMAC[:]) {
				t.Errorf("source link-layer address % x", o[2:8])
			}
		case 3:
			p := netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:])), int(o[2]))
			h.Prefixes = append(h.Prefixes, strings.Join([]string{p.String(), net.IP(o[4:8]).String(), net.IP(o[8:12]).String(), string("-aol"[o[3]>>6])}, " "))
		case 5:
			h.MTU = binary.BigEndian.Uint32(o[4:])
		case 25:
			h.DNS = life
			for i := 8; i < int(o[1])*8; i += 16 {
				h.DNS += " " + net.IP(o[i:i+16]).String()
			}
		case 31:
			h.Domain = life + " " + strings.TrimRight(string(o[8:int(o[1])*8]), "\x00")
		default:
			t.Errorf("option %d", o[0])
		}
	}
	return h
}

func checkSum(t *testing.T, f []byte) {
	t.Helper()
	check := uint32(58) + uint32(len(f)-54)
	for i, b := range f[22:] {
		check += uint32(b) << (8 * (1 - i%2))
	}
	if check%0xffff != 0 || f[20] != 58 || f[21] != 255 || int(binary.BigEndian.Uint16(f[18:])) != len(f)-54 {
		t.Errorf("checksum off by %#04x, next header %d, hop limit %d, length %d of %d", check%0xffff, f[20], f[21], binary.BigEndian.Uint16(f[18:]), len(f)-54)
	}
}

// Lifetimes in seconds, as four octets: 1800 is 0.0.7.8. The letter of a prefix is
// o for on the link, l for that and SLAAC.
func TestRouter(t *testing.T) {
	everybody := "33:33:00:00:00:01 ff02::1"
	blueHas := heard{Router: "fe80::5250:4c00:12:3457", To: everybody, Flags: 0xc0, Seconds: 1800, MTU: 1462,
		Prefixes: []string{"fd28:394a:5b6c:7d8e::/64 0.0.7.8 0.0.7.8 o"}, DNS: "0.0.7.8 fd53:6a7b::1e2f", Domain: "0.0.7.8 \x04blue\x07example"}
	toOne := blueHas
	toOne.To = guestMAC.String() + " " + guestLL.String()
	same := red()
	same.Addrs, same.DHCP.Domain = same.Addrs[1:2], "rouge.example"
	slaac := red()
	slaac.Addrs = slaac.Addrs[3:]
	bare := blue()
	bare.DHCP, bare.MTU = vnet.DHCP{}, 1279
	for _, c := range []struct {
		name string
		got  []byte
		want heard
	}{
		{"two prefixes, one for SLAAC", router(t, red()).Advertise(guestMAC, nobody), heard{
			Router: gateway.String(), To: everybody, Flags: 0xc0, Seconds: 1800, MTU: 1333,
			Prefixes: []string{"fd9a:8b7c:6d5e:4f30::/61 0.0.7.8 0.0.7.8 o", "fd17:2839:4a5b:6c7d::/64 0.0.7.8 0.0.7.8 l"},
			DNS:      "0.0.7.8 fd53:6a7b::8c9d fd53:6a7b::1e2f", Domain: "0.0.7.8 \x03red\x07example"}},
		{"the host's MTU", router(t, blue()).Advertise(guestMAC, nobody), blueHas},
		{"to one", router(t, blue()).Advertise(guestMAC, guestLL), toOne},
		{"SLAAC alone is not managed", router(t, slaac).Advertise(guestMAC, nobody), heard{
			Router: gateway.String(), To: everybody, Flags: 0x40, Seconds: 1800, MTU: 1333,
			Prefixes: []string{"fd17:2839:4a5b:6c7d::/64 0.0.7.8 0.0.7.8 l"},
			DNS:      "0.0.7.8 fd53:6a7b::8c9d fd53:6a7b::1e2f", Domain: "0.0.7.8 \x03red\x07example"}},
		{"nothing but the prefix", router(t, bare).Advertise(guestMAC, nobody), heard{
			Router: blueHas.Router, To: everybody, Flags: 0xc0, Seconds: 1800, Prefixes: blueHas.Prefixes}},
		{"another network takes over", router(t, red()).Withdraw(router(t, blue()), guestMAC, nobody), heard{
			Router: gateway.String(), To: everybody, Flags: 0xc0,
			Prefixes: []string{"fd9a:8b7c:6d5e:4f30::/61 0.0.0.0 0.0.0.0 o", "fd17:2839:4a5b:6c7d::/64 0.0.0.0 0.0.0.0 l"},
			DNS:      "0.0.0.0 fd53:6a7b::8c9d", Domain: "0.0.0.0 \x03red\x07example"}},
		{"no IPv6 takes over", router(t, blue()).Withdraw(nd.Router{}, guestMAC, nobody), heard{
			Router: blueHas.Router, To: everybody,
			Prefixes: []string{"fd28:394a:5b6c:7d8e::/64 0.0.0.0 0.0.0.0 o"}, DNS: "0.0.0.0 fd53:6a7b::1e2f", Domain: "0.0.0.0 \x04blue\x07example"}},
		{"the network stays and the router with it", router(t, red()).Withdraw(router(t, same), guestMAC, nobody), heard{
			Router: gateway.String(), To: everybody, Flags: 0xc0, Seconds: 1800,
			Prefixes: []string{"fd17:2839:4a5b:6c7d::/64 0.0.0.0 0.0.0.0 l"}, Domain: "0.0.0.0 \x03red\x07example"}},
		{"the network stays, with SLAAC alone", router(t, red()).Withdraw(router(t, slaac), guestMAC, nobody), heard{
			Router: gateway.String(), To: everybody, Flags: 0x40, Seconds: 1800,
			Prefixes: []string{"fd9a:8b7c:6d5e:4f30::/61 0.0.0.0 0.0.0.0 o"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, hear(t, c.got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRouterOf(t *testing.T) {
	p := red()
	p.Addrs = p.Addrs[:1]
	if r, ok := nd.RouterOf(p, 1462); ok {
		t.Errorf("a place without IPv6 has %+v", r)
	}
	for _, domain := range []string{"", ".", "a..b", strings.Repeat("x", 64) + ".example", strings.Repeat("xy.", 85)} {
		p := blue()
		p.DHCP.Domain = domain
		if h := hear(t, router(t, p).Advertise(guestMAC, nobody)); h.Domain != "" {
			t.Errorf("domain %q is advertised as %q", domain, h.Domain)
		}
	}
}

// TestRouterIsKept: a router goes through a record and comes out the same.
func TestRouterIsKept(t *testing.T) {
	want := router(t, red())
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got nd.Router
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }
