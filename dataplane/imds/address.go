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
	Epoch uint16 // the low 16 bits of the epoch's counter
}

// CallerAddr is the host-local address that stands for a port in an epoch:
// 240.0.0.0/4, then the port id in 12 bits, then the low 16 bits of the epoch's
// counter. The datapath computes the same.
func CallerAddr(port vnet.PortID, epoch vnet.Epoch) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0xf<<28|uint32(port)<<16|uint32(low(epoch)))
	return netip.AddrFrom4(b)
}

// CallerOf reads what [CallerAddr] wrote; false for any other address.
func CallerOf(remote netip.AddrPort) (Caller, bool) {
	addr := remote.Addr().Unmap()
	if !addr.Is4() {
		return Caller{}, false
	}
	b := addr.As4()
	n := binary.BigEndian.Uint32(b[:])
	port := vnet.PortID(n >> 16 & 0xfff)
	if n>>28 != 0xf || port == 0 || port > vnet.MaxPortID {
		return Caller{}, false
	}
	return Caller{Port: port, Epoch: uint16(n)}, true
}

func low(e vnet.Epoch) uint16 { return uint16(e.Counter()) }

// Listen opens the service's TCP socket in the calling thread's network
// namespace. It hears what comes in through device only, so nobody reaches it
// from the underlay; "" is any device. Its packets leave with a hop limit of 1:
// a guest that forwards for others can't pass the answers on.
func Listen(ctx context.Context, device, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = confine(int(fd), device) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(ctx, "tcp4", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metadata requests: %w", err)
	}
	return ln, nil
}

func confine(fd int, device string) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 1); err != nil {
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
