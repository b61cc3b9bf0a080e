package guests

import (
	"net/netip"
	"slices"

	pb "replug/control/controlpb"
)

// A Family is what networks give out.
type Family struct {
	Name      string
	V4, V6    bool
	SLAAC     bool // guests make their IPv6 address themselves
	red, blue []*pb.Subnet
}

// Families are the lines' families, in the order of the table. Red and blue have
// other addresses each: what is left of the old one shows.
var Families = []Family{
	{Name: "IPv4", V4: true, red: v4(20), blue: v4(30)},
	{Name: "IPv6, DHCPv6", V6: true, red: v6(20, false), blue: v6(30, false)},
	{Name: "IPv6, SLAAC", V6: true, SLAAC: true, red: v6(40, true), blue: v6(50, true)},
	{Name: "dual stack", V4: true, V6: true, red: append(v4(60), v6(60, false)...), blue: append(v4(70), v6(70, false)...)},
}

// network are the subnets of a colour.
func (f Family) network(colour string) []*pb.Subnet {
	if colour == "red" {
		return f.red
	}
	return f.blue
}

// dns are the name servers of a colour, one in each of its subnets.
func (f Family) dns(colour string) (all []string) {
	for _, n := range f.network(colour) {
		a := netip.MustParsePrefix(n.Prefix).Addr().AsSlice()
		a[len(a)-1] = 53
		ip, _ := netip.AddrFromSlice(a)
		all = append(all, ip.String())
	}
	return all
}

// letter tells the families' labs apart.
func (f Family) letter() string {
	return string(rune('a' + slices.IndexFunc(Families, func(x Family) bool { return x.Name == f.Name })))
}

func v4(n int) []*pb.Subnet { return []*pb.Subnet{{Prefix: sprint("10.%d.0.0/16", n)}} }

func v6(n int, slaac bool) []*pb.Subnet {
	return []*pb.Subnet{{Prefix: sprint("fd00:%d::/64", n), Slaac: slaac}}
}

// pick returns the word for the family.
func (f Family) pick(v4, v6, both, slaac string) string {
	switch {
	case f.SLAAC:
		return slaac
	case f.V4 && f.V6:
		return both
	case f.V6:
		return v6
	}
	return v4
}
