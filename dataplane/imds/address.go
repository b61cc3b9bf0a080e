package imds

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// A Caller is who asks: a port, in one of its epochs. The datapath writes it
// into the source address of the request, so it is nothing that a guest says.
type Caller struct {
	Port  vnet.PortID
	Epoch uint16 // the low epochBits of the epoch's counter
}

const (
	portBits  = 14
	epochBits = 14
)

// callers6 holds the IPv6 addresses of callers: then the port id in two bytes, and
// the epoch in eight.
var callers6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x52, 0x50, 0x47}), 48)

// CallerAddr is the host-local IPv4 address that stands for a port in an epoch:
// 240.0.0.0/4, then the port id in 14 bits, then the low 14 bits of the epoch's
// counter. The datapath computes the same.
func CallerAddr(port vnet.PortID, epoch vnet.Epoch) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0xf<<(portBits+epochBits)|uint32(port)<<epochBits|uint32(low(epoch)))
	return netip.AddrFrom4(b)
}

// CallerAddr6 is [CallerAddr] for guests that ask over IPv6.
func CallerAddr6(port vnet.PortID, epoch vnet.Epoch) netip.Addr {
	b := callers6.Addr().As16()
	binary.BigEndian.PutUint16(b[6:], uint16(port))
	binary.BigEndian.PutUint64(b[8:], uint64(epoch))
	return netip.AddrFrom16(b)
}

// CallerOf reads what [CallerAddr] or [CallerAddr6] wrote; false for any other
// address.
func CallerOf(remote netip.AddrPort) (Caller, bool) {
	addr := remote.Addr().Unmap()
	var c Caller
	switch {
	case addr.Is4():
		b := addr.As4()
		n := binary.BigEndian.Uint32(b[:])
		if n>>(portBits+epochBits) != 0xf {
			return c, false
		}
		c = Caller{Port: vnet.PortID(n >> epochBits & (1<<portBits - 1)), Epoch: uint16(n & (1<<epochBits - 1))}
	case callers6.Contains(addr):
		b := addr.As16()
		c = Caller{Port: vnet.PortID(binary.BigEndian.Uint16(b[6:])), Epoch: low(vnet.Epoch(binary.BigEndian.Uint64(b[8:])))}
	}
	return c, c.Port > 0 && c.Port <= vnet.MaxPortID
}

// low is what a [Caller] has of an epoch.
func low(e vnet.Epoch) uint16 { return uint16(e.Counter() & (1<<epochBits - 1)) }

// ahead is by how many flips a caller is ahead of an epoch, or behind: below 0.
// Counters are compared as they wrap.
func (c Caller) ahead(e vnet.Epoch) int {
	const unused = 16 - epochBits
	return int(int16((c.Epoch-low(e))<<unused) >> unused)
}

// Listen opens the service's TCP socket in the calling thread's network
// namespace. It hears what comes in through device only, so nobody reaches it
// from the underlay; "" is any device. Its packets leave with a hop limit of 1:
// a guest that forwards for others can't pass the answers on.
func Listen(ctx context.Context, device, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = confine(int(fd), network, device) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metadata requests: %w", err)
	}
	return ln, nil
}

func confine(fd int, network, device string) error {
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if network == "tcp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("set the hop limit: %w", err)
	}
	if device == "" {
		return nil
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("bind to %s: %w", device, err)
	}
	return nil
}
