package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"replug/directory/vnet"
)

const (
	maxLabel = 63
	// refreshTime is for how long settings without a lease are good.
	refreshTime = 30 * time.Minute
	// askAgain bounds the silence of a client that gets no address here (RFC 8415,
	// section 21.24; the least that may be said): it may be swapped to a network
	// that has one.
	askAgain = 60 * time.Second
)

// settings6 is what a client is told beside its addresses. Routes, prefixes and
// MTU are not DHCPv6's business: Router Advertisements bring them.
func settings6(place *vnet.Place) dhcpv6.Options {
	opts := dhcpv6.Options{solMaxRT()}
	d := place.DHCP
	if dns := servers6(d.DNS); len(dns) > 0 {
		opts = append(opts, dhcpv6.OptDNS(dns...))
	}
	if domain := strings.TrimSuffix(d.Domain, "."); isName(domain) {
		labels := rfc1035label.NewLabels()
		labels.Labels = []string{domain}
		opts = append(opts, dhcpv6.OptDomainSearchList(labels))
	}
	ntp := servers6(d.NTP)
	if len(ntp) == 0 {
		return opts
	}
	list := &dhcpv6.OptNTPServer{}
	for _, ip := range ntp {
		a := dhcpv6.NTPSuboptionSrvAddr(ip)
		list.Suboptions.Add(&a)
	}
	return append(opts, list, dhcpv6.OptSNTP(ntp...)) // some clients know the one, some the other
}

// isName reports whether a name can be written as labels (RFC 1035, section 2.3.4).
func isName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return false
		}
	}
	return len(name) <= maxName
}

func solMaxRT() dhcpv6.Option {
	s := uint32(askAgain / time.Second)
	return &dhcpv6.OptionGeneric{
		OptionCode: dhcpv6.OptionSolMaxRT,
		OptionData: []byte{byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)},
	}
}

func servers6(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		if a.Is6() && len(ips) < vnet.MaxServers {
			ips = append(ips, a.AsSlice())
		}
	}
	return ips
}
