package network

import (
	"fmt"
	"net/netip"

	"replug/directory/vnet"
)

// Families are IP versions: those that a network has subnets of, or that a port
// has addresses of.
type Families uint8

// The families. Their words are those of a VM type's routing.
const (
	V4   Families = 1
	V6   Families = 2
	Dual          = V4 | V6
)

var familyWords = map[Families]string{V4: "ipv4", V6: "ipv6", Dual: "dual"}

// String returns the word.
func (f Families) String() string {
	if w, ok := familyWords[f]; ok {
		return w
	}
	return "none"
}

// ParseFamilies reads what [Families.String] prints; it returns [ErrInvalid].
func ParseFamilies(s string) (Families, error) {
	for f, w := range familyWords {
		if w == s {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%w routing %q: ipv4, ipv6 or dual", ErrInvalid, s)
}

// Has reports whether all of other are in f.
func (f Families) Has(other Families) bool { return f&other == other }

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Families {
	if a.Is4() {
		return V4
	}
	return V6
}

// FamiliesOf returns the families of some CAs.
func FamiliesOf(cas []vnet.CA) Families {
	var f Families
	for _, ca := range cas {
		f |= FamilyOf(ca.Addr)
	}
	return f
}

// Families returns what the network has subnets of.
func (n *Network) Families() Families {
	var f Families
	for _, s := range n.Subnets {
		f |= FamilyOf(s.Prefix.Addr())
	}
	return f
}

// CAsOf returns the CAs of a place.
func CAsOf(p *vnet.Place) []vnet.CA {
	cas := make([]vnet.CA, 0, len(p.Addrs))
	for _, a := range p.Addrs {
		cas = append(cas, a.CA)
	}
	return cas
}
