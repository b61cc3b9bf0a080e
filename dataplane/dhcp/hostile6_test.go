package dhcp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"replug/dataplane/dhcp"
	"replug/directory/vnet"
)

// TestRefusals6 is invariant 12 for DHCPv6: every malformed frame has its reason.
func TestRefusals6(t *testing.T) {
	solicit := func() []byte { return wrap6(ask6(dhcpv6.MessageTypeSolicit).ToBytes()) }
	edit := func(f func(b []byte)) []byte {
		b := solicit()
		f(b)
		return b
	}
	put := func(at int, v uint16) []byte {
		return edit(func(b []byte) { binary.BigEndian.PutUint16(b[at:], v) })
	}
	send := func(m *dhcpv6.Message) []byte { return wrap6(m.ToBytes()) }
	without := func(m *dhcpv6.Message, code dhcpv6.OptionCode) *dhcpv6.Message {
		m.Options.Del(code)
		return m
	}
	server, long := dhcpv6.OptServerID(serverDUID), make([]byte, 131)
	stranger := dhcpv6.OptServerID(clientDUID)
	many := ask6(dhcpv6.MessageTypeRenew, own6, second6, stale6, "fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6")
	crowd := ask6(dhcpv6.MessageTypeSolicit)
	for i := range byte(4) {
		crowd.AddOption(association([4]byte{9, 8, 7, i}))
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  dhcp.Refusal
	}{
		{"Ethernet only", solicit()[:14], dhcp.ErrTruncated},
		{"half an IPv6 header", solicit()[:40], dhcp.ErrTruncated},
		{"cut in the message", solicit()[:80], dhcp.ErrTruncated},
		{"IPv4 in an IPv6 frame", edit(func(b []byte) { b[14] = 0x45 }), dhcp.ErrNotDHCPv6},
		{"payload length beyond the frame", put(18, 1400), dhcp.ErrTruncated},
		{"payload length below 8", put(18, 7), dhcp.ErrTruncated},
		{"TCP", edit(func(b []byte) { b[20] = 6 }), dhcp.ErrNotDHCPv6},
		{"behind a hop-by-hop header", edit(func(b []byte) { b[20] = 0 }), dhcp.ErrNotDHCPv6},
		{"fragment", edit(func(b []byte) { b[20] = 44 }), dhcp.ErrFragment},
		{"to the gateway alone", edit(func(b []byte) { copy(b[38:], net.ParseIP(gateway6)) }), dhcp.ErrUnicast},
		{"from a global address", edit(func(b []byte) { copy(b[22:], net.ParseIP(own6)) }), dhcp.ErrSource},
		{"from nobody", edit(func(b []byte) { copy(b[22:], make([]byte, 16)) }), dhcp.ErrSource},
		{"from a group", edit(func(b []byte) { copy(b[22:], net.ParseIP("ff02::1")) }), dhcp.ErrSource},
		{"another port", put(56, 546), dhcp.ErrNotDHCPv6},
		{"UDP shorter than the packet", put(58, 20), dhcp.ErrTruncated},
		{"UDP longer than the packet", put(58, 1300), dhcp.ErrTruncated},
		{"no header of a message", wrap6([]byte{1, 2, 3}), dhcp.ErrMessage},
		{"option runs past the end", edit(func(b []byte) { b[69] = 250 }), dhcp.ErrMessage},
		{"relayed", wrap6(append([]byte{12, 0}, make([]byte, 32)...)), dhcp.ErrMessage},
		{"a server's message", send(ask6(dhcpv6.MessageTypeAdvertise)), dhcp.ErrType},
		{"a reconfigure", send(ask6(dhcpv6.MessageTypeReconfigure)), dhcp.ErrType},
		{"no message at all", send(ask6(dhcpv6.MessageTypeNone)), dhcp.ErrType},
		{"no client identifier", send(without(ask6(dhcpv6.MessageTypeSolicit), dhcpv6.OptionClientID)), dhcp.ErrClientID},
		{"two client identifiers", send(with(ask6(dhcpv6.MessageTypeSolicit), dhcpv6.OptClientID(serverDUID))), dhcp.ErrClientID},
		{"client identifier too long", send(with(without(ask6(dhcpv6.MessageTypeSolicit), dhcpv6.OptionClientID),
			&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: long})), dhcp.ErrClientID},
		{"solicit to a server", send(with(ask6(dhcpv6.MessageTypeSolicit), server)), dhcp.ErrServerID},
		{"rebind to a server", send(with(ask6(dhcpv6.MessageTypeRebind, own6), server)), dhcp.ErrServerID},
		{"confirm to a server", send(with(ask6(dhcpv6.MessageTypeConfirm, own6), server)), dhcp.ErrServerID},
		{"request to no server", send(without(ask6(dhcpv6.MessageTypeRequest, own6), dhcpv6.OptionServerID)), dhcp.ErrServerID},
		{"renew to another server", send(with(without(ask6(dhcpv6.MessageTypeRenew, own6), dhcpv6.OptionServerID), stranger)), dhcp.ErrServerID},
		{"release to two servers", send(with(ask6(dhcpv6.MessageTypeRelease, own6), server)), dhcp.ErrServerID},
		{"information from another server", send(with(ask6(dhcpv6.MessageTypeInformationRequest), stranger)), dhcp.ErrServerID},
		{"information from two servers", send(with(ask6(dhcpv6.MessageTypeInformationRequest), server, server)), dhcp.ErrServerID},
		{"information with an identity", send(with(ask6(dhcpv6.MessageTypeInformationRequest), association(iaid))), dhcp.ErrStateless},
		{"confirm of nothing", send(ask6(dhcpv6.MessageTypeConfirm)), dhcp.ErrNothing},
		{"nine addresses", send(many), dhcp.ErrTooMany},
		{"five identities", send(crowd), dhcp.ErrTooMany},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := dhcp.Answer(c.frame, port6())
			var got dhcp.Refusal
			if !errors.As(err, &got) || got != c.want || r.Frame != nil {
				t.Errorf("got %v, frame of %d bytes; want %v", err, len(r.Frame), c.want)
			}
		})
	}
}

// FuzzAnswer6 looks for a panic, and for an answer that breaks a promise: never
// larger than what every link carries, never another address that lives, the
// client's identifier as the client sent it.
func FuzzAnswer6(f *testing.F) {
	types := []dhcpv6.MessageType{
		dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRenew,
		dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeInformationRequest,
	}
	for _, t := range types {
		f.Add(ask6(t, own6).ToBytes(), false)
		f.Add(with(ask6(t, stale6, own6), association(otherIAID, stale6), &dhcpv6.OptIAPD{IaId: otherIAID}, &dhcpv6.OptIATA{}).ToBytes(), false)
	}
	f.Add(with(ask6(dhcpv6.MessageTypeSolicit), &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}).ToBytes(), false)
	f.Add(with(ask6(dhcpv6.MessageTypeSolicit), &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionFQDN, OptionData: []byte{0, 0xc0, 1}}).ToBytes(), false)
	f.Add(wrap6(ask6(dhcpv6.MessageTypeSolicit).ToBytes()), true)
	f.Add(wrap6(ask6(dhcpv6.MessageTypeRenew, stale6).ToBytes())[:90], true)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		msg := b
		if whole && len(b) < 62 {
			return
		}
		if whole {
			msg = b[62:]
			copy(b[12:], []byte{0x86, 0xdd})
			copy(b[22:38], net.ParseIP(guestLL))
		} else {
			if len(b) > 1414 {
				return
			}
			b = wrap6(b)
		}
		r, err := dhcp.Answer(b, port6())
		if (err == nil) != (r.Frame != nil) {
			t.Fatalf("an answer and a reason, or neither: %+v, %v", r, err)
		}
		if r.Frame == nil {
			return
		}
		checkAnswer6(t, msg, r.Frame)
	})
}

func checkAnswer6(t *testing.T, msg, frame []byte) {
	t.Helper()
	if len(frame) > 14+1280 {
		t.Fatalf("frame of %d bytes", len(frame))
	}
	if dst := vnet.MAC(frame[:6]); dst != guestMAC {
		t.Fatalf("answer to %s", dst)
	}
	m, err := dhcpv6.MessageFromBytes(frame[62:])
	if err != nil {
		t.Fatalf("the answer can't be read: %v", err)
	}
	for _, ia := range m.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if s := a.IPv6Addr.String(); a.ValidLifetime != 0 && s != own6 && s != second6 {
				t.Fatalf("gives %s for %s", s, a.ValidLifetime)
			}
		}
	}
	if id := m.GetOneOption(dhcpv6.OptionClientID); id != nil && !bytes.Contains(msg, id.ToBytes()) {
		t.Fatalf("client identifier % x is not the client's", id.ToBytes())
	}
}
