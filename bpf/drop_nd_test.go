package bpf

import (
	"fmt"
	"net/netip"
	"testing"
)

// Neighbour discovery, router advertisements, DHCP servers and link-local
// addresses: what a VM may say of them, and that the right of it passes.
func dropsOfLinks(t *testing.T, seen covered, a, b *host) {
	gateway6 := redA.gateways()[1]
	none, group := netip.IPv6Unspecified(), solicitedNode(caB6)
	nodes := addr("ff02::1")
	own := redA.linkLocal()
	change := func(packet []byte, at int, to byte) []byte { packet[at] = to; return resum6(packet) }

	for _, c := range []struct {
		name, reason string
		packet       []byte
	}{
		{"a solicitation that a router has passed on", "bad_nd", change(solicit(caA6, group, caB6, redA.mac), 7, 254)},
		{"a solicitation with code 3", "bad_nd", change(solicit(caA6, group, caB6, redA.mac), 41, 3)},
		{"a solicitation for a group", "bad_nd", solicit(caA6, group, addr("ff02::1:ff93:b786"), redA.mac)},
		{"a link-layer option of 16 bytes", "bad_nd", change(solicit(caA6, group, caB6, redA.mac), 65, 2)},
		{"a solicitation in a fragment", "bad_nd", fragment(caA6, caB6, protoICMPv6, 0x3b79, 0, true, solicit(caA6, caB6, caB6, redA.mac)[40:])},
		{"a solicitation in its only fragment", "bad_nd", fragmentOf255(solicit(caA6, caB6, caB6, redA.mac))},
		{"a solicitation cut off", "truncated", nd(caA6, group, ndNS, make([]byte, 19))},
		{"another VM's address", "spoofed_nd", solicit(caA26, group, caB6, redA.mac)},
		{"another VM's link-layer address", "spoofed_nd", solicit(caA6, group, caB6, redA2.mac)},
		{"a router solicitation from another VM's address", "spoofed_nd", nd(caA26, addr("ff02::2"), ndRS, make([]byte, 4))},
		{"an advertisement of another VM's address", "spoofed_nd", advertise(caA6, gateway6, caA26, redA.mac)},
		{"an advertisement with another VM's link-layer address", "spoofed_nd", advertise(caA6, gateway6, caA6, redA2.mac)},
		{"duplicate address detection", "nd_probe", solicit(none, solicitedNode(caA6), caA6, redA.mac)},
		{"duplicate address detection of a peer's address", "nd_probe", solicit(none, group, caB6, redA.mac)},
		{"its own address", "nd_own", solicit(caA6, solicitedNode(caA6), caA6, redA.mac)},
		{"an address outside the subnet", "nd_stranger", solicit(caA6, group, addr("fd17:2a5c:8b3e:4d92:6472:f8a5:93c6:b786"), redA.mac)},
		{"a peer's link-local address", "nd_stranger", solicit(caA6, group, redB.linkLocal(), redA.mac)},
		{"the other network's gateway", "nd_stranger", solicit(caA6, group, blueA.gateways()[1], redA.mac)},
		{"an advertisement to everybody", "nd_unasked", advertise(caA6, nodes, caA6, redA.mac)},
		{"an advertisement to a peer", "nd_unasked", advertise(caA6, caB6, caA6, redA.mac)},
		{"a router advertisement", "rogue_ra", nd(own, nodes, ndRA, make([]byte, 12))},
		{"a router advertisement to a peer", "rogue_ra", nd(caA6, caB6, ndRA, make([]byte, 12))},
		{"a redirect", "rogue_ra", nd(own, caB6, ndRedirect, make([]byte, 36))},
		{"a DHCP server's offer", "rogue_dhcp", udp4(caA, addr("255.255.255.255"), 67, 68, text(251))},
		{"a DHCP server's offer to a peer", "rogue_dhcp", udp4(caA, caB, 67, 68, text(251))},
		{"a DHCPv6 server's advertisement", "rogue_dhcp", udpOf(own, redB.linkLocal(), 547, 546, text(83))},
		{"a DHCPv6 server's advertisement to a peer", "rogue_dhcp", udpOf(caA6, caB6, 547, 546, text(83))},
		{"from its link-local address to a peer", "link_scope", udpOf(own, caB6, 5353, 7946, text(37))},
		{"from its link-local address to a group", "link_scope", udpOf(own, addr("ff02::fb"), 5353, 5353, text(37))},
		{"to a peer's link-local address", "link_scope", udpOf(caA6, redB.linkLocal(), 5353, 7946, text(37))},
		{"to a group", "multicast", udpOf(caA6, addr("ff02::fb"), 5353, 5353, text(37))},
		{"DNS to the gateway", "to_gateway", udpOf(caA6, gateway6, 5353, 53, text(37))},
		{"DNS to the gateway from its link-local address", "to_gateway", udpOf(own, gateway6, 5353, 53, text(37))},
		{"another VM's address as a source", "spoofed_ca", udpOf(caA26, caB6, 5353, 7946, text(37))},
		{"no address as a source", "spoofed_ca", udpOf(none, caB6, 5353, 7946, text(37))},
		{"outside the subnet", "no_route", udpOf(caA6, addr("2001:db8:9f27::53"), 5353, 7946, text(37))},
		{"an address that nobody has", "no_mapping", udpOf(caA6, caNobody6, 5353, 7946, text(37))},
		{"metadata at another port", "imds_other", tcpOf(caA6, addr("fd00:ec2::254"), 40321, 8080, text(37))},
		{"metadata from another VM's address", "imds_source", tcpOf(caA26, addr("fd00:ec2::254"), 40321, 80, text(37))},
		{"metadata from its link-local address", "imds_source", tcpOf(own, addr("fd00:ec2::254"), 40321, 80, text(37))},
		{"the wire server at another port", "imds_other", tcpOf(caA, addr("168.63.129.16"), 40321, 32526, text(37))},
	} {
		name := "IPv6 from a VM: " + c.name
		seen.refused(a, name, c.reason, func() uint32 { v, _ := a.send(redA, redA.frame(c.packet)); return v })
		before := a.drops()
		if v, _ := a.send(redA, redA.frame(solicit(caA6, group, caB6, redA.mac))); v != actRedirect {
			t.Errorf("after %s: a good solicitation gets verdict %d", c.name, int32(v))
		}
		a.counted("a good solicitation after "+c.name, before, "none")
	}
	for _, c := range []struct {
		name   string
		packet []byte
	}{
		{"from a link-local address", udpOf(own, caB6, 5353, 7946, text(37))},
		{"a solicitation", solicit(caA6, caB6, caB6, redA.mac)},
		{"a router advertisement", nd(caA6, caB6, ndRA, make([]byte, 12))},
	} {
		seen.refused(b, fmt.Sprintf("IPv6 from the wire: %s", c.name), "link_scope", func() uint32 {
			v, _ := b.receive(redA.wire(redB, c.packet))
			return v
		})
	}
	if v, _ := b.receive(redA.wire(redB, udpOf(caA6, caB6, 5353, 7946, text(37)))); v != actRedirect {
		t.Errorf("a good packet from the wire gets verdict %d", int32(v))
	}
}

// resum6 rewrites the checksum of an ICMPv6 packet.
func resum6(p []byte) []byte {
	p[42], p[43] = 0, 0
	s := l4sum(netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), protoICMPv6, p[40:])
	p[42], p[43] = byte(s>>8), byte(s)
	return p
}

// fragmentOf255 puts a packet into its one and only fragment (RFC 6946).
func fragmentOf255(p []byte) []byte {
	f := fragment(netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), protoICMPv6, 0x3b7b, 0, false, p[40:])
	f[7] = 255
	return f
}
