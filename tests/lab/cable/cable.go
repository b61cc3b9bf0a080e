// Package cable is a wire between two network namespaces, made of two taps with
// NAPI and a copy in user space. Nothing but bytes crosses: no owner of a socket
// buffer, no unfinished checksum, no GSO state, as between two real NICs. It can
// hold frames back for a while, which a kernel without netem can't.
package cable

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/lab/space"
	"replug/tests/lab/tap"
)

// Config of a cable's process.
type Config struct {
	Ends [2]End
	MTU  int
	// Threaded makes the devices' NAPI run in threads of the kernel, which a busy
	// NIC's interrupts amount to: frames of one flow take turns with others.
	Threaded bool
	Control  string // unix socket: a line "5ms" sets the delay of both directions
}

// An End is one of the two devices.
type End struct {
	NetNS string // path
	Name  string
	MAC   net.HardwareAddr
}

// frameRoom fits every Ethernet frame of the underlay: 9000 bytes, header, tag.
const frameRoom = 9216

// Main copies until the process is killed. It writes "ready" to file descriptor
// 3 when frames flow. Args is one JSON [Config].
func Main(args []string) error {
	var c Config
	if len(args) != 1 {
		return errors.New("usage: cable CONFIG")
	}
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return fmt.Errorf("cable: config: %w", err)
	}
	var fds [2]int
	for i, e := range c.Ends {
		fd, err := tap.Open(e.NetNS, e.Name, tap.Options{NAPI: true, MAC: e.MAC, MTU: c.MTU, Queue: 5000, Up: true})
		if err != nil {
			return err
		}
		fds[i] = fd
		if err := thread(e, c.Threaded); err != nil {
			return err
		}
	}
	control, err := net.Listen("unix", c.Control)
	if err != nil {
		return fmt.Errorf("cable: control socket: %w", err)
	}
	var delay atomic.Int64
	failed := make(chan error, 2)
	for i := range fds {
		go func() { failed <- carry(fds[i], fds[1-i], &delay) }()
	}
	go serve(control, &delay)
	ready := os.NewFile(3, "ready")
	fmt.Fprintln(ready, "ready")
	ready.Close()
	return <-failed
}

func thread(e End, threaded bool) error {
	if !threaded {
		return nil
	}
	return space.Sysfs(e.NetNS, func() error {
		return os.WriteFile("/sys/class/net/"+e.Name+"/threaded", []byte("1"), 0)
	})
}

// carry copies frames one way on a thread of its own.
func carry(from, to int, delay *atomic.Int64) error {
	runtime.LockOSThread()
	late := make(chan frame, 4096)
	go deliver(to, late)
	buf := make([]byte, frameRoom)
	for {
		n, err := unix.Read(from, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cable: read: %w", err)
		}
		d := time.Duration(delay.Load())
		if d == 0 && len(late) == 0 {
			unix.Write(to, buf[:n]) // a device that is down loses frames, as a NIC does
			continue
		}
		select {
		case late <- frame{time.Now().Add(d), append([]byte(nil), buf[:n]...)}:
		default: // a full queue drops
		}
	}
}

type frame struct {
	due   time.Time
	bytes []byte
}

// deliver writes frames when they are due, in order.
func deliver(to int, late <-chan frame) {
	for f := range late {
		time.Sleep(time.Until(f.due))
		unix.Write(to, f.bytes)
	}
}

// serve reads delays from the control socket and answers each with "ok".
func serve(l net.Listener, delay *atomic.Int64) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		for s := bufio.NewScanner(conn); s.Scan(); {
			d, err := time.ParseDuration(s.Text())
			if err != nil || d < 0 {
				fmt.Fprintf(conn, "bad delay %q\n", s.Text())
				continue
			}
			delay.Store(int64(d))
			fmt.Fprintln(conn, "ok")
		}
		conn.Close()
	}
}
