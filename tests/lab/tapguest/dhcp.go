package tapguest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

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
				askAnew(client.Process)
			}
			up = now
		}
	}
}

// askAnew lets udhcpc forget its lease, which USR2 does, and then ask from the start. The
// second signal waits for the first to be handled: of two that come close together the
// later one may be handled first, and a client that asks and then forgets asks no more.
func askAnew(client *os.Process) {
	client.Signal(unix.SIGUSR2)
	handled(client.Pid, unix.SIGUSR2)
	client.Signal(unix.SIGUSR1)
}

// handled waits until a process has taken a signal and, later, sleeps again or is gone.
func handled(pid int, s unix.Signal) {
	for taken := false; ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		state := field(status, "State:")
		switch {
		case err != nil || strings.HasPrefix(state, "Z") || taken && strings.HasPrefix(state, "S"):
			return
		case !taken:
			mask, err := strconv.ParseUint(field(status, "ShdPnd:"), 16, 64)
			taken = err == nil && mask>>(s-1)&1 == 0
		}
	}
}

// field is what follows a name in a file of /proc.
func field(status []byte, name string) string {
	_, rest, _ := strings.Cut(string(status), "\n"+name)
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
