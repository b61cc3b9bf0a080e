package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"replug/directory/vnet"
)

const (
	etherLen   = 14
	ipv4Len    = 20
	udpLen     = 8
	etherIPv4  = 0x0800
	protoUDP   = 17
	serverPort = 67
	clientPort = 68
	fragment   = 0x3fff // more-fragments flag and offset
)

// parse reads the headers (RFC 791, RFC 768) and the DHCP message in them.
func parse(frame []byte) (*dhcpv4.DHCPv4, error) {
	if len(frame) < etherLen+ipv4Len {
		return nil, fmt.Errorf("%d bytes: %w", len(frame), ErrTruncated)
	}
	ip := frame[etherLen:]
	if t := binary.BigEndian.Uint16(frame[12:]); t != etherIPv4 || ip[0]>>4 != 4 {
		return nil, fmt.Errorf("EtherType %#04x: %w", t, ErrNotDHCP)
	}
	ihl, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ihl < ipv4Len || total < ihl+udpLen || total > len(ip) {
		return nil, fmt.Errorf("IPv4 header %d, length %d, frame holds %d: %w", ihl, total, len(ip), ErrTruncated)
	}
	switch {
	case sum(0, ip[:ihl]) != 0xffff:
		return nil, ErrChecksum
	case ip[9] != protoUDP:
		return nil, fmt.Errorf("protocol %d: %w", ip[9], ErrNotDHCP)
	case binary.BigEndian.Uint16(ip[6:])&fragment != 0:
		return nil, ErrFragment
	}
	udp := ip[ihl:total]
	if port := binary.BigEndian.Uint16(udp[2:]); port != serverPort {
		return nil, fmt.Errorf("UDP port %d: %w", port, ErrNotDHCP)
	}
	size := int(binary.BigEndian.Uint16(udp[4:]))
	if size < udpLen || size > len(udp) {
		return nil, fmt.Errorf("UDP length %d, packet holds %d: %w", size, len(udp), ErrTruncated)
	}
	req, err := dhcpv4.FromBytes(udp[udpLen:size])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return req, nil
}

// reply builds the answer frame.
func reply(req *dhcpv4.DHCPv4, kind Kind, addr vnet.Addr, port Port) Reply {
	opts, omitted := fit(settings(req, kind, addr, port), statics(addr, port.Place.Routes), room(req, port))
	msg := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		TransactionID: req.TransactionID,
		Flags:         req.Flags,
		ClientIPAddr:  net.IPv4zero,
		YourIPAddr:    net.IPv4zero,
		ServerIPAddr:  net.IPv4zero,
		GatewayIPAddr: net.IPv4zero,
		ClientHWAddr:  req.ClientHWAddr,
		Options:       opts,
	}
	switch kind {
	case Offer:
		msg.YourIPAddr = addr.CA.AsSlice()
	case Ack:
		msg.YourIPAddr = addr.CA.AsSlice()
		msg.ClientIPAddr = req.ClientIPAddr
	case Inform:
		msg.ClientIPAddr = req.ClientIPAddr
	}
	dst, mac := destination(req, kind, addr.CA.Addr, port.MAC)
	return Reply{Frame: encode(dst, mac, msg.ToBytes()), Kind: kind, Omitted: omitted}
}

var (
	broadcastIP  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	broadcastMAC = vnet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// destination is where the answer goes (RFC 2131, section 4.1 and the end of
// 4.3.2): a NAK is broadcast always, for the client's address is wrong; an ACK
// goes to ciaddr if the client has it already; else the broadcast flag decides.
func destination(req *dhcpv4.DHCPv4, kind Kind, ca netip.Addr, mac vnet.MAC) (netip.Addr, vnet.MAC) {
	has := kind != Offer && addrOf(req.ClientIPAddr) == ca
	if kind == Nak || (req.IsBroadcast() && !has) {
		return broadcastIP, broadcastMAC
	}
	return ca, mac
}

// encode puts a DHCP message into UDP, IPv4 and Ethernet, from the gateway.
func encode(dst netip.Addr, mac vnet.MAC, msg []byte) []byte {
	frame := make([]byte, 0, etherLen+ipv4Len+udpLen+len(msg))
	frame = append(frame, mac[:]...)
	frame = append(frame, vnet.GatewayMAC[:]...)
	frame = binary.BigEndian.AppendUint16(frame, etherIPv4)

	size := uint16(udpLen + len(msg))
	frame = append(frame, 0x45, 0)
	frame = binary.BigEndian.AppendUint16(frame, ipv4Len+size)
	frame = append(frame, 0, 0, 0x40, 0, 64, protoUDP, 0, 0) // id 0, don't fragment, TTL 64
	frame = append(frame, ServerID.AsSlice()...)
	frame = append(frame, dst.AsSlice()...)
	ip := frame[etherLen:]
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))

	frame = binary.BigEndian.AppendUint16(frame, serverPort)
	frame = binary.BigEndian.AppendUint16(frame, clientPort)
	frame = binary.BigEndian.AppendUint16(frame, size)
	frame = append(frame, 0, 0)
	frame = append(frame, msg...)
	udp := frame[etherLen+ipv4Len:]
	pseudo := sum(uint32(protoUDP)+uint32(size), frame[etherLen+12:etherLen+ipv4Len])
	check := ^sum(uint32(pseudo), udp)
	if check == 0 {
		check = 0xffff // RFC 768: 0 says "none"
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return frame
}

// sum is the ones' complement sum of b on top of start (RFC 1071).
func sum(start uint32, b []byte) uint16 {
	s := start
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// addrOf returns the address, or the zero Addr for none and for 0.0.0.0.
func addrOf(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip.To4())
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
