package trap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// ErrStale is an answer for an epoch that is over, or not yet there: it is not sent.
var ErrStale = errors.New("answer for another epoch than the one in force")

// A Sender sends frames to guests, through any device of the network namespace
// it was made in. Its methods may be called at once.
type Sender struct {
	fd      int
	inForce func(vnet.PortID) (vnet.Epoch, bool)
}

// NewSender opens a packet socket that receives nothing. inForce tells the epoch
// that a port's row holds, false if there is no such port.
func NewSender(inForce func(vnet.PortID) (vnet.Epoch, bool)) (*Sender, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket (needs CAP_NET_RAW): %w", err)
	}
	return &Sender{fd: fd, inForce: inForce}, nil
}

// Close closes the socket.
func (s *Sender) Close() error { return unix.Close(s.fd) }

// Answer sends an answer that was computed from the port's place of epoch, or
// returns [ErrStale] if that is not in force, or the port is gone. A flip between this check and
// the guest's end of the tap is the guest's to bear: the link is down then.
func (s *Sender) Answer(port vnet.PortID, epoch vnet.Epoch, ifindex int, frame []byte) error {
	now, ok := s.inForce(port)
	if !ok || epoch != now {
		return fmt.Errorf("port %d, epoch %s, in force %s: %w", port, epoch, now, ErrStale)
	}
	return s.Send(ifindex, frame)
}

// Send sends one Ethernet frame out of a device, towards the guest if it is a
// tap. It doesn't wait: a guest that takes nothing loses the frame.
func (s *Sender) Send(ifindex int, frame []byte) error {
	if len(frame) < 14 {
		return fmt.Errorf("send %d bytes: shorter than an Ethernet header", len(frame))
	}
	to := &unix.SockaddrLinklayer{
		Ifindex:  ifindex,
		Protocol: networkOrder(binary.BigEndian.Uint16(frame[12:])),
		Halen:    6,
	}
	copy(to.Addr[:], frame[:6])
	if err := unix.Sendto(s.fd, frame, unix.MSG_DONTWAIT, to); err != nil {
		return fmt.Errorf("send to device %d: %w", ifindex, err)
	}
	return nil
}

// networkOrder makes a number that lies in memory as the wire has it.
func networkOrder(v uint16) uint16 {
	if binary.NativeEndian.Uint16([]byte{1, 2}) == 0x0102 {
		return v
	}
	return bits.ReverseBytes16(v)
}
