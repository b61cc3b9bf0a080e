package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a transfer may take on a busy machine.
const patience = 20 * time.Second

// A talker is a room with an address of each family.
type talker interface {
	in(func() error)
	at(family int, port uint16) netip.AddrPort
}

// called is where others say that they want to talk to a room that listens at an
// address: there, or at the service that it is behind.
func called(to talker, listens string, family int) string {
	if s, ok := to.(served); ok {
		return netip.AddrPortFrom(vips[family], s.at(family, 0).Port()).String()
	}
	return listens
}

// A connection is one TCP connection, both of whose ends the test has.
type connection struct{ from, to *net.TCPConn }

func connect(t *testing.T, from, to talker, family int) connection {
	t.Helper()
	var l net.Listener
	to.in(func() (err error) { l, err = net.Listen("tcp", to.at(family, 0).String()); return err })
	defer l.Close()
	var c connection
	from.in(func() error {
		d := net.Dialer{Timeout: patience, Control: loseless}
		conn, err := d.Dial("tcp", called(to, l.Addr().String(), family))
		if err == nil {
			c.from = conn.(*net.TCPConn)
		}
		return err
	})
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.to = conn.(*net.TCPConn)
	t.Cleanup(func() { _, _ = c.from.Close(), c.to.Close() })
	return c
}

// loseless is a congestion control that slows down at a loss, so that queues
// don't overflow: what is sent again looks like reordering.
func loseless(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	}), err)
}

// messages are the sizes of a talk's writes: small ones follow large ones
// closely, so that they would overtake where they can.
var messages = []int{20011, 103, 9007, 211}

// exchange sends data both ways at once and compares what arrives.
func (c connection) exchange(data [2][]byte) error {
	results := make(chan error, 4)
	ends := [2]*net.TCPConn{c.from, c.to}
	for i, from := range ends {
		to := ends[1-i]
		go func() { results <- inMessages(from, data[i]) }()
		go func() { results <- compare(to, data[i]) }()
	}
	var all error
	for range 4 {
		all = errors.Join(all, <-results)
	}
	return all
}

func inMessages(c *net.TCPConn, data []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for i := 0; len(data) > 0; i++ {
		n := min(messages[i%len(messages)], len(data))
		if _, err := c.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func compare(c *net.TCPConn, want []byte) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("%d of %d bytes arrived: %w", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes arrived that aren't those sent", len(got))
	}
	return nil
}

// segmentSize is the payload of an end's segments on the wire.
func segmentSize(t *testing.T, c *net.TCPConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var got error
	err = raw.Control(func(fd uintptr) { info, got = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, got); err != nil {
		t.Fatal(err)
	}
	return int(info.Snd_mss)
}

// overtaken is how often TCP of a room has seen one segment overtake another:
// what arrived out of order (a loss shows as well), and what the peer's SACKs said.
func overtaken(t *testing.T, r talker) (n int) {
	t.Helper()
	r.in(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j, name := range names {
				if name != "TCPSACKReorder" && name != "TCPOFOQueue" {
					continue
				}
				v, err := strconv.Atoi(values[j])
				if err != nil {
					return err
				}
				n += v
			}
		}
		return nil
	})
	return n
}

// A burst is a superpacket of datagrams and single ones right behind it.
const (
	burstSegments = 20
	burstSingles  = 3
	segmentBytes  = 1187
	inFlight      = 2 // bursts: what a socket's buffer holds however slow the machine is
)

// datagrams sends bursts of numbered datagrams, each with its own bytes, and
// fails unless they arrive as they are, all, in order.
func datagrams(from, to talker, family, bursts int) error {
	var in, out *net.UDPConn
	to.in(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to.at(family, 0)))
		return err
	})
	defer in.Close()
	from.in(func() (err error) {
		addr, err := net.ResolveUDPAddr("udp", called(to, in.LocalAddr().String(), family))
		if err == nil {
			out, err = net.DialUDP("udp", nil, addr)
		}
		return err
	})
	defer out.Close()
	credits := make(chan struct{}, inFlight)
	stop, result := make(chan struct{}), make(chan error, 2)
	go func() { result <- blow(out, bursts, credits, stop) }()
	err := take(in, bursts, credits)
	close(stop)
	return errors.Join(err, <-result)
}

func blow(c *net.UDPConn, bursts int, credits chan<- struct{}, stop <-chan struct{}) error {
	segmented := cmsg(unix.IPPROTO_UDP, unix.UDP_SEGMENT, segmentBytes)
	number := uint64(0)
	for range bursts {
		select {
		case credits <- struct{}{}:
		case <-stop:
			return nil
		}
		var super []byte
		for range burstSegments {
			super = append(super, datagram(number, segmentBytes)...)
			number++
		}
		if _, _, err := c.WriteMsgUDP(super, segmented, nil); err != nil {
			return fmt.Errorf("send %d datagrams at once: %w", burstSegments, err)
		}
		for i := range burstSingles {
			if _, err := c.Write(datagram(number, 9+100*i)); err != nil {
				return err
			}
			number++
		}
	}
	return nil
}

func take(c *net.UDPConn, bursts int, credits <-chan struct{}) error {
	const perBurst = burstSegments + burstSingles
	b := make([]byte, 65536)
	for number := uint64(0); number < uint64(bursts)*perBurst; number++ {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("datagram %d: %w", number, err)
		}
		size := segmentBytes
		if i := int(number % perBurst); i >= burstSegments {
			size = 9 + 100*(i-burstSegments)
		}
		if want := datagram(number, size); !bytes.Equal(b[:n], want) {
			return fmt.Errorf("instead of datagram %d of %d bytes came %d of %d bytes, or other bytes", number, size, binary.BigEndian.Uint64(b[:8]), n)
		}
		if number%perBurst == perBurst-1 {
			<-credits
		}
	}
	return nil
}

// datagram is the one of that number: the number, and bytes that no other has.
func datagram(number uint64, size int) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, size), number)
	h := uint32(number)*0x9e3779b1 | 1
	for len(b) < size {
		h = h*1664525 + 1013904223
		b = append(b, byte(h>>24))
	}
	return b
}

// cmsg is a control message of sendmsg with two bytes of value.
func cmsg(level, kind int32, value uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	binary.NativeEndian.PutUint16(b[16:], value)
	return b
}

// noise is data whose every part differs: a piece that is lost, doubled or
// moved shows.
func noise(n int, seed uint64) []byte {
	b := make([]byte, 0, n+segmentBytes)
	for i := uint64(0); len(b) < n; i++ {
		b = append(b, datagram(seed<<32|i, 1021)...)
	}
	return b[:n]
}
