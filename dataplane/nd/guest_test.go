package nd_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"replug/dataplane/nd"
)

// from is an ICMPv6 message as a guest sends it, with the right checksum.
func from(src, dst netip.Addr, icmp ...byte) []byte {
	f := append([]byte{0x33, 0x33, 0, 0, 0, 2}, guestMAC[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0x0b, 0x1c, 0x2d)
	f = binary.BigEndian.AppendUint16(f, uint16(len(icmp)))
	f = append(f, 58, 255)
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	return sealed(append(f, icmp...))
}

// sealed fills the checksum by another way than the code tested.
func sealed(f []byte) []byte {
	if len(f) < 58 {
		return f
	}
	f[56], f[57] = 0, 0
	size := int(binary.BigEndian.Uint16(f[18:]))
	if size > len(f)-54 {
		return f
	}
	s := uint32(58) + uint32(size)
	for i, b := range f[22 : 54+size] {
		s += uint32(b) << (8 * (1 - i%2))
	}
	if s %= 0xffff; s == 0 {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(f[56:], ^uint16(s))
	return f
}

var allRouters = ip("ff02::2")

// mac is a source link-layer address option.
var mac = []byte{1, 1, 0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}

func solicit(src netip.Addr, options ...byte) []byte {
	return from(src, allRouters, append([]byte{133, 0, 0, 0, 0, 0, 0, 0}, options...)...)
}

func answer(flags byte, src, dst, target netip.Addr) []byte {
	icmp := append([]byte{136, 0, 0, 0, flags, 0, 0, 0}, target.AsSlice()...)
	return from(src, dst, append(icmp, 2, 1, 0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d)...)
}

func TestParseSolicit(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame []byte
		want  netip.Addr
	}{
		{"from a link-local address", solicit(guestLL, mac...), guestLL},
		{"without its MAC", solicit(guestLL), guestLL},
		{"with an option nobody knows", solicit(guestLL, append([]byte{77, 2, 14: 0, 15: 9}, mac...)...), guestLL},
		{"before it has an address", solicit(netip.IPv6Unspecified()), nobody},
		{"padded", append(solicit(guestLL, mac...), 1, 2, 3), guestLL},
	} {
		if got, err := nd.ParseSolicit(c.frame); err != nil || got != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		}
	}
	for name, frame := range map[string][]byte{
		"from a global address":       solicit(guestCA.Addr, mac...),
		"from a group":                solicit(ip("ff02::1"), mac...),
		"from nobody, with a MAC":     solicit(netip.IPv6Unspecified(), mac...),
		"an option of no length":      solicit(guestLL, 1, 0, 2, 3, 4, 5, 6, 7),
		"an option past the end":      solicit(guestLL, 1, 2, 2, 3, 4, 5, 6, 7),
		"half an option":              solicit(guestLL, 9),
		"an advertisement":            from(guestLL, allRouters, 134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		"another code":                from(guestLL, allRouters, 133, 7, 0, 0, 0, 0, 0, 0),
		"shorter than a solicitation": from(guestLL, allRouters, 133, 0, 0, 0, 0, 0, 0),
	} {
		checkInvalid(t, name, frame, nd.ParseSolicit)
	}
	checkHeaders(t, solicit(guestLL, mac...), nd.ParseSolicit)
}

func TestParseAnswer(t *testing.T) {
	for name, flags := range map[string]byte{"solicited": 0x40, "solicited, override": 0x60, "from a router": 0xe0} {
		if got, err := nd.ParseAnswer(answer(flags, guestCA.Addr, gateway, guestCA.Addr)); err != nil || got != guestCA.Addr {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
	for name, frame := range map[string][]byte{
		"unasked":                    answer(0x20, guestCA.Addr, gateway, guestCA.Addr),
		"to all nodes":               answer(0x60, guestCA.Addr, ip("ff02::1"), guestCA.Addr),
		"of a group":                 answer(0x60, guestCA.Addr, gateway, ip("ff02::1:2")),
		"of nobody":                  answer(0x60, guestCA.Addr, gateway, netip.IPv6Unspecified()),
		"a solicitation":             from(guestCA.Addr, gateway, append([]byte{135, 0, 0, 0, 0x40, 0, 0, 0}, guestCA.AsSlice()...)...),
		"shorter than an adv'ment":   from(guestCA.Addr, gateway, 136, 0, 0, 0, 0x40, 0, 0, 0, 0xfd, 0x9a),
		"an option of no length":     from(guestCA.Addr, gateway, append(append([]byte{136, 0, 0, 0, 0x40, 0, 0, 0}, guestCA.AsSlice()...), make([]byte, 8)...)...),
		"behind another ICMP header": from(guestCA.Addr, gateway, 1, 0, 0, 0),
	} {
		checkInvalid(t, name, frame, nd.ParseAnswer)
	}
	checkHeaders(t, answer(0x60, guestCA.Addr, gateway, guestCA.Addr), nd.ParseAnswer)
}

// checkHeaders breaks a good frame in every header, and cuts it everywhere.
func checkHeaders(t *testing.T, good []byte, parse func([]byte) (netip.Addr, error)) {
	t.Helper()
	broken := func(at int, v byte) []byte {
		f := append([]byte{}, good...)
		f[at] = v
		return f
	}
	for name, frame := range map[string][]byte{
		"no IPv6":              broken(13, 0x00),
		"another IP version":   broken(14, 0x45),
		"not ICMPv6":           sealed(broken(20, 17)),
		"forwarded":            sealed(broken(21, 254)),
		"longer than it is":    broken(18, 0x04),
		"a wrong checksum":     broken(56, good[56]^0x5a),
		"a changed last octet": broken(len(good)-1, good[len(good)-1]^0x11),
	} {
		checkInvalid(t, name, frame, parse)
	}
	for n := range good {
		checkInvalid(t, "cut", good[:n], parse)
	}
}

func checkInvalid(t *testing.T, name string, frame []byte, parse func([]byte) (netip.Addr, error)) {
	t.Helper()
	if got, err := parse(frame); !errors.Is(err, nd.ErrInvalid) || got.IsValid() {
		t.Errorf("%s (%d bytes): got %s, %v; want %v", name, len(frame), got, err, nd.ErrInvalid)
	}
}

// FuzzParse looks for a panic, and for an address that no answer may go to.
func FuzzParse(f *testing.F) {
	f.Add(solicit(guestLL, mac...), false)
	f.Add(solicit(netip.IPv6Unspecified()), true)
	f.Add(solicit(guestLL, 1, 0, 2, 3, 4, 5, 6, 7), true)
	f.Add(answer(0x60, guestCA.Addr, gateway, guestCA.Addr), true)
	f.Add(answer(0x60, guestLL, gateway, guestLL)[:70], true)
	f.Fuzz(func(t *testing.T, frame []byte, seal bool) {
		if seal {
			sealed(frame)
		}
		if to, err := nd.ParseSolicit(frame); err == nil && to.IsValid() && !to.IsLinkLocalUnicast() {
			t.Errorf("answer to %s", to)
		}
		if target, err := nd.ParseAnswer(frame); err == nil && (target.IsMulticast() || target.IsUnspecified()) {
			t.Errorf("proof of %s", target)
		}
	})
}
