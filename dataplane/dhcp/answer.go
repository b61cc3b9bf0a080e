// Package dhcp answers DHCPv4 and DHCPv6 for one port. The answer is a pure
// function of the frame, the port's MAC and its place: there is no lease table to
// lose, and an agent that has just started answers as the one before it did.
//
// It does no I/O and keeps no state. Who may ask how often, and whether the
// place is still in force when the answer leaves, is its caller's business.
package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"replug/directory/vnet"
)

// ServerID is the server identifier (option 54) and source of every answer, in
// every network.
//
// It is not the subnet's gateway, because systemd-networkd ignores a DHCPNAK
// whose server identifier is not the one of the lease it holds: after a swap to
// a network with another gateway it would be deaf to the NAK that is to move it
// on. A lease routes this address through the gateway (option 121), so a client
// that renews by unicast reaches its host's agent wherever it is.
var ServerID = netip.AddrFrom4([4]byte{169, 254, 169, 254})

// A Port is all that an answer depends on, beside the frame.
type Port struct {
	MAC   vnet.MAC
	Place *vnet.Place
	MTU   uint16 // bytes of an IP packet; used where the place says nothing
	// WireServer is where cloud-init's Azure data source reports; zero: the guest has none.
	WireServer netip.Addr
}

// A Kind is what an answer, or a message that gets none, was.
type Kind uint8

// The kinds. Metrics labels: append, never renumber.
const (
	Offer    Kind = 1 // to a DISCOVER
	Ack      Kind = 2 // to a REQUEST for the port's address
	Nak      Kind = 3 // to a REQUEST for any other address
	Inform   Kind = 4 // an ACK to an INFORM: settings without address or lease
	Declined Kind = 5 // the client says somebody else uses its address; DHCPv4 answers nothing
	Released Kind = 6 // the client gave its address back; DHCPv4 answers nothing

	// Of DHCPv6, which answers a client that declines or releases as well.
	Advertise   Kind = 7  // to a Solicit: the port's addresses are offered
	Grant       Kind = 8  // a Reply with the port's addresses; any other in it is taken back
	Confirmed   Kind = 9  // a Reply that says that the client's addresses are right
	OffLink     Kind = 10 // a Reply that says that they are not: the client starts over
	Empty       Kind = 11 // an answer without address: the place has none for what was asked
	Information Kind = 12 // a Reply with settings only
)

// String returns the kind's word in logs and metrics.
func (k Kind) String() string {
	names := [...]string{"none", "offer", "ack", "nak", "inform", "declined", "released",
		"advertise", "grant", "confirmed", "off_link", "empty", "information"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// A Reply is the frame to send to the guest, and what it is.
type Reply struct {
	Frame   []byte  // Ethernet to DHCP, checksums filled; nil: nothing to send
	Kind    Kind    // zero if the message was refused
	Omitted []uint8 // options that did not fit the client's message size, whole or in part
}

// A Refusal is why a frame got no answer. Its text is a metrics label.
type Refusal string

// Error returns the refusal's words.
func (r Refusal) Error() string { return string(r) }

// The refusals of [Answer].
const (
	ErrTruncated Refusal = "a header runs past the end of the frame"
	ErrNotDHCP   Refusal = "not a DHCPv4 request (IPv4, UDP to port 67, BOOTREQUEST)"
	ErrFragment  Refusal = "an IP fragment"
	ErrChecksum  Refusal = "the IPv4 header checksum is wrong"
	ErrMessage   Refusal = "the DHCP message can't be read"
	ErrHardware  Refusal = "the client hardware address is not the port's MAC"
	ErrRelayed   Refusal = "the message came through a relay agent"
	ErrType      Refusal = "not a message that a client sends"
	ErrInform    Refusal = "an INFORM from an address that is not the port's"
	ErrDeclined  Refusal = "the client declined its address as used by somebody else"
	ErrNoAddress Refusal = "the place has no IPv4 address"

	ErrNotDHCPv6 Refusal = "not a DHCPv6 request (IPv6, UDP to port 547)"
	ErrUnicast   Refusal = "a DHCPv6 message that was not sent to all servers"
	ErrSource    Refusal = "a DHCPv6 message that was not sent from a link-local address"
	ErrClientID  Refusal = "no client identifier, or more than one, or one that is too long"
	ErrServerID  Refusal = "a server identifier that is missing, not allowed, or another server's"
	ErrTooMany   Refusal = "more identity associations or addresses than a guest can have"
	ErrStateless Refusal = "an Information-request with an identity association"
	ErrNothing   Refusal = "a Confirm that names no address"
)

// Answer answers one trapped frame (Ethernet to DHCP, untagged) of either family.
// A frame that can't be answered returns a wrapped [Refusal]. A RELEASE of DHCPv4
// is no refusal and gets no answer; its DECLINE is [ErrDeclined].
//
// The UDP checksum of the request is not checked: with virtio's offload it is
// still to be filled in when the frame reaches the tap.
func Answer(frame []byte, port Port) (Reply, error) {
	if len(frame) >= etherLen && binary.BigEndian.Uint16(frame[12:]) == etherIPv6 {
		return answer6(frame, port)
	}
	req, err := parse(frame)
	if err != nil {
		return Reply{}, err
	}
	if err := admit(req, port.MAC); err != nil {
		return Reply{}, err
	}
	addr, ok := port.Place.V4()
	switch {
	case !ok && req.MessageType() == dhcpv4.MessageTypeRequest:
		return reply(req, Nak, addr, port), nil // whatever it asks for is of another place
	case !ok:
		return Reply{}, fmt.Errorf("%s from %s: %w", req.MessageType(), port.MAC, ErrNoAddress)
	}
	kind, err := decide(req, addr.CA.Addr)
	if err != nil || kind == Released {
		return Reply{Kind: kind}, err
	}
	return reply(req, kind, addr, port), nil
}

// admit refuses what no client on this port could rightly have sent.
func admit(req *dhcpv4.DHCPv4, mac vnet.MAC) error {
	switch {
	case req.OpCode != dhcpv4.OpcodeBootRequest:
		return fmt.Errorf("op %d: %w", req.OpCode, ErrNotDHCP)
	case req.HWType != 1 || len(req.ClientHWAddr) != 6 || vnet.MAC(req.ClientHWAddr) != mac:
		return fmt.Errorf("%s on the port of %s: %w", req.ClientHWAddr, mac, ErrHardware)
	case !req.GatewayIPAddr.IsUnspecified():
		return fmt.Errorf("giaddr %s: %w", req.GatewayIPAddr, ErrRelayed)
	}
	return nil
}

// decide says what the answer is (RFC 2131, sections 4.3.1 to 4.3.5).
func decide(req *dhcpv4.DHCPv4, ca netip.Addr) (Kind, error) {
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return Offer, nil
	case dhcpv4.MessageTypeRequest:
		if asks(req) == ca && fromUs(req) {
			return Ack, nil
		}
		return Nak, nil
	case dhcpv4.MessageTypeInform:
		if from := addrOf(req.ClientIPAddr); from != ca {
			return 0, fmt.Errorf("%s, the port's is %s: %w", from, ca, ErrInform)
		}
		return Inform, nil
	case dhcpv4.MessageTypeDecline:
		return Declined, fmt.Errorf("%s: %w", asks(req), ErrDeclined)
	case dhcpv4.MessageTypeRelease:
		return Released, nil
	}
	return 0, fmt.Errorf("message type %d: %w", req.MessageType(), ErrType)
}

// asks returns the address that a REQUEST is about: option 50 in SELECTING and
// INIT-REBOOT, ciaddr in RENEWING and REBINDING (RFC 2131, table 4).
func asks(req *dhcpv4.DHCPv4) netip.Addr {
	if a := addrOf(req.RequestedIPAddress()); a.IsValid() {
		return a
	}
	return addrOf(req.ClientIPAddr)
}

// fromUs reports whether a REQUEST names this server, or none. RFC 2131 wants
// silence for another server's offer; but no other server can be heard on this
// link, so such an offer is a relic, and a NAK gets the client going at once.
func fromUs(req *dhcpv4.DHCPv4) bool {
	id := addrOf(req.ServerIdentifier())
	return !id.IsValid() || id == ServerID
}
