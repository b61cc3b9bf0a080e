package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"replug/directory/vnet"
)

const (
	defaultLease = 24 * time.Hour // an agent's outage is to take no address away
	maxLease     = 10 * 365 * 24 * time.Hour
	maxRoutes    = 32          // beside the default and the metadata route
	maxName      = 253         // RFC 1035, section 2.3.4, as text
	minMTU       = 68          // RFC 2132, section 5.1
	minMessage   = 576         // RFC 2131, section 2: what every client accepts
	udpHeaders   = 20 + 8      // the message size counts them
	fixedFields  = 236 + 4 + 1 // BOOTP fields, magic cookie, end option
)

// optWireServer is option 245, of Microsoft's: the wire server's address, 4 bytes.
const optWireServer = dhcpv4.GenericOptionCode(245)

// settings returns the options of kind, the dearest first: what does not fit
// is left out from the end.
func settings(req *dhcpv4.DHCPv4, kind Kind, addr vnet.Addr, port Port) []dhcpv4.Option {
	opts := []dhcpv4.Option{
		dhcpv4.OptMessageType(messageType(kind)),
		dhcpv4.OptServerIdentifier(ServerID.AsSlice()),
	}
	if kind == Nak {
		opts = append(opts, dhcpv4.OptMessage("this port has another address: ask again"))
		return append(opts, echo(req)...)
	}
	if kind == Offer || kind == Ack {
		opts = append(opts, dhcpv4.OptIPAddressLeaseTime(lease(port.Place.DHCP)))
	}
	opts = append(opts, dhcpv4.OptSubnetMask(net.CIDRMask(addr.Bits, 32)))
	opts = append(opts, echo(req)...)
	if addr.Gateway.Is4() {
		opts = append(opts, dhcpv4.OptClasslessStaticRoute(routes(addr, port)...), dhcpv4.OptRouter(addr.Gateway.AsSlice()))
	}
	if port.WireServer.Is4() {
		opts = append(opts, dhcpv4.OptGeneric(optWireServer, port.WireServer.AsSlice())) // unasked: ISC's client doesn't ask
	}
	return append(opts, comforts(kind, port)...)
}

// comforts are what a client can do without.
func comforts(kind Kind, port Port) []dhcpv4.Option {
	var opts []dhcpv4.Option
	p := port.Place
	if mtu := mtu(port); mtu >= minMTU {
		opts = append(opts, dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(mtu)})
	}
	if dns := servers(p.DHCP.DNS); len(dns) > 0 {
		opts = append(opts, dhcpv4.OptDNS(dns...))
	}
	if kind != Inform {
		l := lease(p.DHCP)
		opts = append(opts, dhcpv4.OptRenewTimeValue(l/2), dhcpv4.OptRebindingTimeValue(l/8*7))
	}
	if name := hostname(p.Document); name != "" {
		opts = append(opts, dhcpv4.OptHostName(name))
	}
	if p.DHCP.Domain != "" && len(p.DHCP.Domain) <= maxName {
		opts = append(opts, dhcpv4.OptDomainName(p.DHCP.Domain))
	}
	if ntp := servers(p.DHCP.NTP); len(ntp) > 0 {
		opts = append(opts, dhcpv4.OptNTPServers(ntp...))
	}
	return opts
}

// lease is for how long the address is given.
func lease(d vnet.DHCP) time.Duration {
	if d.Lease <= 0 {
		return defaultLease
	}
	return min(d.Lease, maxLease)
}

func messageType(k Kind) dhcpv4.MessageType {
	switch k {
	case Offer:
		return dhcpv4.MessageTypeOffer
	case Nak:
		return dhcpv4.MessageTypeNak
	}
	return dhcpv4.MessageTypeAck
}

// echo returns the client identifier as the client sent it (RFC 6842).
func echo(req *dhcpv4.DHCPv4) []dhcpv4.Option {
	if id := req.GetOneOption(dhcpv4.OptionClientIdentifier); len(id) > 0 {
		return []dhcpv4.Option{dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id)}
	}
	return nil
}

// mtu is the guest's MTU in bytes, 0 if nobody knows.
func mtu(port Port) uint16 {
	if port.Place.MTU != 0 {
		return port.Place.MTU
	}
	return port.MTU
}

// hostname is given out once a document is final: a pooled VM has no name yet,
// and one that is taken as a name now would stay.
func hostname(d *vnet.Document) string {
	if d == nil || d.Partial() || len(d.Hostname) > maxName || strings.ContainsRune(d.Hostname, 0) {
		return ""
	}
	return d.Hostname
}

func servers(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		if a.Is4() && len(ips) < vnet.MaxServers {
			ips = append(ips, a.AsSlice())
		}
	}
	return ips
}

// routes returns what option 121 (RFC 3442) must hold: a client that reads it
// ignores option 3, so the default route is in it. A gateway outside the subnet
// (a /32) is first made reachable. cloud-init takes a NIC for the first one by the
// route to the wire server or to the metadata service.
func routes(addr vnet.Addr, port Port) []*dhcpv4.Route {
	var list []*dhcpv4.Route
	if !addr.Prefix().Contains(addr.Gateway) {
		list = append(list, route(netip.PrefixFrom(addr.Gateway, 32), netip.IPv4Unspecified()))
	}
	list = append(list,
		route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), addr.Gateway),
		route(netip.PrefixFrom(ServerID, 32), addr.Gateway))
	if port.WireServer.Is4() {
		list = append(list, route(netip.PrefixFrom(port.WireServer, 32), addr.Gateway))
	}
	return list
}

// statics returns the network's routes as the guest can use them.
func statics(addr vnet.Addr, list []vnet.Route) []*dhcpv4.Route {
	var out []*dhcpv4.Route
	for _, r := range list {
		if !r.Prefix.Addr().Is4() || r.Prefix.Bits() == 0 || len(out) == maxRoutes {
			continue
		}
		hop := r.NextHop
		if !hop.Is4() || !addr.Prefix().Contains(hop) {
			hop = addr.Gateway // the guest can't reach it; the datapath does
		}
		out = append(out, route(r.Prefix.Masked(), hop))
	}
	return out
}

func route(p netip.Prefix, hop netip.Addr) *dhcpv4.Route {
	return &dhcpv4.Route{
		Dest:   &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)},
		Router: hop.AsSlice(),
	}
}

// fit returns the options that fit into room bytes, and the codes of those that
// do not. Static routes come last, although they share an option with the
// default route: what is missing goes the default way, and that is the datapath,
// which knows them all.
func fit(opts []dhcpv4.Option, extra []*dhcpv4.Route, room int) (dhcpv4.Options, []uint8) {
	kept, omitted := dhcpv4.Options{}, []uint8(nil)
	for _, o := range opts {
		v := o.Value.ToBytes()
		if wireLen(v) > room {
			omitted = append(omitted, o.Code.Code())
			continue
		}
		room -= wireLen(v)
		kept[o.Code.Code()] = v
	}
	code := dhcpv4.OptionClasslessStaticRoute.Code()
	list, ok := kept[code]
	if !ok {
		return kept, omitted
	}
	room += wireLen(list)
	for _, r := range extra {
		longer := append(list[:len(list):len(list)], dhcpv4.Routes{r}.ToBytes()...)
		if wireLen(longer) > room {
			omitted = append(omitted, code)
			break
		}
		list = longer
	}
	kept[code] = list
	return kept, omitted
}

// wireLen is the length of an option with its headers: one per 255 bytes
// (RFC 3396).
func wireLen(v []byte) int {
	return len(v) + 2*max(1, (len(v)+254)/255)
}

// room is how many bytes of options the client takes: option 57, at least 576,
// and no more than one frame of the port holds.
func room(req *dhcpv4.DHCPv4, port Port) int {
	size := minMessage
	if n, err := req.MaxMessageSize(); err == nil {
		size = max(size, int(n))
	}
	if mtu := int(mtu(port)); mtu >= minMessage {
		size = min(size, mtu)
	} else {
		size = minMessage
	}
	return size - udpHeaders - fixedFields
}
