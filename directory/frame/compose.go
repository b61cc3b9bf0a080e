// Package frame composes the frames that a trace sends, and says in words what is
// in a frame. It judges nothing: whether a frame is good is for the datapath to
// say. It knows the headers that the datapath knows, and VXLAN around them.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"replug/directory/vnet"
)

// ErrSpec says that a frame can't be composed; the text says what is wrong.
var ErrSpec = errors.New("no such frame")

// A Spec says what frame to compose.
type Spec struct {
	SrcMAC   vnet.MAC      `json:"src_mac"`
	DstMAC   vnet.MAC      `json:"dst_mac"`
	Src      netip.Addr    `json:"src"`
	Dst      netip.Addr    `json:"dst"` // of the family of Src
	Protocol vnet.Protocol `json:"protocol"`
	SrcPort  uint16        `json:"src_port,omitempty"`
	DstPort  uint16        `json:"dst_port,omitempty"`
	Flags    Flags         `json:"flags,omitempty"` // of TCP
	Seq      uint32        `json:"seq,omitempty"`   // of TCP; 0: 1
	Ack      uint32        `json:"ack,omitempty"`
	ICMPType *uint8        `json:"icmp_type,omitempty"` // nil: an echo request
	Size     int           `json:"size,omitempty"`      // bytes of the IP packet; 0: no payload
}

// Flags are those of a TCP header (RFC 9293, 3.1).
type Flags uint8

var flagNames = []string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"}

// ParseFlags reads names with commas between them, such as "syn,ack".
func ParseFlags(s string) (f Flags, err error) {
	for name := range strings.FieldsFuncSeq(strings.ToLower(s), func(r rune) bool { return r == ',' }) {
		i := indexOf(flagNames, name)
		if i < 0 {
			return 0, fmt.Errorf("%w: TCP has no flag %q (%s)", ErrSpec, name, strings.Join(flagNames, ", "))
		}
		f |= 1 << i
	}
	return f, nil
}

func indexOf(all []string, s string) int {
	for i, one := range all {
		if one == s {
			return i
		}
	}
	return -1
}

// String prints what [ParseFlags] reads.
func (f Flags) String() string {
	var names []string
	for i, name := range flagNames {
		if f>>i&1 == 1 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

const (
	etherLen = 14
	ip4Len   = 20
	ip6Len   = 40
	ttl      = 64

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeQinQ = 0x88a8
	typeIPv6 = 0x86dd

	echo4 = 8   // RFC 792
	echo6 = 128 // RFC 4443
)

// Compose returns the frame with right lengths and checksums. It returns [ErrSpec].
func Compose(s Spec) ([]byte, error) {
	if !s.Src.IsValid() || !s.Dst.IsValid() || s.Src.Is4() != s.Dst.Is4() {
		return nil, fmt.Errorf("%w: from %s to %s are not of one family", ErrSpec, s.Src, s.Dst)
	}
	if s.Src.Is6() && s.Protocol == vnet.ICMP {
		s.Protocol = vnet.ICMPv6
	}
	head, sum := s.transport()
	network := ip4Len
	if s.Src.Is6() {
		network = ip6Len
	}
	size := max(s.Size, network+len(head))
	if s.Size != 0 && size != s.Size || size > 0xffff {
		return nil, fmt.Errorf("%w: %d bytes; a %s packet has %d to 65535", ErrSpec, s.Size, s.Protocol, network+len(head))
	}
	b := make([]byte, etherLen+size)
	copy(b, s.DstMAC[:])
	copy(b[6:], s.SrcMAC[:])
	payload := b[etherLen+network:]
	copy(payload, head)
	if s.Protocol == vnet.UDP {
		binary.BigEndian.PutUint16(payload[4:], uint16(len(payload)))
	}
	s.network(b, len(payload))
	if sum >= 0 {
		s.checksum(payload, sum)
	}
	return b, nil
}

// network writes the IP header and its type.
func (s *Spec) network(b []byte, payload int) {
	ip := b[etherLen:]
	if s.Src.Is4() {
		binary.BigEndian.PutUint16(b[12:], typeIPv4)
		ip[0], ip[8], ip[9] = 0x45, ttl, byte(s.Protocol)
		binary.BigEndian.PutUint16(ip[2:], uint16(ip4Len+payload))
		ip[6] = 0x40 // don't fragment, as every host's TCP says
		copy(ip[12:], s.Src.AsSlice())
		copy(ip[16:], s.Dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], fold(add(0, ip[:ip4Len])))
		return
	}
	binary.BigEndian.PutUint16(b[12:], typeIPv6)
	ip[0], ip[6], ip[7] = 0x60, byte(s.Protocol), ttl
	binary.BigEndian.PutUint16(ip[4:], uint16(payload))
	copy(ip[8:], s.Src.AsSlice())
	copy(ip[24:], s.Dst.AsSlice())
}

// transport returns the header of the protocol and where its checksum goes; -1: it
// has none that is like the Internet's.
func (s *Spec) transport() (head []byte, sum int) {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.SrcPort), s.DstPort)
	switch s.Protocol {
	case vnet.TCP:
		head = append(ports, make([]byte, 16)...)
		binary.BigEndian.PutUint32(head[4:], max(s.Seq, 1))
		binary.BigEndian.PutUint32(head[8:], s.Ack)
		head[12], head[13] = 5<<4, byte(s.Flags)
		binary.BigEndian.PutUint16(head[14:], 0xffff)
		return head, 16
	case vnet.UDP:
		return append(ports, 0, 0, 0, 0), 6
	case vnet.SCTP:
		return append(ports, make([]byte, 8)...), -1
	case vnet.ICMP, vnet.ICMPv6:
		kind := uint8(echo4)
		if s.Protocol == vnet.ICMPv6 {
			kind = echo6
		}
		if s.ICMPType != nil {
			kind = *s.ICMPType
		}
		return []byte{kind, 0, 0, 0, 0x54, 0x52, 0, 1}, 2
	}
	return nil, -1
}

// checksum writes the transport's checksum (RFC 1071; RFC 8200, 8.1).
func (s *Spec) checksum(payload []byte, at int) {
	sum := uint32(0)
	if s.Protocol != vnet.ICMP {
		sum = add(sum, s.Src.AsSlice())
		sum = add(sum, s.Dst.AsSlice())
		sum += uint32(s.Protocol) + uint32(len(payload))
	}
	c := fold(add(sum, payload))
	if c == 0 && s.Protocol == vnet.UDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(payload[at:], c)
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
