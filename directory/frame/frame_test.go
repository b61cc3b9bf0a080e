package frame_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"replug/directory/frame"
	"replug/directory/vnet"
)

func spec(src, dst string, p vnet.Protocol, change func(*frame.Spec)) frame.Spec {
	s := frame.Spec{SrcMAC: vnet.PortMAC(0x1a2b3c4d), DstMAC: vnet.GatewayMAC, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst),
		Protocol: p, SrcPort: 51234, DstPort: 443}
	if change != nil {
		change(&s)
	}
	return s
}

var unreachable = uint8(3)

var composed = []struct {
	name   string
	spec   frame.Spec
	length int    // of the frame
	tshark string // what it says of the frame: protocols, lengths, flags
}{
	{"tcp syn", spec("10.17.34.51", "10.17.34.85", vnet.TCP, func(s *frame.Spec) { s.Flags = 2 }), 54, "eth:ethertype:ip:tcp|40|10.17.34.51|51234|443|0x0002"},
	{"tcp with payload", spec("10.17.34.51", "10.17.34.85", vnet.TCP, func(s *frame.Spec) { s.Flags, s.Size = 0x12, 1401 }), 1415, "eth:ethertype:ip:tcp:tls|1401|10.17.34.51|51234|443|0x0012"},
	{"udp", spec("10.17.34.51", "10.17.34.85", vnet.UDP, func(s *frame.Spec) { s.Size = 131 }), 145, "eth:ethertype:ip:udp:data|131|10.17.34.51|51234|443|"},
	{"ping", spec("10.17.34.51", "10.17.34.85", vnet.ICMP, nil), 42, "eth:ethertype:ip:icmp|28|10.17.34.51|||"},
	{"tcp over IPv6", spec("fd17:3::33", "fd17:3::55", vnet.TCP, func(s *frame.Spec) { s.Flags = 2 }), 74, "eth:ethertype:ipv6:tcp|20|fd17:3::33|51234|443|0x0002"},
	{"udp over IPv6", spec("fd17:3::33", "fd17:3::55", vnet.UDP, func(s *frame.Spec) { s.Size = 131 }), 145, "eth:ethertype:ipv6:udp:data|91|fd17:3::33|51234|443|"},
	{"ping over IPv6", spec("fd17:3::33", "fd17:3::55", vnet.ICMP, nil), 62, "eth:ethertype:ipv6:icmpv6|8|fd17:3::33|||"},
}

// tshark is another judge than ourselves: it computes every checksum anew.
func TestComposeByTshark(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("tshark is missing: apt-get install tshark")
	}
	pcap := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	pcap = append(pcap, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0)
	for _, c := range composed {
		b, err := frame.Compose(c.spec)
		if err != nil || len(b) != c.length {
			t.Fatalf("%s: %d bytes, %v, want %d", c.name, len(b), err, c.length)
		}
		for _, n := range []int{1, 0, len(b), len(b)} {
			pcap = binary.LittleEndian.AppendUint32(pcap, uint32(n))
		}
		pcap = append(pcap, b...)
	}
	file := filepath.Join(t.TempDir(), "composed.pcap")
	if err := os.WriteFile(file, pcap, 0o600); err != nil {
		t.Fatal(err)
	}
	lines := tshark(t, file, "frame.protocols", "ip.len", "ipv6.plen", "ip.src", "ipv6.src", "tcp.srcport", "udp.srcport", "tcp.dstport", "udp.dstport", "tcp.flags")
	bad := tshark(t, file, "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status", "icmpv6.checksum.status", "_ws.malformed")
	for i, c := range composed {
		f := strings.Split(lines[i], "\t")
		got := strings.Join([]string{f[0], f[1] + f[2], f[3] + f[4], f[5] + f[6], f[7] + f[8], f[9]}, "|")
		if got != c.tshark {
			t.Errorf("%s: tshark reads %s, want %s", c.name, got, c.tshark)
		}
		// 1 is good; each packet has one of the transport and, with IPv4, one of IP.
		want := 1
		if c.spec.Src.Is4() {
			want = 2
		}
		if good := strings.Count(bad[i], "1"); good != want || strings.ContainsAny(bad[i], "023456789M") {
			t.Errorf("%s: checksums %q, want %d good ones", c.name, bad[i], want)
		}
	}
}

func tshark(t *testing.T, file string, fields ...string) []string {
	t.Helper()
	args := []string{"-r", file, "-n", "-T", "fields", "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.Command("tshark", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, said.String())
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

func TestComposeRefuses(t *testing.T) {
	for name, s := range map[string]frame.Spec{
		"two families":     spec("10.17.34.51", "fd17:3::55", vnet.TCP, nil),
		"no destination":   {Src: netip.MustParseAddr("10.17.34.51"), Protocol: vnet.TCP},
		"smaller than TCP": spec("10.17.34.51", "10.17.34.85", vnet.TCP, func(s *frame.Spec) { s.Size = 39 }),
		"too large for IP": spec("10.17.34.51", "10.17.34.85", vnet.UDP, func(s *frame.Spec) { s.Size = 65536 }),
	} {
		if _, err := frame.Compose(s); !errors.Is(err, frame.ErrSpec) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func bytesOf(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWords(t *testing.T) {
	inner, err := frame.Compose(composed[0].spec)
	if err != nil {
		t.Fatal(err)
	}
	outer := append(bytesOf(t, "02aabbccdd01 02aabbccdd02 0800"+
		"4502 005a 0000 4000 4011 0000 64400717 64400929"+
		"c123 12b5 0046 0000 08000000 a1b2c300"), inner...)
	ping6, err := frame.Compose(composed[6].spec)
	if err != nil {
		t.Fatal(err)
	}
	const ether = "02aabbccdd01 02aabbccdd02 "
	for name, c := range map[string]struct {
		frame []byte
		want  []string
	}{
		"vxlan": {outer, []string{
			"Ethernet 02:aa:bb:cc:dd:02 > 02:aa:bb:cc:dd:01", "IPv4 100.64.7.23 > 100.64.9.41, 90 bytes, TTL 64, ECT(0), don't fragment",
			"UDP 49443 > 4789, 70 bytes", "VXLAN VNI 10597059", "Ethernet 02:52:1a:2b:3c:4d > 02:52:50:4c:47:57",
			"IPv4 10.17.34.51 > 10.17.34.85, 40 bytes, TTL 64, don't fragment", "TCP 51234 > 443 [syn]"}},
		"ping6": {ping6, []string{"Ethernet 02:52:1a:2b:3c:4d > 02:52:50:4c:47:57", "IPv6 fd17:3::33 > fd17:3::55, 48 bytes, hop limit 64", "ICMPv6 echo request"}},
		"arp": {bytesOf(t, ether+"0806 0001 0800 06 04 0001 02aabbccdd02 0a112233 000000000000 0a112201"),
			[]string{"Ethernet 02:aa:bb:cc:dd:02 > 02:aa:bb:cc:dd:01", "ARP who has 10.17.34.1? tell 10.17.34.51"}},
		"vlan": {bytesOf(t, ether+"8100 2064 88cc aabb"), []string{"Ethernet 02:aa:bb:cc:dd:02 > 02:aa:bb:cc:dd:01", "VLAN 100", "type 0x88cc, 2 bytes"}},
		"frag needed": {bytesOf(t, ether+"0800 4500 0038 0000 0000 4001 0000 0a112201 0a112233 0304 0000 0000 0582"),
			[]string{"Ethernet 02:aa:bb:cc:dd:02 > 02:aa:bb:cc:dd:01", "IPv4 10.17.34.1 > 10.17.34.51, 56 bytes, TTL 64", "ICMP unreachable: too big, MTU 1410"}},
		"later fragment": {bytesOf(t, ether+"0800 4500 0038 0000 2003 4011 0000 0a112201 0a112233 c123 12b5 0046 0000"),
			[]string{"Ethernet 02:aa:bb:cc:dd:02 > 02:aa:bb:cc:dd:01", "IPv4 10.17.34.1 > 10.17.34.51, 56 bytes, TTL 64, fragment at 24"}},
		"cut off": {outer[:44], []string{"Ethernet 02:aa:bb:cc:dd:02 > 02:aa:bb:cc:dd:01", "IPv4 100.64.7.23 > 100.64.9.41, 90 bytes, TTL 64, ECT(0), don't fragment",
			"UDP 49443 > 4789, 70 bytes", "VXLAN: cut off after 2 bytes"}},
		"nothing": {nil, []string{"Ethernet: cut off after 0 bytes"}},
	} {
		if got := frame.Words(c.frame); !slices.Equal(got, c.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, c.want)
		}
	}
	got, vni, ok := frame.Inner(outer)
	if !ok || vni != 0xa1b2c3 || !bytes.Equal(got, inner) {
		t.Errorf("Inner = %x, %d, %v", got, vni, ok)
	}
	if _, _, ok := frame.Inner(inner); ok {
		t.Error("a TCP packet has an inner frame")
	}
	if tuple, ok := frame.TupleOf(inner); !ok || tuple.String() != "tcp 10.17.34.51:51234 > 10.17.34.85:443" {
		t.Errorf("TupleOf = %s, %v", tuple, ok)
	}
	if tuple, ok := frame.TupleOf(ping6); !ok || tuple.String() != "icmpv6 fd17:3::33 > fd17:3::55" {
		t.Errorf("TupleOf = %s, %v", tuple, ok)
	}
}

// Frames come from guests: no cut and no byte makes the words fail.
func TestWordsOfAnything(t *testing.T) {
	for _, c := range composed {
		b, err := frame.Compose(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		for n := range b {
			frame.Words(b[:n])
			frame.TupleOf(b[:n])
			frame.Inner(b[:n])
			mutated := slices.Clone(b)
			mutated[n] ^= 0xff
			frame.Words(mutated)
			frame.Inner(mutated)
		}
	}
}

func TestFlags(t *testing.T) {
	f, err := frame.ParseFlags("syn,ACK")
	if err != nil || f != 0x12 || f.String() != "syn,ack" {
		t.Errorf("syn,ACK: %v %q, %v", f, f.String(), err)
	}
	if _, err := frame.ParseFlags("syn,xmas"); !errors.Is(err, frame.ErrSpec) || !strings.Contains(err.Error(), "xmas") {
		t.Errorf("xmas: %v", err)
	}
}
