package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"replug/tests/cluster"
	"replug/tests/lab/tap"
)

const (
	dhcpTime  = 2 * time.Second  // of a round
	dhcpLeast = 1000             // exchanges a second
	dhcpSlow  = 2 * time.Second  // an answer that takes longer is lost
	dhcpPace  = time.Second / 45 // of a port: the datapath lets 100 of its frames a second to the agent, two an exchange
)

// leases measures DHCP exchanges of a host: discover, offer, request, ack, each a
// frame on the tap of its port, through the datapath, the agent and back. The ports
// ask at once, each no faster than a port may, and share the machine's CPUs with the agent.
func leases(ctx context.Context, o Options) (figures []Figure, err error) {
	c, end, err := startCluster(ctx, o, 1, cluster.Config{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	var askers []*asker
	defer func() {
		for _, a := range askers {
			a.wire.Close()
		}
	}()
	if err := crowd(ctx, c, func(name string, mac net.HardwareAddr) error {
		fd, err := tap.Open(c.Lab.Host(1).NetNS(), name, tap.Options{Up: true})
		if err == nil {
			err = unix.SetNonblock(fd, true)
			askers = append(askers, &asker{mac: mac, wire: os.NewFile(uintptr(fd), name)})
		}
		return err
	}); err != nil {
		return nil, err
	}
	var rates []float64
	for range o.Rounds {
		n, err := leaseAll(askers, dhcpTime)
		if err != nil {
			return nil, err
		}
		rates = append(rates, float64(n)/dhcpTime.Seconds())
	}
	rate := Figure{ID: "dhcp_per_s", Unit: "exchanges/s", Ours: median(rates), Must: fmt.Sprint(">= ", dhcpLeast), Runs: rates}
	rate.OK = rate.Ours >= dhcpLeast
	return []Figure{rate}, nil
}

// leaseAll lets all ask for a while, one exchange after the other, and returns how
// many there were.
func leaseAll(askers []*asker, during time.Duration) (int64, error) {
	var n atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, len(askers))
	end := time.Now().Add(during)
	for i, a := range askers {
		all.Go(func() {
			pace := time.NewTicker(dhcpPace)
			defer pace.Stop()
			for ; time.Now().Before(end) && errs[i] == nil; <-pace.C {
				if errs[i] = a.lease(); errs[i] == nil {
					n.Add(1)
				}
			}
		})
	}
	all.Wait()
	return n.Load(), errors.Join(errs...)
}

// An asker is a DHCP client at the guest's end of a tap.
type asker struct {
	mac  net.HardwareAddr
	wire *os.File
	buf  [2048]byte
}

// lease makes one exchange, from the start.
func (a *asker) lease() error {
	discover, err := dhcpv4.NewDiscovery(a.mac)
	if err != nil {
		return err
	}
	offer, err := a.ask(discover, dhcpv4.MessageTypeOffer)
	if err != nil {
		return err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		return err
	}
	_, err = a.ask(request, dhcpv4.MessageTypeAck)
	return err
}

// ask sends a message and waits for its answer. Frames that are something else, such
// as the host's probes, are passed over.
func (a *asker) ask(m *dhcpv4.DHCPv4, want dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	if _, err := a.wire.Write(a.frame(m.ToBytes())); err != nil {
		return nil, err
	}
	if err := a.wire.SetReadDeadline(time.Now().Add(dhcpSlow)); err != nil {
		return nil, err
	}
	for {
		n, err := a.wire.Read(a.buf[:])
		if err != nil {
			return nil, fmt.Errorf("%s: no %s: %w", a.wire.Name(), want, err)
		}
		got, err := dhcpv4.FromBytes(a.buf[min(n, dhcpAt):n])
		if err == nil && got.TransactionID == m.TransactionID && got.MessageType() == want {
			return got, nil
		}
	}
}

// Where a message is in a frame: after Ethernet, IPv4 and UDP.
const (
	ipAt   = 14
	udpAt  = ipAt + 20
	dhcpAt = udpAt + 8
)

// frame wraps a client's message (RFC 2131, section 4.1): from nowhere to everybody,
// with no UDP checksum (RFC 768).
func (a *asker) frame(message []byte) []byte {
	f := make([]byte, dhcpAt, dhcpAt+len(message))
	for i := range 6 {
		f[i] = 0xff
	}
	copy(f[6:], a.mac)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	ip := f[ipAt:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(dhcpAt-ipAt+len(message)))
	copy(ip[16:20], net.IPv4bcast.To4())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:20]))
	binary.BigEndian.PutUint16(f[udpAt:], dhcpv4.ClientPort)
	binary.BigEndian.PutUint16(f[udpAt+2:], dhcpv4.ServerPort)
	binary.BigEndian.PutUint16(f[udpAt+4:], uint16(dhcpAt-udpAt+len(message)))
	return append(f, message...)
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
