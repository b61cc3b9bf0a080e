package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Errors of one exchange.
var (
	errNAK    = errors.New("the server refused the request (NAK)")
	errSilent = errors.New("no DHCP answer")
)

// A dhcpClient speaks DHCP (RFC 2131) on one NIC. Its answers come from the host
// that the VM runs on, so it asks again after a tenth of what the RFC proposes.
// It is used by one goroutine at a time.
type dhcpClient struct {
	conn net.PacketConn // UDP broadcasts, below the IP stack
	mac  net.HardwareAddr
}

const (
	firstTimeout = 30 * time.Millisecond
	lastTimeout  = 2 * time.Second
)

// newDHCPClient opens the wire. Keep it open: closing a packet socket waits for an
// RCU grace period.
func newDHCPClient(st linkState) (*dhcpClient, error) {
	filter, err := bpf.Assemble(clientPort)
	if err != nil {
		return nil, fmt.Errorf("assemble the DHCP filter: %w", err)
	}
	ifi := &net.Interface{Index: st.index, Name: st.name, HardwareAddr: st.mac[:]}
	c, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", st.name, err)
	}
	// After a carrier loss the queueing discipline drops until the kernel has
	// noticed the carrier. The first DISCOVER must not go that way.
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		})
	}
	return &dhcpClient{conn: nclient4.NewBroadcastUDPConn(c, &net.UDPAddr{Port: 68}), mac: ifi.HardwareAddr}, nil
}

// clientPort passes unfragmented IPv4/UDP to port 68.
var clientPort = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4},
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 68, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}

func (c *dhcpClient) close() error { return c.conn.Close() }

// acquire gets a lease from nothing: DISCOVER, OFFER, REQUEST, ACK. It never asks
// for a former address, so it can't get one back. It goes on until ctx ends.
func (c *dhcpClient) acquire(ctx context.Context) (lease, error) {
	for again := firstTimeout; ; again = min(again*2, lastTimeout) {
		l, err := c.dora(ctx)
		if !errors.Is(err, errNAK) && !errors.Is(err, errSilent) && !errors.Is(err, errLease) {
			return l, err
		}
		pause(ctx, again)
		if ctx.Err() != nil {
			return l, fmt.Errorf("%w, last: %w", ctx.Err(), err)
		}
	}
}

func (c *dhcpClient) dora(ctx context.Context) (lease, error) {
	discover, err := dhcpv4.NewDiscovery(c.mac, wanted)
	if err != nil {
		return lease{}, fmt.Errorf("make DISCOVER: %w", err)
	}
	offer, err := c.exchange(ctx, discover, 0, dhcpv4.MessageTypeOffer)
	if err != nil {
		return lease{}, err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, wanted)
	if err != nil {
		return lease{}, fmt.Errorf("make REQUEST: %w", err)
	}
	ack, err := c.exchange(ctx, request, 4, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak)
	if err != nil {
		return lease{}, err
	}
	return readLease(ack)
}

// renew asks to keep l (RFC 2131, section 4.3.2, REBINDING: to whichever server
// answers). It returns errNAK when the address is not the VM's any more.
func (c *dhcpClient) renew(ctx context.Context, l lease) (lease, error) {
	request, err := dhcpv4.New(wanted, dhcpv4.WithHwAddr(c.mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithClientIP(l.addr.Addr().AsSlice()))
	if err != nil {
		return lease{}, fmt.Errorf("make REQUEST: %w", err)
	}
	ack, err := c.exchange(ctx, request, 6, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak)
	if err != nil {
		return lease{}, err
	}
	return readLease(ack)
}

// wanted asks for what [readLease] reads.
func wanted(m *dhcpv4.DHCPv4) {
	m.UpdateOption(dhcpv4.OptParameterRequestList(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute,
		dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU,
		dhcpv4.OptionNTPServers, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue))
	m.UpdateOption(dhcpv4.OptMaxMessageSize(1500))
}

// exchange sends msg until an answer of a wanted type has come. After tries
// sends it gives up with errSilent; 0 is never. A NAK is returned as errNAK.
func (c *dhcpClient) exchange(ctx context.Context, msg *dhcpv4.DHCPv4, tries int, want ...dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	defer context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Now()) })()
	timeout := firstTimeout
	for n := 1; ; n++ {
		if _, err := c.conn.WriteTo(msg.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return nil, fmt.Errorf("send %s: %w", msg.MessageType(), err)
		}
		reply, err := c.await(ctx, msg, time.Now().Add(timeout), want)
		switch {
		case err == nil && reply.MessageType() == dhcpv4.MessageTypeNak:
			return nil, errNAK
		case err == nil || !errors.Is(err, errSilent):
			return reply, err
		case n == tries:
			return nil, fmt.Errorf("%w to %s, asked %d times", err, msg.MessageType(), n)
		}
		timeout = min(timeout*2, lastTimeout)
	}
}

// await reads until the answer to msg or the deadline; what it can't read or did
// not ask for it passes over.
func (c *dhcpClient) await(ctx context.Context, msg *dhcpv4.DHCPv4, deadline time.Time, want []dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	buf := make([]byte, 1500)
	c.conn.SetReadDeadline(deadline)
	for ctx.Err() == nil {
		n, _, err := c.conn.ReadFrom(buf)
		if isTimeout(err) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the answer to %s: %w", msg.MessageType(), err)
		}
		m, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != msg.TransactionID {
			continue
		}
		for _, t := range want {
			if m.MessageType() == t {
				return m, nil
			}
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, errSilent
}

// v4 returns the IPv4 address in ip, or the zero Addr.
func v4(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !a.Is4() {
		return netip.Addr{}
	}
	return a
}
