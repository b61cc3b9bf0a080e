package frame_test

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"replug/directory/frame"
	"replug/directory/vnet"
)

// A reset in VXLAN, as tcpdump -vv reads it: checksums correct, VNI 0xabcdef.
func TestEncapsulate(t *testing.T) {
	for _, c := range []struct {
		name             string
		src, dst, pa, to string
		want             string
	}{
		{"IPv4", "10.17.34.51", "10.17.34.62", "100.64.9.23", "100.64.7.41", golden4},
		{"IPv6", "fd17:34::51", "fd17:34::62", "fd64:9::23", "fd64:7::41", golden6},
	} {
		inner, err := frame.Compose(frame.Spec{
			SrcMAC: vnet.GatewayMAC, DstMAC: vnet.PortMAC(0x1a2b3c4d), Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr(c.dst),
			Protocol: vnet.TCP, SrcPort: 443, DstPort: 54321, Flags: frame.RST | frame.ACK, Seq: 0x91a2b3c4, Ack: 0xd5e6f708,
		})
		if err != nil {
			t.Fatal(err)
		}
		got := frame.Encapsulate(frame.Outer{
			SrcMAC: vnet.MAC{2, 0x52, 0x31, 0x42, 0x53, 0x64}, DstMAC: vnet.MAC{2, 0x52, 0x75, 0x86, 0x97, 0xa8},
			Src: netip.MustParseAddr(c.pa), Dst: netip.MustParseAddr(c.to), VNI: 0xabcdef,
		}, inner)
		if hex.EncodeToString(got) != c.want {
			t.Errorf("%s: got\n%x\nwant\n%s", c.name, got, c.want)
		}
		back, vni, ok := frame.Inner(got)
		if !ok || vni != 0xabcdef || !slices.Equal(back, inner) {
			t.Errorf("%s: inner frame %x, %d, %t", c.name, back, vni, ok)
		}
		s, ok := frame.SegmentOf(inner)
		want := frame.Segment{Src: netip.AddrPortFrom(netip.MustParseAddr(c.src), 443), Dst: netip.AddrPortFrom(netip.MustParseAddr(c.dst), 54321),
			Seq: 0x91a2b3c4, Ack: 0xd5e6f708, Flags: frame.RST | frame.ACK}
		if !ok || s != want {
			t.Errorf("%s: read %+v, %t, want %+v", c.name, s, ok, want)
		}
		for n := range inner {
			if _, ok := frame.SegmentOf(inner[:n]); ok && n < len(inner) {
				t.Errorf("%s: %d bytes of %d are a whole segment", c.name, n, len(inner))
			}
		}
		if _, ok := frame.SegmentOf(got); ok {
			t.Errorf("%s: UDP is no segment", c.name)
		}
	}
}

// What tcpdump and RFC 7348 agree on.
const (
	golden4 = "0252758697a802523142536408004500005a00004000401161d36440091764400729d77b12b50046000008000000abcdef00" +
		"02521a2b3c4d0252504c4757080045000028000040004006e23d0a1122330a11223e01bbd43191a2b3c4d5e6f7085014ffff" +
		"6efa0000"
	golden6 = "0252758697a802523142536486dd60000000005a1140fd640009000000000000000000000023fd6400070000000000000000" +
		"00000041cce212b5005aa1be08000000abcdef0002521a2b3c4d0252504c475786dd6000000000140640fd17003400000000" +
		"0000000000000051fd17003400000000000000000000006201bbd43191a2b3c4d5e6f7085014ffffcc420000"
)
