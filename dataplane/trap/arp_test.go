package trap_test

import (
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

// The bytes were read with tcpdump -vv -e, and with RFC 826.
func TestProbe(t *testing.T) {
	want := []byte{
		0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 0x08, 0x06,
		0, 1, 8, 0, 6, 4, 0, 1,
		0x02, 0x52, 0x50, 0x4c, 0x47, 0x57, 10, 23, 32, 9,
		0, 0, 0, 0, 0, 0, 10, 23, 45, 67,
	}
	if d := cmp.Diff(want, trap.Probe(gatewayIP, vnet.GatewayMAC, guestCA, guestMAC)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
