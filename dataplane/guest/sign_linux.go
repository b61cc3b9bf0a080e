package guest

import (
	"fmt"
	"net"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// giveSign tells the host that the guest is on its way: it does not cut the link again
// for three seconds. A client that is slow to say its first word, busy with its own
// scripts, is not thrown back meanwhile. The sign is a router solicitation (RFC 4861,
// section 4.1) from no address, which the host hears in networks of IPv4, too. It is
// given once: each answer has such a client run its scripts again.
func giveSign(st linkState) error {
	c, err := packet.Listen(&net.Interface{Index: st.index, Name: st.name, HardwareAddr: st.mac[:]}, packet.Datagram, unix.ETH_P_IPV6, nil)
	if err != nil {
		return fmt.Errorf("open a packet socket on %s: %w", st.name, err)
	}
	defer c.Close()
	if raw, err := c.SyscallConn(); err == nil { // see [newDHCPClient]
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		})
	}
	_, err = c.WriteTo(solicitation[:], &packet.Addr{HardwareAddr: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}})
	return err
}

// solicitation is the whole of it, from :: to ff02::2: nothing in it depends on the NIC.
var solicitation = [48]byte{
	0: 0x60, 5: 8, 6: unix.IPPROTO_ICMPV6, 7: 255, // 8 bytes, hop limit 255
	24: 0xff, 25: 2, 39: 2,
	40: 133, 42: 0x7b, 43: 0xb8, // its checksum
}
