package dhcp

import (
	"bytes"
	"fmt"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"replug/directory/vnet"
)

// serverDUID names this server in every network and on every host: a client that
// renews after a swap must not think that it speaks to a stranger. It is the
// DUID-LL (RFC 8415, section 11.4) of the gateway's MAC.
var serverDUID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: vnet.GatewayMAC[:]}

// Bounds of what one message may hold, so that an answer fits the 1280 bytes that
// every IPv6 link carries. A guest has no more than eight addresses.
const (
	maxDUID       = 2 + 128 // RFC 8415, section 11.1
	maxIdentities = 4       // IA_NA, IA_TA and IA_PD together
	maxNamed      = 8       // addresses in them
)

// answer6 answers one DHCPv6 message, like [Answer].
func answer6(frame []byte, port Port) (Reply, error) {
	req, from, err := parse6(frame)
	if err != nil {
		return Reply{}, err
	}
	if err := admit6(req); err != nil {
		return Reply{}, fmt.Errorf("%s from %s: %w", req.MessageType, port.MAC, err)
	}
	msg, kind := decide6(req, port.Place)
	gateway := port.Place.VNI.Gateway6()
	return Reply{Frame: encode6(gateway, from, port.MAC, msg.ToBytes()), Kind: kind}, nil
}

// A need says whether an identifier is in a message (RFC 8415, section 16).
type need uint8

const (
	may need = iota
	must
	mustNot
)

// identifiers is what each message that a client sends says of client and server.
var identifiers = map[dhcpv6.MessageType]struct{ client, server need }{
	dhcpv6.MessageTypeSolicit:            {must, mustNot},
	dhcpv6.MessageTypeRequest:            {must, must},
	dhcpv6.MessageTypeConfirm:            {must, mustNot},
	dhcpv6.MessageTypeRenew:              {must, must},
	dhcpv6.MessageTypeRebind:             {must, mustNot},
	dhcpv6.MessageTypeRelease:            {must, must},
	dhcpv6.MessageTypeDecline:            {must, must},
	dhcpv6.MessageTypeInformationRequest: {may, may},
}

// admit6 refuses what RFC 8415, section 16, wants discarded, and what no guest
// of ours could rightly send.
func admit6(req *dhcpv6.Message) error {
	ids, ok := identifiers[req.MessageType]
	if !ok {
		return ErrType
	}
	client, server := req.GetOption(dhcpv6.OptionClientID), req.GetOption(dhcpv6.OptionServerID)
	if err := given(ids.client, len(client), ErrClientID); err != nil {
		return err
	}
	if err := given(ids.server, len(server), ErrServerID); err != nil {
		return err
	}
	if len(client) == 1 && len(client[0].ToBytes()) > maxDUID {
		return ErrClientID
	}
	if len(server) == 1 && !bytes.Equal(server[0].ToBytes(), serverDUID.ToBytes()) {
		return ErrServerID
	}
	identities, addrs := count(req)
	switch {
	case identities > maxIdentities || addrs > maxNamed:
		return fmt.Errorf("%d identities with %d addresses: %w", identities, addrs, ErrTooMany)
	case req.MessageType == dhcpv6.MessageTypeInformationRequest && identities > 0:
		return ErrStateless
	case req.MessageType == dhcpv6.MessageTypeConfirm && addrs == 0:
		return ErrNothing
	}
	return nil
}

func given(n need, found int, otherwise Refusal) error {
	if n == must && found != 1 || n == mustNot && found != 0 || found > 1 {
		return otherwise
	}
	return nil
}

// count returns how many identity associations a message holds, and addresses in them.
func count(req *dhcpv6.Message) (identities, addrs int) {
	for _, ia := range req.Options.IANA() {
		addrs += len(ia.Options.Addresses())
	}
	for _, ia := range req.Options.IATA() {
		addrs += len(ia.Options.Addresses())
	}
	return len(req.Options.IANA()) + len(req.Options.IATA()) + len(req.Options.IAPD()), addrs
}

// decide6 makes the answer (RFC 8415, section 18.3). The port's addresses are
// the only ones that are right for a client here; all others are of a place that
// it has left, and it is to give them up at once.
func decide6(req *dhcpv6.Message, place *vnet.Place) (*dhcpv6.Message, Kind) {
	b := binding{place, own6(place)}
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		ias, kind := b.identities(req, grant)
		rapid := req.GetOneOption(dhcpv6.OptionRapidCommit)
		if rapid != nil && kind == Grant {
			return message6(req, dhcpv6.MessageTypeReply, append(ias, rapid), settings6(place)), kind
		}
		if kind == Grant {
			kind = Advertise
		}
		// Clients wait a second for other servers unless one says that it is the best.
		ias = append(ias, dhcpv6.OptPreference(255))
		return message6(req, dhcpv6.MessageTypeAdvertise, ias, settings6(place)), kind
	case dhcpv6.MessageTypeRequest:
		ias, kind := b.identities(req, take)
		return message6(req, dhcpv6.MessageTypeReply, ias, settings6(place)), kind
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		ias, kind := b.identities(req, extend)
		return message6(req, dhcpv6.MessageTypeReply, ias, settings6(place)), kind
	case dhcpv6.MessageTypeConfirm:
		if b.confirms(req) {
			return message6(req, dhcpv6.MessageTypeReply, status(iana.StatusSuccess), settings6(place)), Confirmed
		}
		return message6(req, dhcpv6.MessageTypeReply, status(iana.StatusNotOnLink), nil), OffLink
	case dhcpv6.MessageTypeInformationRequest:
		refresh := dhcpv6.OptInformationRefreshTime(refreshTime)
		return message6(req, dhcpv6.MessageTypeReply, dhcpv6.Options{refresh}, settings6(place)), Information
	}
	// Release or Decline: the address stays the port's, whatever the client says.
	ias, _ := b.identities(req, giveUp)
	kind := Released
	if req.MessageType == dhcpv6.MessageTypeDecline {
		kind = Declined
	}
	return message6(req, dhcpv6.MessageTypeReply, append(status(iana.StatusSuccess), ias...), nil), kind
}

// message6 is an answer to req.
func message6(req *dhcpv6.Message, t dhcpv6.MessageType, parts ...dhcpv6.Options) *dhcpv6.Message {
	msg := &dhcpv6.Message{MessageType: t, TransactionID: req.TransactionID}
	if id := req.GetOneOption(dhcpv6.OptionClientID); id != nil {
		msg.AddOption(id)
	}
	msg.AddOption(dhcpv6.OptServerID(serverDUID))
	for _, opts := range parts {
		msg.Options.Options = append(msg.Options.Options, opts...)
	}
	return msg
}
