package dhcp_test

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"replug/dataplane/dhcp"
	"replug/directory/vnet"
)

// TestRefusals is invariant 12 for DHCP: every malformed frame has its reason.
func TestRefusals(t *testing.T) {
	discover := func() []byte { return request{kind: dhcpv4.MessageTypeDiscover}.frame() }
	edit := func(f func(b []byte)) []byte {
		b := discover()
		f(b)
		header(b)
		return b
	}
	put := func(at int, v uint16) []byte {
		return edit(func(b []byte) { binary.BigEndian.PutUint16(b[at:], v) })
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  dhcp.Refusal
	}{
		{"nothing", nil, dhcp.ErrTruncated},
		{"Ethernet only", discover()[:14], dhcp.ErrTruncated},
		{"half an IPv4 header", discover()[:33], dhcp.ErrTruncated},
		{"cut in the message", discover()[:200], dhcp.ErrTruncated},
		{"ARP", edit(func(b []byte) { b[13] = 6 }), dhcp.ErrNotDHCP},
		{"IPv6 in an IPv4 frame", edit(func(b []byte) { b[14] = 0x65 }), dhcp.ErrNotDHCP},
		{"header length below 20", edit(func(b []byte) { b[14] = 0x44 }), dhcp.ErrTruncated},
		{"header longer than the packet", edit(func(b []byte) { b[14] = 0x4f; binary.BigEndian.PutUint16(b[16:], 62) }), dhcp.ErrTruncated},
		{"longer than the frame", put(16, 1400), dhcp.ErrTruncated},
		{"wrong header checksum", func() []byte { b := discover(); b[24] ^= 0x5a; return b }(), dhcp.ErrChecksum},
		{"TCP", edit(func(b []byte) { b[23] = 6 }), dhcp.ErrNotDHCP},
		{"first fragment", put(20, 0x2000), dhcp.ErrFragment},
		{"last fragment", put(20, 0x0025), dhcp.ErrFragment},
		{"another port", put(36, 69), dhcp.ErrNotDHCP},
		{"UDP length below 8", put(38, 7), dhcp.ErrTruncated},
		{"UDP length beyond the packet", put(38, 1300), dhcp.ErrTruncated},
		{"UDP holds half a message", put(38, 100), dhcp.ErrMessage},
		{"no magic cookie", edit(func(b []byte) { b[42+236] = 0x62 }), dhcp.ErrMessage},
		{"option runs past the end", edit(func(b []byte) { b[42+241] = 250 }), dhcp.ErrMessage},
		{"a server's message", edit(func(b []byte) { b[42] = 2 }), dhcp.ErrNotDHCP},
		{"hardware type", edit(func(b []byte) { b[43] = 6 }), dhcp.ErrHardware},
		{"hardware length", edit(func(b []byte) { b[44] = 255 }), dhcp.ErrHardware},
		{"somebody else's address", request{kind: dhcpv4.MessageTypeDiscover, chaddr: net.HardwareAddr{2, 0x52, 9, 9, 9, 9}}.frame(), dhcp.ErrHardware},
		{"through a relay", request{kind: dhcpv4.MessageTypeDiscover, giaddr: "10.9.8.7"}.frame(), dhcp.ErrRelayed},
		{"an offer as a request", request{kind: dhcpv4.MessageTypeOffer}.frame(), dhcp.ErrType},
		{"BOOTP without a type", request{kind: dhcpv4.MessageTypeNone}.frame(), dhcp.ErrType},
		{"inform from the old address", request{kind: dhcpv4.MessageTypeInform, ciaddr: stale}.frame(), dhcp.ErrInform},
		{"decline", request{kind: dhcpv4.MessageTypeDecline, asked: own, server: ours}.frame(), dhcp.ErrDeclined},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := dhcp.Answer(c.frame, port())
			var got dhcp.Refusal
			if !errors.As(err, &got) || got != c.want || r.Frame != nil {
				t.Errorf("got %v, frame of %d bytes; want %v", err, len(r.Frame), c.want)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	r, err := dhcp.Answer(request{kind: dhcpv4.MessageTypeRelease, ciaddr: own, server: ours}.frame(), port())
	if err != nil || r.Kind != dhcp.Released || r.Frame != nil {
		t.Errorf("release: %+v, %v", r, err)
	}
	r, err = dhcp.Answer(request{kind: dhcpv4.MessageTypeDecline, asked: own, server: ours}.frame(), port())
	if !errors.Is(err, dhcp.ErrDeclined) || r.Kind != dhcp.Declined {
		t.Errorf("decline: %+v, %v", r, err)
	}
	p := port()
	p.Place.Addrs = []vnet.Addr{{CA: ca("fd00::7"), Bits: 64}}
	if _, err := dhcp.Answer(request{kind: dhcpv4.MessageTypeDiscover}.frame(), p); !errors.Is(err, dhcp.ErrNoAddress) {
		t.Errorf("a place without IPv4: %v", err)
	}
	for _, req := range []request{{kind: dhcpv4.MessageTypeRequest}, {kind: dhcpv4.MessageTypeRequest, ciaddr: stale}, {kind: dhcpv4.MessageTypeRequest, asked: own}} {
		r, err := dhcp.Answer(req.frame(), p)
		if err != nil || r.Kind != dhcp.Nak || open(t, r.Frame).MessageType() != dhcpv4.MessageTypeNak {
			t.Errorf("%+v at a place without IPv4: %s, %v; want a NAK", req, r.Kind, err)
		}
	}
}

// FuzzAnswer looks for a panic, and for an answer that breaks a promise: never
// larger than a frame of the port, never to another MAC, always readable.
func FuzzAnswer(f *testing.F) {
	for _, k := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease} {
		f.Add(request{kind: k, asked: own, ciaddr: own, server: ours, clientID: []byte{1, 2, 3}, size: 700}.message().ToBytes(), false)
		f.Add(request{kind: k, asked: stale, broadcast: true}.message().ToBytes(), false)
	}
	long := request{kind: dhcpv4.MessageTypeDiscover, clientID: make([]byte, 600), size: 65535}
	f.Add(long.message().ToBytes(), false)
	f.Add(long.frame(), true)
	f.Add(request{kind: dhcpv4.MessageTypeDiscover}.frame()[:280], true)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if !whole {
			if len(b) > 1460 {
				return
			}
			b = wrap(b)
		}
		r, err := dhcp.Answer(b, port())
		if (err == nil) == (r.Frame == nil && r.Kind != dhcp.Released) {
			t.Fatalf("neither an answer nor a reason: %+v", r)
		}
		if r.Frame == nil {
			return
		}
		if len(r.Frame) > 14+1462 {
			t.Fatalf("frame of %d bytes", len(r.Frame))
		}
		if dst := vnet.MAC(r.Frame[:6]); dst != guestMAC && dst != (vnet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) {
			t.Fatalf("answer to %s", dst)
		}
		m := open(t, r.Frame)
		if y := m.YourIPAddr.String(); y != own && y != "0.0.0.0" {
			t.Fatalf("offers %s", y)
		}
	})
}
