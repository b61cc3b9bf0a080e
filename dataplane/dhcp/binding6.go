package dhcp

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"replug/directory/vnet"
)

// A binding is what the port's client is entitled to: all IPv6 addresses of its
// place, in one identity association.
type binding struct {
	place *vnet.Place
	own   []netip.Addr
}

func own6(place *vnet.Place) []netip.Addr {
	var own []netip.Addr
	for _, a := range place.Addrs {
		if a.CA.Is6() {
			own = append(own, a.CA.Addr)
		}
	}
	return own
}

// An ask is what a client wants with its identity associations.
type ask uint8

const (
	grant  ask = iota // give me addresses (Solicit)
	take              // I take those that you offered (Request)
	extend            // let me keep mine (Renew, Rebind)
	giveUp            // have them back (Release, Decline)
)

// identities answers all identity associations of a message in their order.
func (b binding) identities(req *dhcpv6.Message, a ask) (dhcpv6.Options, Kind) {
	var opts dhcpv6.Options
	kind, first := Empty, b.primary(req)
	for i, ia := range req.Options.IANA() {
		opt, k := b.identity(ia, a, i == first)
		opts = append(opts, opt)
		if k != Empty && kind != Grant {
			kind = k
		}
	}
	// There are neither temporary addresses nor prefixes.
	for _, ia := range req.Options.IATA() {
		opts = append(opts, &dhcpv6.OptIATA{IaId: ia.IaId, Options: identity(status(none(a)))})
	}
	for _, ia := range req.Options.IAPD() {
		code := none(a)
		if code == iana.StatusNoAddrsAvail {
			code = iana.StatusNoPrefixAvail
		}
		opts = append(opts, &dhcpv6.OptIAPD{IaId: ia.IaId, Options: dhcpv6.PDOptions{Options: status(code)}})
	}
	return opts, kind
}

// primary is the association that gets the addresses: the one that has one of
// them already, else the first.
func (b binding) primary(req *dhcpv6.Message) int {
	return max(0, slices.IndexFunc(req.Options.IANA(), func(ia *dhcpv6.OptIANA) bool {
		return slices.ContainsFunc(named(ia.Options), b.owns)
	}))
}

func (b binding) owns(a netip.Addr) bool { return slices.Contains(b.own, a) }

// none says that there is nothing for an association.
func none(a ask) iana.StatusCode {
	if a == grant || a == take {
		return iana.StatusNoAddrsAvail
	}
	return iana.StatusNoBinding
}

// identity answers one association (RFC 8415, sections 18.3.1 to 18.3.8, 18.3.9).
func (b binding) identity(ia *dhcpv6.OptIANA, a ask, primary bool) (*dhcpv6.OptIANA, Kind) {
	reply := &dhcpv6.OptIANA{IaId: ia.IaId}
	addrs := named(ia.Options)
	stale := slices.DeleteFunc(slices.Clone(addrs), b.owns)
	mine := primary && len(b.own) > 0
	switch {
	case a == giveUp && len(addrs) > 0 && len(stale) == 0:
		return reply, Empty
	case a == take && len(stale) > 0:
		// Offered before the flip. The client starts over, and at once.
		reply.Options = identity(status(iana.StatusNotOnLink))
		return reply, OffLink
	case a == extend && len(stale) > 0:
		// Lifetime 0: dead this instant. The new address comes in the same
		// message, so the client need not look for a server again.
		for _, old := range stale {
			reply.Options.Add(address(old, 0))
		}
	case a == giveUp || !mine:
		reply.Options = identity(status(none(a)))
	}
	if a == giveUp || !mine {
		return reply, Empty
	}
	l := lease(b.place.DHCP)
	reply.T1, reply.T2 = l/2, l/5*4
	for _, own := range b.own {
		reply.Options.Add(address(own, l))
	}
	return reply, Grant
}

// confirms reports whether all addresses of a Confirm are the port's. RFC 8415
// asks for the link only; but a guest with another address of its subnet is as
// wrong as one with an address of another network.
func (b binding) confirms(req *dhcpv6.Message) bool {
	for _, ia := range req.Options.IANA() {
		if !b.ownsAll(named(ia.Options)) {
			return false
		}
	}
	for _, ia := range req.Options.IATA() {
		if len(ia.Options.Addresses()) > 0 {
			return false
		}
	}
	return true
}

func (b binding) ownsAll(addrs []netip.Addr) bool {
	return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !b.owns(a) })
}

// named returns the addresses in an association, each once.
func named(opts dhcpv6.IdentityOptions) []netip.Addr {
	var addrs []netip.Addr
	for _, o := range opts.Addresses() {
		if a, ok := netip.AddrFromSlice(o.IPv6Addr); ok && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func address(a netip.Addr, lifetime time.Duration) *dhcpv6.OptIAAddress {
	return &dhcpv6.OptIAAddress{IPv6Addr: net.IP(a.AsSlice()), PreferredLifetime: lifetime, ValidLifetime: lifetime}
}

func identity(opts dhcpv6.Options) dhcpv6.IdentityOptions {
	return dhcpv6.IdentityOptions{Options: opts}
}

// words are for the client's log.
var words = map[iana.StatusCode]string{
	iana.StatusSuccess:       "",
	iana.StatusNotOnLink:     "not of this network: ask again",
	iana.StatusNoBinding:     "not of this port",
	iana.StatusNoAddrsAvail:  "no more addresses",
	iana.StatusNoPrefixAvail: "no prefixes",
}

func status(code iana.StatusCode) dhcpv6.Options {
	return dhcpv6.Options{&dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: words[code]}}
}
