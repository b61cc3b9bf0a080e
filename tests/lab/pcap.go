package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Recording writes what passes a device to a pcap file.
type Recording struct {
	file   *os.File
	out    *bufio.Writer
	sock   *os.File
	done   chan struct{}
	err    error
	mu     sync.Mutex
	frames int
}

// snap is the most that is kept of a frame: all of a GSO frame.
const snap = 1 << 17

// Capture records both directions of a device into a pcap file (nanoseconds,
// Ethernet) until Stop. A relative path is below the node's directory. Frames
// that pass after Capture has returned are in it; it sees them outside of the
// datapath's programs: before those on the way in, after those on the way out.
func (n *Node) Capture(dev, file string) (*Recording, error) {
	if !filepath.IsAbs(file) {
		file = filepath.Join(n.Dir(), file)
	}
	var sock *os.File
	err := n.Do(func() (err error) {
		sock, err = listenPackets(dev)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture %s in %s: %w", dev, n.Name, err)
	}
	f, err := os.Create(file)
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("capture %s: %w", dev, err)
	}
	r := &Recording{file: f, out: bufio.NewWriter(f), sock: sock, done: make(chan struct{})}
	r.err = r.header()
	go r.loop()
	return r, nil
}

// File returns the pcap file's path.
func (r *Recording) File() string { return r.file.Name() }

// Frames returns how many were recorded so far.
func (r *Recording) Frames() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.frames
}

// Stop ends the recording: frames that had passed by then are in the file.
func (r *Recording) Stop() error {
	r.sock.SetReadDeadline(time.Unix(1, 0))
	<-r.done
	err := errors.Join(r.err, r.out.Flush(), r.file.Close(), r.sock.Close())
	if err != nil {
		return fmt.Errorf("capture to %s: %w", r.file.Name(), err)
	}
	return nil
}

// listenPackets opens a packet socket whose kernel stamps each frame.
func listenPackets(dev string) (*os.File, error) {
	link, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, err
	}
	// Bound to no protocol until it is bound to the device: nothing else gets in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // network byte order
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet:"+dev), nil
}

// header writes pcap's, draft-ietf-opsawg-pcap: the magic says nanoseconds.
func (r *Recording) header() error {
	var h [24]byte
	binary.LittleEndian.PutUint32(h[0:], 0xa1b23c4d)
	binary.LittleEndian.PutUint16(h[4:], 2) // version 2.4
	binary.LittleEndian.PutUint16(h[6:], 4)
	binary.LittleEndian.PutUint32(h[16:], snap)
	binary.LittleEndian.PutUint32(h[20:], 1) // LINKTYPE_ETHERNET
	_, err := r.out.Write(h[:])
	return err
}

func (r *Recording) loop() {
	defer close(r.done)
	conn, err := r.sock.SyscallConn()
	if err != nil {
		r.err = errors.Join(r.err, err)
		return
	}
	frame, control := make([]byte, snap), make([]byte, 256)
	for r.err == nil {
		var n, oob int
		var got error
		take := func(fd uintptr) bool {
			n, oob, _, _, got = unix.Recvmsg(int(fd), frame, control, 0)
			return !errors.Is(got, unix.EAGAIN)
		}
		if err := conn.Read(take); errors.Is(err, os.ErrDeadlineExceeded) {
			r.drain(conn, frame, control)
			return
		}
		if got == nil {
			r.err = r.write(frame[:n], control[:oob])
		}
		// An error of the device (it went down) isn't the recording's end.
	}
}

// drain takes what had arrived before Stop.
func (r *Recording) drain(conn interface{ Control(func(uintptr)) error }, frame, control []byte) {
	conn.Control(func(fd uintptr) {
		for r.err == nil {
			n, oob, _, _, err := unix.Recvmsg(int(fd), frame, control, unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			r.err = r.write(frame[:n], control[:oob])
		}
	})
}

func (r *Recording) write(frame, control []byte) error {
	at, tag := ancillary(control)
	parts := [][]byte{frame}
	if tag != nil && len(frame) >= 12 {
		// The kernel took the VLAN tag out of the frame: put it back.
		parts = [][]byte{frame[:12], tag, frame[12:]}
	}
	size := len(frame) + len(tag)
	var h [16]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(at.Unix()))
	binary.LittleEndian.PutUint32(h[4:], uint32(at.Nanosecond()))
	binary.LittleEndian.PutUint32(h[8:], uint32(size))
	binary.LittleEndian.PutUint32(h[12:], uint32(size))
	for _, p := range append([][]byte{h[:]}, parts...) {
		if _, err := r.out.Write(p); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.frames++
	r.mu.Unlock()
	return nil
}

// ancillary reads the time of arrival and the VLAN tag, packet(7).
func ancillary(control []byte) (at time.Time, tag []byte) {
	at = time.Now()
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
			at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20:
			// struct tpacket_auxdata: status u32, len u32, snaplen u32, mac u16, net u16, tci u16, tpid u16
			if status := binary.NativeEndian.Uint32(m.Data); status&unix.TP_STATUS_VLAN_VALID == 0 {
				continue
			}
			tag = binary.BigEndian.AppendUint16(nil, binary.NativeEndian.Uint16(m.Data[18:]))
			tag = binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[16:]))
		}
	}
	return at, tag
}

// A Frame of a recording.
type Frame struct {
	At   time.Time // when the kernel saw it
	Data []byte
}

// ReadPcap reads a file that Capture has written: the frames, in order.
func ReadPcap(file string) ([]Frame, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var head [24]byte
	if _, err := io.ReadFull(in, head[:]); err != nil || binary.LittleEndian.Uint32(head[:]) != 0xa1b23c4d {
		return nil, fmt.Errorf("%s is no pcap file of the lab: %w", file, err)
	}
	var frames []Frame
	for {
		var h [16]byte
		if _, err := io.ReadFull(in, h[:]); errors.Is(err, io.EOF) {
			return frames, nil
		} else if err != nil {
			return frames, fmt.Errorf("%s: %w", file, err)
		}
		frame := Frame{Data: make([]byte, binary.LittleEndian.Uint32(h[8:])),
			At: time.Unix(int64(binary.LittleEndian.Uint32(h[:])), int64(binary.LittleEndian.Uint32(h[4:])))}
		if _, err := io.ReadFull(in, frame.Data); err != nil {
			return frames, fmt.Errorf("%s: %w", file, err)
		}
		frames = append(frames, frame)
	}
}
