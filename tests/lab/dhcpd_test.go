package lab_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"replug/tests/lab"
)

// serveDHCP offers one address on the host's end of a guest's wire.
func serveDHCP(t *testing.T, g *lab.Guest, offer string) {
	t.Helper()
	addr := net.IP(netip.MustParseAddr(offer).AsSlice())
	answer := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		} else if m.MessageType() != dhcpv4.MessageTypeDiscover {
			return
		}
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(addr),
			dhcpv4.WithServerIP(net.IP{10, 23, 47, 67}), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 23, 47, 67})), dhcpv4.WithLeaseTime(3600))
		if err == nil {
			conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
	}
	var s *server4.Server
	err := g.On().Do(func() (err error) {
		s, err = server4.NewServer(g.Tap(), &net.UDPAddr{IP: net.IPv4zero, Port: 67}, answer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Serve(); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
}
