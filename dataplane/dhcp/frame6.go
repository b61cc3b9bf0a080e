package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"replug/directory/vnet"
)

const (
	etherIPv6   = 0x86dd
	ipv6Len     = 40
	nextFrag    = 44 // RFC 8200, section 4.5
	serverPort6 = 547
	clientPort6 = 546
	hopLimit    = 64
)

// allServers is where clients send everything: All_DHCP_Relay_Agents_and_Servers
// (RFC 8415, section 7.1). No answer of ours allows unicast.
var allServers = netip.MustParseAddr("ff02::1:2")

// parse6 reads the headers (RFC 8200, RFC 768) and the DHCPv6 message in them,
// and says who sent it.
func parse6(frame []byte) (*dhcpv6.Message, netip.Addr, error) {
	if len(frame) < etherLen+ipv6Len+udpLen {
		return nil, netip.Addr{}, fmt.Errorf("%d bytes: %w", len(frame), ErrTruncated)
	}
	ip := frame[etherLen:]
	size := int(binary.BigEndian.Uint16(ip[4:]))
	src, dst := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	switch {
	case ip[0]>>4 != 6:
		return nil, src, fmt.Errorf("IP version %d: %w", ip[0]>>4, ErrNotDHCPv6)
	case size < udpLen || size > len(ip)-ipv6Len:
		return nil, src, fmt.Errorf("payload length %d, frame holds %d: %w", size, len(ip)-ipv6Len, ErrTruncated)
	case ip[6] == nextFrag:
		return nil, src, ErrFragment
	case ip[6] != protoUDP:
		return nil, src, fmt.Errorf("next header %d: %w", ip[6], ErrNotDHCPv6)
	case dst != allServers:
		return nil, src, fmt.Errorf("to %s: %w", dst, ErrUnicast)
	case !src.IsLinkLocalUnicast():
		return nil, src, fmt.Errorf("from %s: %w", src, ErrSource)
	}
	udp := ip[ipv6Len : ipv6Len+size]
	if port := binary.BigEndian.Uint16(udp[2:]); port != serverPort6 {
		return nil, src, fmt.Errorf("UDP port %d: %w", port, ErrNotDHCPv6)
	}
	if n := int(binary.BigEndian.Uint16(udp[4:])); n != size {
		return nil, src, fmt.Errorf("UDP length %d, packet holds %d: %w", n, size, ErrTruncated)
	}
	req, err := dhcpv6.MessageFromBytes(udp[udpLen:])
	if err != nil {
		return nil, src, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return req, src, nil
}

// encode6 puts a DHCPv6 message into UDP, IPv6 and Ethernet.
func encode6(src, dst netip.Addr, mac vnet.MAC, msg []byte) []byte {
	size := uint16(udpLen + len(msg))
	frame := make([]byte, 0, etherLen+ipv6Len+int(size))
	frame = append(frame, mac[:]...)
	frame = append(frame, vnet.GatewayMAC[:]...)
	frame = binary.BigEndian.AppendUint16(frame, etherIPv6)

	frame = append(frame, 0x60, 0, 0, 0)
	frame = binary.BigEndian.AppendUint16(frame, size)
	frame = append(frame, protoUDP, hopLimit)
	frame = append(frame, src.AsSlice()...)
	frame = append(frame, dst.AsSlice()...)

	frame = binary.BigEndian.AppendUint16(frame, serverPort6)
	frame = binary.BigEndian.AppendUint16(frame, clientPort6)
	frame = binary.BigEndian.AppendUint16(frame, size)
	frame = append(frame, 0, 0)
	frame = append(frame, msg...)
	// RFC 8200, section 8.1: the addresses, the length and the protocol count too.
	addrs, udp := frame[etherLen+8:etherLen+ipv6Len], frame[etherLen+ipv6Len:]
	check := ^sum(uint32(sum(uint32(protoUDP)+uint32(size), addrs)), udp)
	if check == 0 {
		check = 0xffff // 0 is not allowed
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return frame
}
