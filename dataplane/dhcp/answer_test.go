package dhcp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"replug/dataplane/dhcp"
	"replug/directory/vnet"
)

var guestMAC = vnet.MAC{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}

// place is a network in which no two octets of an address are alike.
func place() *vnet.Place {
	return &vnet.Place{
		Epoch: vnet.NewEpoch(3, 7), Tenant: "acme", Network: "blue", VNI: 0xABCDEF,
		Addrs: []vnet.Addr{{CA: ca("10.23.45.67"), Bits: 20, Gateway: ip("10.23.32.9")}},
		Routes: []vnet.Route{
			{Prefix: netip.MustParsePrefix("172.29.56.0/22"), NextHop: ip("10.23.41.83")},
			{Prefix: netip.MustParsePrefix("192.0.2.128/25"), NextHop: ip("198.51.100.77")},
		},
		DHCP: vnet.DHCP{
			DNS: []netip.Addr{ip("203.0.113.53"), ip("203.0.113.54")}, Domain: "blue.example",
			NTP: []netip.Addr{ip("203.0.113.123")}, Lease: 30 * time.Hour,
		},
		Document: &vnet.Document{Hostname: "web-1"},
	}
}

func port() dhcp.Port { return dhcp.Port{MAC: guestMAC, Place: place(), MTU: 1462} }

// A request is what a test changes of an otherwise good message.
type request struct {
	kind                          dhcpv4.MessageType
	ciaddr, asked, server, giaddr string
	broadcast                     bool
	clientID                      []byte
	size                          uint16
	chaddr                        net.HardwareAddr
	options                       []dhcpv4.Option
}

func (r request) message() *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(r.kind), dhcpv4.WithHwAddr(guestMAC[:]),
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{0xde, 0xad, 0xbe, 0x5f}))
	if err != nil {
		panic(err) // only without random numbers (dhcpv4.New): nothing here would work
	}
	set := func(dst *net.IP, s string) {
		if s != "" {
			*dst = net.ParseIP(s).To4()
		}
	}
	set(&m.ClientIPAddr, r.ciaddr)
	set(&m.GatewayIPAddr, r.giaddr)
	if r.asked != "" {
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(r.asked)))
	}
	if r.server != "" {
		m.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(r.server)))
	}
	if r.broadcast {
		m.SetBroadcast()
	}
	if r.clientID != nil {
		m.UpdateOption(dhcpv4.OptClientIdentifier(r.clientID))
	}
	if r.size != 0 {
		m.UpdateOption(dhcpv4.OptMaxMessageSize(r.size))
	}
	if r.chaddr != nil {
		m.ClientHWAddr = r.chaddr
	}
	for _, o := range r.options {
		m.UpdateOption(o)
	}
	return m
}

func (r request) frame() []byte { return wrap(r.message().ToBytes()) }

// wrap puts a message into the frame a client would send: UDP checksum left
// partial, as virtio does.
func wrap(msg []byte) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guestMAC[:]...)
	f = append(f, 0x08, 0x00, 0x45, 0x10)
	f = binary.BigEndian.AppendUint16(f, uint16(28+len(msg)))
	f = append(f, 0x12, 0x34, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255)
	header(f)
	f = append(f, 0, 68, 0, 67)
	f = binary.BigEndian.AppendUint16(f, uint16(8+len(msg)))
	return append(append(f, 0xbe, 0xef), msg...)
}

// header fills the IPv4 header checksum, by another way than the code tested.
func header(f []byte) {
	f[24], f[25] = 0, 0
	var s uint32
	for i := 14; i < 34; i += 2 {
		s += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	binary.BigEndian.PutUint16(f[24:], ^uint16(s%0xffff))
}

const (
	ours  = "169.254.169.254"
	own   = "10.23.45.67"
	stale = "10.77.5.6"
)

func TestAnswer(t *testing.T) {
	bcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	unicast := net.HardwareAddr(guestMAC[:])
	for _, c := range []struct {
		name          string
		req           request
		kind          dhcp.Kind
		msg           dhcpv4.MessageType
		yiaddr, ciadr string
		dstIP         string
		dstMAC        net.HardwareAddr
	}{
		{"discover", request{kind: dhcpv4.MessageTypeDiscover}, dhcp.Offer, dhcpv4.MessageTypeOffer, own, "0.0.0.0", own, unicast},
		{"discover, wants broadcast", request{kind: dhcpv4.MessageTypeDiscover, broadcast: true}, dhcp.Offer, dhcpv4.MessageTypeOffer, own, "0.0.0.0", "255.255.255.255", bcast},
		{"discover, asks for the old address", request{kind: dhcpv4.MessageTypeDiscover, asked: stale}, dhcp.Offer, dhcpv4.MessageTypeOffer, own, "0.0.0.0", own, unicast},
		{"selecting", request{kind: dhcpv4.MessageTypeRequest, asked: own, server: ours}, dhcp.Ack, dhcpv4.MessageTypeAck, own, "0.0.0.0", own, unicast},
		{"selecting an offer from before the flip", request{kind: dhcpv4.MessageTypeRequest, asked: stale, server: ours}, dhcp.Nak, dhcpv4.MessageTypeNak, "0.0.0.0", "0.0.0.0", "255.255.255.255", bcast},
		{"selecting another server's offer", request{kind: dhcpv4.MessageTypeRequest, asked: own, server: "10.23.32.9"}, dhcp.Nak, dhcpv4.MessageTypeNak, "0.0.0.0", "0.0.0.0", "255.255.255.255", bcast},
		{"init-reboot", request{kind: dhcpv4.MessageTypeRequest, asked: own}, dhcp.Ack, dhcpv4.MessageTypeAck, own, "0.0.0.0", own, unicast},
		{"init-reboot, wants broadcast", request{kind: dhcpv4.MessageTypeRequest, asked: own, broadcast: true}, dhcp.Ack, dhcpv4.MessageTypeAck, own, "0.0.0.0", "255.255.255.255", bcast},
		{"init-reboot with the old address", request{kind: dhcpv4.MessageTypeRequest, asked: stale}, dhcp.Nak, dhcpv4.MessageTypeNak, "0.0.0.0", "0.0.0.0", "255.255.255.255", bcast},
		{"renew", request{kind: dhcpv4.MessageTypeRequest, ciaddr: own, broadcast: true}, dhcp.Ack, dhcpv4.MessageTypeAck, own, own, own, unicast},
		{"renew of the old address", request{kind: dhcpv4.MessageTypeRequest, ciaddr: stale}, dhcp.Nak, dhcpv4.MessageTypeNak, "0.0.0.0", "0.0.0.0", "255.255.255.255", bcast},
		{"request that names no address", request{kind: dhcpv4.MessageTypeRequest}, dhcp.Nak, dhcpv4.MessageTypeNak, "0.0.0.0", "0.0.0.0", "255.255.255.255", bcast},
		{"inform", request{kind: dhcpv4.MessageTypeInform, ciaddr: own}, dhcp.Inform, dhcpv4.MessageTypeAck, "0.0.0.0", own, own, unicast},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := dhcp.Answer(c.req.frame(), port())
			if err != nil || r.Kind != c.kind {
				t.Fatalf("got %s, %v; want %s", r.Kind, err, c.kind)
			}
			m := open(t, r.Frame)
			got := []string{m.MessageType().String(), m.YourIPAddr.String(), m.ClientIPAddr.String(),
				net.IP(r.Frame[30:34]).String(), net.HardwareAddr(r.Frame[:6]).String(), m.ServerIdentifier().String()}
			want := []string{c.msg.String(), c.yiaddr, c.ciadr, c.dstIP, c.dstMAC.String(), ours}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("type, yiaddr, ciaddr, IP, MAC, server id (-want +got):\n%s", d)
			}
			if id := m.TransactionID; id != (dhcpv4.TransactionID{0xde, 0xad, 0xbe, 0x5f}) {
				t.Errorf("xid %s", id)
			}
		})
	}
}

// open takes an answer apart and checks both checksums on the way.
func open(t *testing.T, frame []byte) *dhcpv4.DHCPv4 {
	t.Helper()
	check := append([]byte{}, frame...)
	header(check)
	if got, want := binary.BigEndian.Uint16(frame[24:]), binary.BigEndian.Uint16(check[24:]); got != want {
		t.Errorf("IPv4 checksum %#04x, want %#04x", got, want)
	}
	pseudo := uint32(17) + uint32(len(frame)-34)
	for _, b := range [][]byte{frame[26:34], frame[34:]} {
		for i := 0; i < len(b); i++ {
			pseudo += uint32(b[i]) << (8 * (1 - i%2))
		}
	}
	if pseudo%0xffff != 0 {
		t.Errorf("UDP checksum is off by %#04x", pseudo%0xffff)
	}
	m, err := dhcpv4.FromBytes(frame[42:])
	if err != nil {
		t.Fatalf("the answer can't be read: %v", err)
	}
	return m
}

func TestOptions(t *testing.T) {
	r, err := dhcp.Answer(request{kind: dhcpv4.MessageTypeRequest, asked: own, clientID: []byte{0xff, 9, 8, 7}}.frame(), port())
	if err != nil {
		t.Fatal(err)
	}
	want := dhcpv4.Options{
		1:   {255, 255, 240, 0},
		3:   {10, 23, 32, 9},
		6:   {203, 0, 113, 53, 203, 0, 113, 54},
		12:  []byte("web-1"),
		15:  []byte("blue.example"),
		26:  {0x05, 0xb6}, // 1462
		42:  {203, 0, 113, 123},
		51:  {0x00, 0x01, 0xa5, 0xe0}, // 30 h
		53:  {5},
		54:  {169, 254, 169, 254},
		58:  {0x00, 0x00, 0xd2, 0xf0}, // 15 h
		59:  {0x00, 0x01, 0x71, 0x24}, // 26 h 15 min
		61:  {0xff, 9, 8, 7},
		121: routes121,
	}
	if d := cmp.Diff(want, open(t, r.Frame).Options); d != "" || r.Omitted != nil {
		t.Errorf("omitted %v, options (-want +got):\n%s", r.Omitted, d)
	}
}

// routes121 is option 121 of [place], written by hand from RFC 3442: the default,
// the metadata service, a route with a next hop on the link, and one with a next
// hop that only the datapath reaches.
var routes121 = []byte{
	0, 10, 23, 32, 9,
	32, 169, 254, 169, 254, 10, 23, 32, 9,
	22, 172, 29, 56, 10, 23, 41, 83,
	25, 192, 0, 2, 128, 10, 23, 32, 9,
}

func TestOptionsByPlace(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   dhcpv4.MessageType
		change func(*dhcp.Port)
		code   uint8
		want   []byte
	}{
		{"no hostname while the document is partial", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) { p.Place.Document.Tag = vnet.TagPartial }, 12, nil},
		{"no hostname without a document", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) { p.Place.Document = nil }, 12, nil},
		{"the network's MTU wins", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) { p.Place.MTU = 1333 }, 26, []byte{0x05, 0x35}},
		{"no MTU when nobody knows it", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) { p.MTU = 0 }, 26, nil},
		{"a lease of a day when none is given", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) { p.Place.DHCP.Lease = 0 }, 51, []byte{0, 1, 0x51, 0x80}},
		{"no lease to an INFORM", dhcpv4.MessageTypeInform, func(*dhcp.Port) {}, 51, nil},
		{"no renewal time to an INFORM", dhcpv4.MessageTypeInform, func(*dhcp.Port) {}, 58, nil},
		{"routes to an INFORM", dhcpv4.MessageTypeInform, func(*dhcp.Port) {}, 121, routes121},
		{"no router without a gateway", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) { p.Place.Addrs[0].Gateway = netip.Addr{} }, 3, nil},
		{"a gateway outside a /32 is made reachable", dhcpv4.MessageTypeDiscover,
			func(p *dhcp.Port) { p.Place.Addrs[0].Bits = 32; p.Place.Routes = nil }, 121,
			[]byte{32, 10, 23, 32, 9, 0, 0, 0, 0, 0, 10, 23, 32, 9, 32, 169, 254, 169, 254, 10, 23, 32, 9}},
		{"no more than four name servers, IPv4 only", dhcpv4.MessageTypeDiscover, func(p *dhcp.Port) {
			p.Place.DHCP.DNS = []netip.Addr{ip("fd00::53"), ip("9.8.7.1"), ip("9.8.7.2"), ip("9.8.7.3"), ip("9.8.7.4"), ip("9.8.7.5")}
		}, 6, []byte{9, 8, 7, 1, 9, 8, 7, 2, 9, 8, 7, 3, 9, 8, 7, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := port()
			c.change(&p)
			r, err := dhcp.Answer(request{kind: c.kind, ciaddr: map[bool]string{true: own}[c.kind == dhcpv4.MessageTypeInform]}.frame(), p)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, open(t, r.Frame).Options[c.code]); d != "" {
				t.Errorf("option %d (-want +got):\n%s", c.code, d)
			}
		})
	}
}

// A guest whose cloud-init reports to a wire server is told where that is, unasked,
// and has a route to it; no other guest is.
func TestWireServer(t *testing.T) {
	p := port()
	p.WireServer = ip("168.63.129.16")
	for _, c := range []struct {
		port   dhcp.Port
		want   []byte
		routed bool
	}{{p, []byte{168, 63, 129, 16}, true}, {port(), nil, false}} {
		reply, err := dhcp.Answer(request{kind: dhcpv4.MessageTypeDiscover}.frame(), c.port)
		if err != nil {
			t.Fatal(err)
		}
		m := open(t, reply.Frame)
		if got := m.GetOneOption(dhcpv4.GenericOptionCode(245)); !bytes.Equal(got, c.want) {
			t.Errorf("option 245: %v, want %v", got, c.want)
		}
		routes := m.GetOneOption(dhcpv4.OptionClasslessStaticRoute)
		if routed := bytes.Contains(routes, append([]byte{32, 168, 63, 129, 16}, p.Place.Addrs[0].Gateway.AsSlice()...)); routed != c.routed {
			t.Errorf("routes %v: to the wire server %t, want %t", routes, routed, c.routed)
		}
	}
}

func TestOnlyWhatFits(t *testing.T) {
	p := port()
	for i := range 30 {
		p.Place.Routes = append(p.Place.Routes, vnet.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i), 13, 0}), 24), NextHop: ip("10.23.41.83")})
	}
	for _, c := range []struct {
		name    string
		size    uint16
		mtu     uint16
		largest int // IP packet
		omitted []uint8
	}{
		{"a client that says nothing", 0, 1462, 576, []uint8{121}},
		{"a client that says less than it must", 300, 1462, 576, []uint8{121}},
		{"a client with room", 1400, 1462, 1400, nil},
		{"a client with more room than the wire", 9000, 610, 610, []uint8{121}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.MTU = c.mtu
			r, err := dhcp.Answer(request{kind: dhcpv4.MessageTypeDiscover, size: c.size}.frame(), p)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(r.Frame) - 14; n > c.largest {
				t.Errorf("packet of %d bytes, want at most %d", n, c.largest)
			}
			if d := cmp.Diff(c.omitted, r.Omitted); d != "" {
				t.Errorf("omitted (-want +got):\n%s", d)
			}
			if list := open(t, r.Frame).ClasslessStaticRoute(); len(list) < 2 || list[1].Dest.String() != "169.254.169.254/32" {
				t.Errorf("default and metadata route are gone: %v", list)
			}
		})
	}
}

func ca(s string) vnet.CA    { return vnet.CA{Addr: ip(s)} }
func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// golden compares with testdata. A file that is missing is written if WRITE_GOLDEN
// is set, never one that is there; tcpdump -vvv and tshark -V have read both files.
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

// duid is a client identifier as systemd-networkd sends it (RFC 4361): IAID, DUID-EN.
var duid = []byte{0xff, 0x3c, 0x9d, 0x21, 0xa7, 0, 2, 0, 0, 0xab, 0x11, 0x5e, 0x2d, 0x8c, 0x43, 0x96, 0xb1, 0x7f, 0xe4}

func TestGolden(t *testing.T) {
	for name, req := range map[string]request{
		"offer": {kind: dhcpv4.MessageTypeDiscover, clientID: duid},
		"nak":   {kind: dhcpv4.MessageTypeRequest, ciaddr: stale, clientID: duid},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := dhcp.Answer(req.frame(), port())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, r.Frame)
		})
	}
}
