package dhcp_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"replug/dataplane/dhcp"
	"replug/directory/vnet"
)

const (
	own6     = "fd9a:8b7c:6d5e:4f31:2a1b:3c4d:5e6f:7a89"
	second6  = "fd9a:8b7c:6d5e:4f31::b6c7"
	stale6   = "fd17:2839:4a5b:6c7d::e8f9"
	guestLL  = "fe80::7c2b:91e4:5d3a:86f7"
	gateway6 = "fe80::5250:4c00:ab:cdef"
)

// place6 is a network of both families.
func place6() *vnet.Place {
	p := place()
	p.Addrs = append(p.Addrs, vnet.Addr{CA: ca(own6), Bits: 64}, vnet.Addr{CA: ca(second6), Bits: 64})
	p.DHCP.DNS = append(p.DHCP.DNS, ip("fd53:6a7b::8c9d"), ip("fd53:6a7b::1e2f"))
	p.DHCP.NTP = append(p.DHCP.NTP, ip("fd12:3a4b::5c6d"))
	return p
}

func port6() dhcp.Port { return dhcp.Port{MAC: guestMAC, Place: place6(), MTU: 1462} }

var (
	clientDUID = &dhcpv6.DUIDEN{EnterpriseNumber: 0xab11, EnterpriseIdentifier: []byte{0x5e, 0x2d, 0x8c, 0x43, 0x96, 0xb1, 0x7f, 0xe4}}
	serverDUID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: vnet.GatewayMAC[:]}
	iaid       = [4]byte{0x3c, 0x9d, 0x21, 0xa7}
	otherIAID  = [4]byte{0x4d, 0x8e, 0x32, 0xb6}
)

// ask6 is a message of a client with an identity association of these addresses.
func ask6(t dhcpv6.MessageType, addrs ...string) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: t, TransactionID: dhcpv6.TransactionID{0xde, 0xad, 0x5f}}
	m.AddOption(dhcpv6.OptClientID(clientDUID))
	switch t {
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		m.AddOption(dhcpv6.OptServerID(serverDUID))
	}
	m.AddOption(dhcpv6.OptElapsedTime(70 * time.Millisecond))
	if t != dhcpv6.MessageTypeInformationRequest {
		m.AddOption(association(iaid, addrs...))
	}
	return m
}

func association(id [4]byte, addrs ...string) *dhcpv6.OptIANA {
	ia := &dhcpv6.OptIANA{IaId: id}
	for _, a := range addrs {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a), PreferredLifetime: 3 * time.Hour, ValidLifetime: 4 * time.Hour})
	}
	return ia
}

func with(m *dhcpv6.Message, opts ...dhcpv6.Option) *dhcpv6.Message {
	for _, o := range opts {
		m.AddOption(o)
	}
	return m
}

// wrap6 puts a message into the frame that a client sends: UDP checksum left
// partial, as virtio does.
func wrap6(msg []byte) []byte {
	f := append([]byte{0x33, 0x33, 0, 1, 0, 2}, guestMAC[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0x0b, 0x1c, 0x2d)
	f = binary.BigEndian.AppendUint16(f, uint16(8+len(msg)))
	f = append(f, 17, 1)
	f = append(f, net.ParseIP(guestLL)...)
	f = append(f, net.ParseIP("ff02::1:2")...)
	f = append(f, 0x02, 0x22, 0x02, 0x23)
	f = binary.BigEndian.AppendUint16(f, uint16(8+len(msg)))
	return append(append(f, 0xbe, 0xef), msg...)
}

// open6 takes an answer apart and checks what is the same in all of them.
func open6(t *testing.T, frame []byte) *dhcpv6.Message {
	t.Helper()
	head := fmt.Sprintf("%s %s %x %x %d %s %s %d %d", net.HardwareAddr(frame[:6]), net.HardwareAddr(frame[6:12]), frame[12:18], frame[20], frame[21],
		net.IP(frame[22:38]), net.IP(frame[38:54]), binary.BigEndian.Uint16(frame[54:]), binary.BigEndian.Uint16(frame[56:]))
	want := fmt.Sprintf("%s %s 86dd60000000 11 64 %s %s 547 546", guestMAC, vnet.GatewayMAC, gateway6, guestLL)
	if head != want {
		t.Errorf("headers %s, want %s", head, want)
	}
	size := len(frame) - 54
	if ip, udp := int(binary.BigEndian.Uint16(frame[18:])), int(binary.BigEndian.Uint16(frame[58:])); ip != size || udp != size {
		t.Errorf("lengths %d and %d, want %d", ip, udp, size)
	}
	check := uint32(17) + uint32(size)
	for i, b := range frame[22:] {
		check += uint32(b) << (8 * (1 - i%2))
	}
	if check%0xffff != 0 {
		t.Errorf("UDP checksum is off by %#04x", check%0xffff)
	}
	m, err := dhcpv6.MessageFromBytes(frame[62:])
	if err != nil {
		t.Fatalf("the answer can't be read: %v", err)
	}
	if m.TransactionID != (dhcpv6.TransactionID{0xde, 0xad, 0x5f}) || m.Options.ServerID() == nil || !m.Options.ServerID().Equal(serverDUID) {
		t.Errorf("transaction %s, server %s", m.TransactionID, m.Options.ServerID())
	}
	return m
}

// said is an answer in short: type, then each association with its times in
// minutes, addresses with theirs, and status codes.
func said(m *dhcpv6.Message) string {
	words := []string{strings.ToLower(m.MessageType.String())}
	if m.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
		words = append(words, "rapid")
	}
	code := func(opts dhcpv6.Options) {
		if o := opts.GetOne(dhcpv6.OptionStatusCode); o != nil {
			words = append(words, o.(*dhcpv6.OptStatusCode).StatusCode.String())
		}
	}
	code(m.Options.Options)
	for _, ia := range m.Options.IANA() {
		words = append(words, fmt.Sprintf("na-%x", ia.IaId[0]), fmt.Sprintf("%.0f/%.0f", ia.T1.Minutes(), ia.T2.Minutes()))
		for _, a := range ia.Options.Addresses() {
			words = append(words, fmt.Sprintf("%s=%.0f/%.0f", a.IPv6Addr, a.PreferredLifetime.Minutes(), a.ValidLifetime.Minutes()))
		}
		code(ia.Options.Options)
	}
	for _, ia := range m.Options.IATA() {
		words = append(words, fmt.Sprintf("ta-%x", ia.IaId[0]))
		code(ia.Options.Options)
	}
	for _, ia := range m.Options.IAPD() {
		words = append(words, fmt.Sprintf("pd-%x", ia.IaId[0]))
		code(ia.Options.Options)
	}
	return strings.Join(words, " ")
}

const (
	granted = "na-3c 900/1440 " + own6 + "=1800/1800 " + second6 + "=1800/1800"
	taken   = stale6 + "=0/0"
)

func TestAnswer6(t *testing.T) {
	rapid := &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
	pd := &dhcpv6.OptIAPD{IaId: otherIAID}
	ta := &dhcpv6.OptIATA{IaId: otherIAID}
	for _, c := range []struct {
		name string
		req  *dhcpv6.Message
		kind dhcp.Kind
		want string
	}{
		{"solicit", ask6(dhcpv6.MessageTypeSolicit), dhcp.Advertise, "advertise " + granted},
		{"solicit with rapid commit", with(ask6(dhcpv6.MessageTypeSolicit), rapid), dhcp.Grant, "reply rapid " + granted},
		{"solicit that wishes the old address", ask6(dhcpv6.MessageTypeSolicit, stale6), dhcp.Advertise, "advertise " + granted},
		{"solicit for a prefix as well", with(ask6(dhcpv6.MessageTypeSolicit), pd), dhcp.Advertise, "advertise " + granted + " pd-4d NoPrefixAvail"},
		{"solicit for a temporary address as well", with(ask6(dhcpv6.MessageTypeSolicit), ta), dhcp.Advertise, "advertise " + granted + " ta-4d NoAddrsAvail"},
		{"solicit for two identities", with(ask6(dhcpv6.MessageTypeSolicit), association(otherIAID)), dhcp.Advertise, "advertise " + granted + " na-4d 0/0 NoAddrsAvail"},
		{"request", ask6(dhcpv6.MessageTypeRequest, own6, second6), dhcp.Grant, "reply " + granted},
		{"request of one of two", ask6(dhcpv6.MessageTypeRequest, second6), dhcp.Grant, "reply " + granted},
		{"request that names no address", ask6(dhcpv6.MessageTypeRequest), dhcp.Grant, "reply " + granted},
		{"request of what was offered before the flip", ask6(dhcpv6.MessageTypeRequest, stale6), dhcp.OffLink, "reply na-3c 0/0 NotOnLink"},
		{"renew", ask6(dhcpv6.MessageTypeRenew, own6), dhcp.Grant, "reply " + granted},
		{"renew of the old address", ask6(dhcpv6.MessageTypeRenew, stale6), dhcp.Grant, "reply na-3c 900/1440 " + taken + strings.TrimPrefix(granted, "na-3c 900/1440")},
		{"renew of the old address, named twice, beside the new", ask6(dhcpv6.MessageTypeRenew, stale6, own6, stale6), dhcp.Grant, "reply na-3c 900/1440 " + taken + strings.TrimPrefix(granted, "na-3c 900/1440")},
		{"renew of a prefix", with(ask6(dhcpv6.MessageTypeRenew, own6), pd), dhcp.Grant, "reply " + granted + " pd-4d NoBinding"},
		{"renew of an identity that has nothing", with(ask6(dhcpv6.MessageTypeRenew, own6), association(otherIAID)), dhcp.Grant, "reply " + granted + " na-4d 0/0 NoBinding"},
		{"renew where the second identity has the address", with(ask6(dhcpv6.MessageTypeRenew, stale6), association(otherIAID, own6)), dhcp.Grant,
			"reply na-3c 0/0 " + taken + " na-4d" + strings.TrimPrefix(granted, "na-3c")},
		{"rebind", ask6(dhcpv6.MessageTypeRebind, own6), dhcp.Grant, "reply " + granted},
		{"rebind of the old address", ask6(dhcpv6.MessageTypeRebind, stale6), dhcp.Grant, "reply na-3c 900/1440 " + taken + strings.TrimPrefix(granted, "na-3c 900/1440")},
		{"confirm", ask6(dhcpv6.MessageTypeConfirm, own6, second6), dhcp.Confirmed, "reply Success"},
		{"confirm of the old address", ask6(dhcpv6.MessageTypeConfirm, stale6), dhcp.OffLink, "reply NotOnLink"},
		{"confirm of another address of the subnet", ask6(dhcpv6.MessageTypeConfirm, "fd9a:8b7c:6d5e:4f31::c8d9"), dhcp.OffLink, "reply NotOnLink"},
		{"confirm of new and old", ask6(dhcpv6.MessageTypeConfirm, own6, stale6), dhcp.OffLink, "reply NotOnLink"},
		{"confirm of a temporary address", with(ask6(dhcpv6.MessageTypeConfirm, own6),
			&dhcpv6.OptIATA{IaId: otherIAID, Options: association(iaid, stale6).Options}), dhcp.OffLink, "reply NotOnLink"},
		{"release", ask6(dhcpv6.MessageTypeRelease, own6), dhcp.Released, "reply Success na-3c 0/0"},
		{"release of the old address", ask6(dhcpv6.MessageTypeRelease, stale6), dhcp.Released, "reply Success na-3c 0/0 NoBinding"},
		{"decline", ask6(dhcpv6.MessageTypeDecline, own6), dhcp.Declined, "reply Success na-3c 0/0"},
		{"information-request", ask6(dhcpv6.MessageTypeInformationRequest), dhcp.Information, "reply"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := dhcp.Answer(wrap6(c.req.ToBytes()), port6())
			if err != nil || r.Kind != c.kind {
				t.Fatalf("got %s, %v; want %s", r.Kind, err, c.kind)
			}
			m := open6(t, r.Frame)
			if got := said(m); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if id := m.Options.ClientID(); id == nil || !id.Equal(clientDUID) {
				t.Errorf("client identifier %v", id)
			}
		})
	}
}

// TestAnswer6WithoutIPv6 is a client in a network that has IPv4 only: it is told
// so, gives up what it has, and asks again soon.
func TestAnswer6WithoutIPv6(t *testing.T) {
	for _, c := range []struct {
		req  *dhcpv6.Message
		kind dhcp.Kind
		want string
	}{
		{ask6(dhcpv6.MessageTypeSolicit), dhcp.Empty, "advertise na-3c 0/0 NoAddrsAvail"},
		{with(ask6(dhcpv6.MessageTypeSolicit), &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}), dhcp.Empty, "advertise na-3c 0/0 NoAddrsAvail"},
		{ask6(dhcpv6.MessageTypeRequest), dhcp.Empty, "reply na-3c 0/0 NoAddrsAvail"},
		{ask6(dhcpv6.MessageTypeRenew, stale6), dhcp.Empty, "reply na-3c 0/0 " + taken},
		{ask6(dhcpv6.MessageTypeRebind), dhcp.Empty, "reply na-3c 0/0 NoBinding"},
		{ask6(dhcpv6.MessageTypeConfirm, stale6), dhcp.OffLink, "reply NotOnLink"},
	} {
		p := port6()
		p.Place.Addrs = p.Place.Addrs[:1]
		r, err := dhcp.Answer(wrap6(c.req.ToBytes()), p)
		if err != nil || r.Kind != c.kind {
			t.Errorf("%s: got %s, %v; want %s", c.req.MessageType, r.Kind, err, c.kind)
			continue
		}
		if got := said(open6(t, r.Frame)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.req.MessageType, got, c.want)
		}
	}
}

// TestSettings6 compares options with bytes written by hand from the RFCs.
func TestSettings6(t *testing.T) {
	dns := []byte{0xfd, 0x53, 0x6a, 0x7b, 14: 0x8c, 15: 0x9d, 16: 0xfd, 17: 0x53, 18: 0x6a, 19: 0x7b, 30: 0x1e, 31: 0x2f}
	ntp := []byte{0xfd, 0x12, 0x3a, 0x4b, 14: 0x5c, 15: 0x6d}
	domain := append(append([]byte{4}, "blue"...), append([]byte{7}, "example\x00"...)...)
	all := map[dhcpv6.OptionCode][]byte{23: dns, 24: domain, 31: ntp, 56: append([]byte{0, 1, 0, 16}, ntp...), 82: {0, 0, 0, 60}}
	for _, c := range []struct {
		name   string
		req    *dhcpv6.Message
		change func(*vnet.Place)
		want   map[dhcpv6.OptionCode][]byte
	}{
		{"advertise", ask6(dhcpv6.MessageTypeSolicit), nil, all},
		{"reply", ask6(dhcpv6.MessageTypeRenew, own6), nil, all},
		{"information", ask6(dhcpv6.MessageTypeInformationRequest), nil, all},
		{"nothing to one that starts over", ask6(dhcpv6.MessageTypeConfirm, stale6), nil, map[dhcpv6.OptionCode][]byte{}},
		{"no domain that can't be written", ask6(dhcpv6.MessageTypeSolicit), func(p *vnet.Place) {
			p.DHCP = vnet.DHCP{Domain: strings.Repeat("x", 64) + ".example"}
		}, map[dhcpv6.OptionCode][]byte{82: {0, 0, 0, 60}}},
		{"only what there is", ask6(dhcpv6.MessageTypeSolicit), func(p *vnet.Place) { p.DHCP = vnet.DHCP{} }, map[dhcpv6.OptionCode][]byte{82: {0, 0, 0, 60}}},
	} {
		p := port6()
		if c.change != nil {
			c.change(p.Place)
		}
		r, err := dhcp.Answer(wrap6(c.req.ToBytes()), p)
		if err != nil {
			t.Fatal(err)
		}
		got := map[dhcpv6.OptionCode][]byte{}
		m := open6(t, r.Frame)
		for _, o := range m.Options.Options {
			if _, ok := all[o.Code()]; ok {
				got[o.Code()] = o.ToBytes()
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if pref := m.GetOneOption(dhcpv6.OptionPreference); (m.MessageType == dhcpv6.MessageTypeAdvertise) != (pref != nil && pref.ToBytes()[0] == 255) {
			t.Errorf("%s: %s with preference %v", c.name, m.MessageType, pref)
		}
	}
}

func TestLeaseOfADay6(t *testing.T) {
	p := port6()
	p.Place.DHCP.Lease, p.Place.Addrs = 0, p.Place.Addrs[:2]
	r, err := dhcp.Answer(wrap6(ask6(dhcpv6.MessageTypeSolicit).ToBytes()), p)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := said(open6(t, r.Frame)), "advertise na-3c 720/1152 "+own6+"=1440/1440"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLargest6: whatever a client asks and a place has, the answer fits what every
// link carries.
func TestLargest6(t *testing.T) {
	var cas []vnet.Addr
	var many []netip.Addr
	var stale []string
	for i := range byte(8) {
		a := netip.AddrFrom16([16]byte{0xfd, 0x9a, 3: i, 15: 0x67})
		cas, many = append(cas, vnet.Addr{CA: vnet.CA{Addr: a}, Bits: 64}), append(many, a)
		stale = append(stale, netip.AddrFrom16([16]byte{0xfd, 0x17, 3: i, 15: 0x76}).String())
	}
	p := port6()
	p.Place.Addrs = cas
	p.Place.DHCP = vnet.DHCP{DNS: many, NTP: many, Domain: strings.Repeat("a-label-of-fifteen.", 13) + "end"}
	m := with(ask6(dhcpv6.MessageTypeRenew, stale...), association([4]byte{1}), association([4]byte{2}), &dhcpv6.OptIAPD{IaId: otherIAID})
	m.Options.Del(dhcpv6.OptionClientID)
	m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: append([]byte{0, 7}, make([]byte, 128)...)})
	r, err := dhcp.Answer(wrap6(m.ToBytes()), p)
	if err != nil || r.Kind != dhcp.Grant {
		t.Fatalf("got %s, %v", r.Kind, err)
	}
	if n := len(r.Frame) - 14; n > 1280 || n < 1100 {
		t.Errorf("packet of %d bytes", n)
	}
	if got := len(open6(t, r.Frame).Options.IANA()[0].Options.Addresses()); got != 16 {
		t.Errorf("%d addresses, want 8 old ones and 8 new ones", got)
	}
}

func TestGolden6(t *testing.T) {
	p := port6()
	p.Place.Addrs = append(p.Place.Addrs[:1:1], vnet.Addr{CA: vnet.CA{Addr: netip.MustParseAddr(own6)}, Bits: 64})
	for name, req := range map[string]*dhcpv6.Message{
		"advertise":   ask6(dhcpv6.MessageTypeSolicit),
		"renew_stale": ask6(dhcpv6.MessageTypeRenew, stale6),
		"not_on_link": ask6(dhcpv6.MessageTypeConfirm, stale6),
	} {
		t.Run(name, func(t *testing.T) {
			r, err := dhcp.Answer(wrap6(req.ToBytes()), p)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, r.Frame)
		})
	}
}
