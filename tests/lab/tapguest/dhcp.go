package tapguest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DHCP runs busybox's udhcpc on a device, and makes it ask again when the link
// comes back, as the network managers of real guests do. It is run inside a
// room. Args: DEVICE.
func DHCP(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: dhcp DEVICE")
	}
	client := exec.Command("/bin/udhcpc", "-f", "-i", args[0], "-s", "/etc/udhcpc.script",
		"-t", "20", "-T", "1", "-A", "1")
	client.Stdout, client.Stderr = os.Stdout, os.Stderr
	events := make(chan netlink.LinkUpdate, 64)
	stop := make(chan struct{})
	defer close(stop)
	if err := netlink.LinkSubscribe(events, stop); err != nil {
		return fmt.Errorf("dhcp: subscribe to links: %w", err)
	}
	if err := client.Start(); err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Wait() }()
	up := true
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("dhcp: the client ended: %w", err)
		case e := <-events:
			if e.Attrs().Name != args[0] {
				continue
			}
			now := e.IfInfomsg.Flags&unix.IFF_LOWER_UP != 0
			if now && !up {
				// Release, which forgets the lease, then ask from the start.
				client.Process.Signal(unix.SIGUSR2)
				client.Process.Signal(unix.SIGUSR1)
			}
			up = now
		}
	}
}
