package nd

import (
	"fmt"
	"net/netip"

	"replug/directory/vnet"
)

// Probe asks a guest whether it has the address: the gateway's question, sent to
// the guest alone (RFC 4861, section 7.2.2). It tells the gateway's MAC, so that
// the answer needs no question.
func Probe(vni vnet.VNI, ca vnet.CA, mac vnet.MAC) []byte {
	icmp := append(make([]byte, 0, 32), neighbourSol, 0, 0, 0, 0, 0, 0, 0)
	icmp = append(icmp, ca.AsSlice()...)
	icmp = append(icmp, optSourceMAC, 1)
	icmp = append(icmp, vnet.GatewayMAC[:]...)
	return encode(vni.Gateway6(), ca.Addr, mac, icmp)
}

// ParseAnswer reads a guest's answer to [Probe] and returns the address that it
// says it has. It returns [ErrInvalid] for anything else, an advertisement that
// nobody asked for included: a guest that is to prove where it is must be asked.
func ParseAnswer(frame []byte) (netip.Addr, error) {
	const solicited = 0x40
	m, err := decode(frame, neighbourAdvert, 20)
	if err != nil {
		return netip.Addr{}, err
	}
	target := netip.AddrFrom16([16]byte(m.fixed[4:]))
	switch {
	case target.IsMulticast() || target.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("advertises %s: %w", target, ErrInvalid)
	case m.fixed[0]&solicited == 0 || m.dst.IsMulticast():
		return netip.Addr{}, fmt.Errorf("advertises %s unasked: %w", target, ErrInvalid)
	}
	return target, nil
}
