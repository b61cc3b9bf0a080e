package trap_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"replug/dataplane/trap"
	"replug/directory/vnet"
)

var (
	gatewayIP = netip.MustParseAddr("10.23.32.9")
	guestCA   = vnet.CA{Addr: netip.MustParseAddr("10.23.45.67")}
	guestMAC  = vnet.MAC{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}
)

// The bytes of both frames were read with tcpdump -vv -e, and with RFC 826.
func TestARPFrames(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want []byte
	}{
		{"probe", trap.Probe(gatewayIP, vnet.GatewayMAC, guestCA, guestMAC), []byte{
			0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x08, 0x06,
			0, 1, 8, 0, 6, 4, 0, 1,
			0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
			0, 0, 0, 0, 0, 0, 10, 23, 45, 67,
		}},
		{"announcement", trap.Announce(gatewayIP, vnet.GatewayMAC), []byte{
			0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x08, 0x06,
			0, 1, 8, 0, 6, 4, 0, 1,
			0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
			0, 0, 0, 0, 0, 0, 10, 23, 32, 9,
		}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestParseARP(t *testing.T) {
	answer := []byte{
		0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0x08, 0x06,
		0, 1, 8, 0, 6, 4, 0, 2,
		0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 10, 23, 45, 67,
		0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
	}
	want := trap.ARP{Op: trap.ARPAnswer, SenderMAC: guestMAC, SenderIP: guestCA.Addr, TargetMAC: vnet.GatewayMAC, TargetIP: gatewayIP}
	for _, b := range [][]byte{answer, append(bytes.Clone(answer), make([]byte, 18)...)} {
		got, err := trap.ParseARP(b)
		if err != nil || got != want {
			t.Errorf("%d bytes: got %+v, %v", len(b), got, err)
		}
	}
	for at, name := range map[int]string{13: "EtherType", 15: "hardware type", 16: "protocol", 18: "hardware length", 19: "protocol length"} {
		b := bytes.Clone(answer)
		b[at] ^= 0x11
		if got, err := trap.ParseARP(b); !errors.Is(err, trap.ErrARP) {
			t.Errorf("another %s: got %+v, %v", name, got, err)
		}
	}
	for n := range answer {
		if got, err := trap.ParseARP(answer[:n]); !errors.Is(err, trap.ErrARP) {
			t.Errorf("%d bytes: got %+v, %v", n, got, err)
		}
	}
}
