package guest

import (
	"fmt"
	"net"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// signs are what the host takes for a guest on its way: it does not cut the link again
// for three seconds after each. They are router solicitations (RFC 4861, section 4.1)
// from no address, which the host hears in networks of IPv4, too. A client that is slow
// to say its first word, busy with its own scripts, is not thrown back meanwhile.
type signs struct {
	conn *packet.Conn
	last time.Time
}

// signGap is the time between two of them.
const signGap = 2 * time.Second

func openSigns(st linkState) (*signs, error) {
	c, err := packet.Listen(&net.Interface{Index: st.index, Name: st.name, HardwareAddr: st.mac[:]}, packet.Datagram, unix.ETH_P_IPV6, nil)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", st.name, err)
	}
	if raw, err := c.SyscallConn(); err == nil { // see [newDHCPClient]
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		})
	}
	return &signs{conn: c}, nil
}

// give gives one if it is time again. One that can't be given is not needed for more
// than time.
func (s *signs) give() {
	if time.Since(s.last) < signGap {
		return
	}
	s.last = time.Now()
	_, _ = s.conn.WriteTo(solicitation[:], &packet.Addr{HardwareAddr: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}})
}

func (s *signs) close() { s.conn.Close() }

// solicitation is the whole of it, from :: to ff02::2: nothing in it depends on the NIC.
var solicitation = [48]byte{
	0: 0x60, 5: 8, 6: unix.IPPROTO_ICMPV6, 7: 255, // 8 bytes, hop limit 255
	24: 0xff, 25: 2, 39: 2,
	40: 133, 42: 0x7b, 43: 0xb8, // its checksum
}
