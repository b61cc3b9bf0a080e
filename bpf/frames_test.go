package bpf

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write golden frames; read them with text2pcap and tcpdump -vv before a commit")

// golden compares a frame with testdata/name.hex, which is what `hexdump` and
// `text2pcap` of Wireshark read and write.
func golden(t *testing.T, name string, frame []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".hex")
	got := dump(frame)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%swant\n%s", name, got, want)
	}
}

func dump(frame []byte) []byte {
	var b bytes.Buffer
	for i := 0; i < len(frame); i += 16 {
		fmt.Fprintf(&b, "%06x  % x\n", i, frame[i:min(i+16, len(frame))])
	}
	fmt.Fprintf(&b, "%06x\n", len(frame))
	return b.Bytes()
}

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100 // 802.1Q
	etherQinQ = 0x88a8 // 802.1ad: the outer of two tags

	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

// Frames are built from the outside in: eth(..., ip(..., udp(...))).

func eth(dst, src [6]byte, proto uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, proto), payload...)
}

// An ipv4 header; zero fields get sensible values.
type ipv4 struct {
	src, dst netip.Addr
	proto    byte
	tos      byte
	frag     uint16 // flags and offset
	options  []byte
	total    int  // said total length, if not the real one
	vihl     byte // said version and header length, if not the real ones
}

func (h ipv4) with(payload []byte) []byte {
	ihl := 5 + len(h.options)/4
	b := []byte{byte(0x40 | ihl), h.tos, 0, 0, 0x3b, 0x6d, 0, 0, 61, h.proto, 0, 0}
	if h.vihl != 0 {
		b[0] = h.vihl
	}
	total := ihl*4 + len(payload)
	if h.total != 0 {
		total = h.total
	}
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[6:], h.frag)
	src, dst := h.src.As4(), h.dst.As4()
	b = append(append(append(b, src[:]...), dst[:]...), h.options...)
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, payload...)
}

// udp4 is a whole UDP packet over IPv4 with checksums.
func udp4(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	return ipv4{src: src, dst: dst, proto: protoUDP}.with(udp(src, dst, sport, dport, payload))
}

func udp(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	binary.BigEndian.PutUint16(b[6:], l4sum(src, dst, protoUDP, b))
	return b
}

func tcp4(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	return ipv4{src: src, dst: dst, proto: protoTCP}.with(tcp(src, dst, sport, dport, payload))
}

func tcp(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = append(b, 0x1a, 0x2b, 0x3c, 0x4d, 0x5e, 0x6f, 0x71, 0x82, 0x50, 0x18, 0x7d, 0x3a, 0, 0, 0, 0)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], l4sum(src, dst, protoTCP, b))
	return b
}

func ping4(src, dst netip.Addr, kind byte, payload []byte) []byte {
	b := append([]byte{kind, 0, 0, 0, 0x4e, 0x83, 0x29, 0x57}, payload...)
	binary.BigEndian.PutUint16(b[2:], ^sum(b))
	return ipv4{src: src, dst: dst, proto: protoICMP}.with(b)
}

func arp(op uint16, senderMAC [6]byte, sender netip.Addr, targetMAC [6]byte, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	s, t := sender.As4(), target.As4()
	b = append(append(b, senderMAC[:]...), s[:]...)
	return append(append(b, targetMAC[:]...), t[:]...)
}

// A tunnel is the outer headers of a VXLAN frame, of the family of src; zero
// fields get right values. What ip says is said over IPv6 by its means: a fragment
// header, a payload length, and hop-by-hop options.
type tunnel struct {
	src, dst netip.Addr
	vni      uint32
	flags    uint32
	ip       ipv4 // tos, frag, options, total, vihl
	udpLen   int
	dport    uint16
}

func (u tunnel) with(inner []byte) []byte {
	v := binary.BigEndian.AppendUint32(nil, or(u.flags, 0x08000000))
	v = binary.BigEndian.AppendUint32(v, u.vni<<8)
	v = append(v, inner...)
	b := binary.BigEndian.AppendUint16(nil, 0xd3a7)
	b = binary.BigEndian.AppendUint16(b, or(u.dport, 4789))
	b = binary.BigEndian.AppendUint16(b, uint16(or(u.udpLen, 8+len(v))))
	b = append(append(b, 0, 0), v...)
	if u.src.Is6() {
		return eth([6]byte{}, routerMAC, etherIPv6, u.over6(b))
	}
	u.ip.src, u.ip.dst, u.ip.proto = u.src, u.dst, protoUDP
	return eth([6]byte{}, routerMAC, etherIPv4, u.ip.with(b))
}

func (u tunnel) over6(b []byte) []byte {
	if u.ip.frag != 0 {
		return fragment(u.src, u.dst, protoUDP, 0x3b6d, int(u.ip.frag&0x1fff)*8, u.ip.frag&0x2000 != 0, b)
	}
	h := ipv6{src: u.src, dst: u.dst, next: protoUDP, tos: u.ip.tos}
	if u.ip.total != 0 {
		h.said = u.ip.total - 20
	}
	if u.ip.options != nil {
		h.next, b = 0, append(slices.Clone(u.ip.options), b...)
	}
	return h.with(b)
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

func l4sum(src, dst netip.Addr, proto byte, segment []byte) uint16 {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint16(append(pseudo, 0, proto), uint16(len(segment)))
	return ^sum(append(pseudo, segment...))
}

// text is a payload of n bytes in which no two neighbours are the same.
func text(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('A' + (i*7+i/26)%53)
	}
	return b
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	imds     = addr("169.254.169.254")
	addrNone netip.Addr
)

func addr(s string) netip.Addr   { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix  { return netip.MustParsePrefix(s) }
func addr4(b [4]byte) netip.Addr { return netip.AddrFrom4(b) }

// sumTo rewrites the checksum of an IPv4 header without options.
func sumTo(header []byte) {
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^sum(header))
}
