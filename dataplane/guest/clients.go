package guest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// An otherClient is a DHCP client of the guest that the agent leaves the NIC to.
type otherClient struct {
	name string
	pid  int
}

// findClient looks for a running DHCP client in the agent's network namespace.
func findClient() (otherClient, bool) {
	self, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return otherClient{}, false
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		name := clientName(cmdline)
		if name == "" {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != self {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir)) // digits, by the pattern
		return otherClient{name, pid}, true
	}
	return otherClient{}, false
}

// clientName returns the DHCP client that a command line starts, or "".
func clientName(cmdline []byte) string {
	args := bytes.Split(cmdline, []byte{0})
	if filepath.Base(string(args[0])) == "busybox" && len(args) > 1 {
		args = args[1:]
	}
	switch name := filepath.Base(string(args[0])); name {
	case "dhclient", "udhcpc", "dhcpcd", "systemd-networkd", "NetworkManager":
		return name
	}
	return ""
}

// kick makes the client ask for a fresh lease where a signal does that, and says
// so. The others follow the carrier by themselves.
func (c otherClient) kick() string {
	if c.name != "udhcpc" {
		return ""
	}
	// USR2 forgets the lease, USR1 asks for one.
	for _, s := range []unix.Signal{unix.SIGUSR2, unix.SIGUSR1} {
		if err := unix.Kill(c.pid, s); err != nil {
			return fmt.Sprintf(", which can't be told to renew: %v", err)
		}
	}
	return ", told to renew"
}
