// Package tapguest stands in for a virtual machine monitor with one virtio NIC:
// it copies frames, offload headers included, between a tap in the guest's
// network namespace and a tap in the host's, sets the guest's link from a QMP
// monitor, and keeps a mount and a UTS namespace in which the guest's programs
// run. No machine is emulated, so hundreds of guests fit on a small computer.
package tapguest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"replug/tests/lab/tap"
)

// Config of a guest's process.
type Config struct {
	HostNetNS  string // path
	HostTap    string
	GuestNetNS string // path
	GuestDev   string
	MAC        net.HardwareAddr
	MTU        int
	Queue      int    // of both taps, frames; 0: the kernel's
	Monitor    string // path of the QMP socket to listen on
	Device     string // the NIC's name to set_link; "": any name
	Room       Room
}

// nic is the one NIC: two taps and the link's state.
type nic struct {
	guest, host int
	down        atomic.Bool
}

// frameRoom fits a GSO frame of 64 KiB with its headers.
const frameRoom = 70000

// Main runs a guest until the process is killed. It must be started in a mount
// and a UTS namespace of its own. It writes "ready" to file descriptor 3 when
// the monitor answers. Args is one JSON [Config].
func Main(args []string) error {
	var c Config
	if len(args) != 1 {
		return errors.New("usage: tapguest CONFIG")
	}
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return fmt.Errorf("tapguest: config: %w", err)
	}
	if err := c.Room.enter(c.GuestNetNS); err != nil {
		return fmt.Errorf("tapguest: %w", err)
	}
	n, err := plug(&c)
	if err != nil {
		return fmt.Errorf("tapguest: %w", err)
	}
	monitor, err := net.Listen("unix", c.Monitor)
	if err != nil {
		return fmt.Errorf("tapguest: monitor: %w", err)
	}
	failed := make(chan error, 3)
	go func() { failed <- n.carry(n.guest, n.host) }()
	go func() { failed <- n.carry(n.host, n.guest) }()
	go func() { failed <- serveMonitor(monitor, c.Device, n) }()
	ready := os.NewFile(3, "ready")
	fmt.Fprintln(ready, "ready")
	ready.Close()
	return <-failed
}

func plug(c *Config) (*nic, error) {
	guest, err := tap.Open(c.GuestNetNS, c.GuestDev, tap.Options{VNetHdr: true, MAC: c.MAC, MTU: c.MTU, Queue: c.Queue, Up: true})
	if err != nil {
		return nil, fmt.Errorf("guest's side: %w", err)
	}
	host, err := tap.Open(c.HostNetNS, c.HostTap, tap.Options{VNetHdr: true, MTU: c.MTU, Queue: c.Queue, Up: true})
	if err != nil {
		return nil, fmt.Errorf("host's side: %w", err)
	}
	return &nic{guest: guest, host: host}, nil
}

// carry copies frames one way on a thread of its own. While the link is down
// frames are lost both ways, as in QEMU.
func (n *nic) carry(from, to int) error {
	runtime.LockOSThread()
	buf := make([]byte, frameRoom)
	for {
		got, err := unix.Read(from, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("tapguest: read: %w", err)
		}
		if !n.down.Load() {
			unix.Write(to, buf[:got]) // a device that is down, or a full one, loses frames
		}
	}
}

// SetLink implements the monitor's set_link. Only the guest sees it.
func (n *nic) SetLink(up bool) error {
	n.down.Store(!up)
	return tap.SetCarrier(n.guest, up)
}
