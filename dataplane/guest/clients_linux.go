package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// An otherClient is a DHCP client of the guest that the agent leaves the NIC to.
type otherClient struct {
	name string
	pids []int    // one, unless it is about to become a daemon or has helpers
	args []string // its command line

	parent int // process
}

// The clients that the agent knows, by the names of their programs.
const (
	dhclient       = "dhclient"
	udhcpc         = "udhcpc"
	udhcpc6        = "udhcpc6"
	dhcpcd         = "dhcpcd"
	networkd       = "systemd-networkd"
	networkManager = "NetworkManager"
)

// findClients looks for the DHCP clients that manage the NIC, in the agent's network
// namespace. One that a network manager has started is the manager's.
func (m machine) findClients(st linkState) []otherClient {
	self, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil
	}
	var found []otherClient
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		c := parseClient(cmdline)
		if c.name == "" {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != self {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir)) // digits, by the pattern
		if m.manages(c, st) {
			c.parent = parentOf(dir)
			found = merge(found, c, pid)
		}
	}
	return slices.DeleteFunc(found, func(c otherClient) bool {
		return slices.ContainsFunc(found, func(of otherClient) bool { return of.name == networkManager && slices.Contains(of.pids, c.parent) })
	})
}

// merge adds a process to the clients: to one that is there already, if it is the
// same. All of dhcpcd's processes are one client.
func merge(found []otherClient, c otherClient, pid int) []otherClient {
	for i, f := range found {
		if f.name == c.name && (c.name == dhcpcd || slices.Equal(f.args, c.args)) {
			found[i].pids = append(f.pids, pid)
			return found
		}
	}
	c.pids = []int{pid}
	return append(found, c)
}

// parseClient returns the DHCP client that a command line starts; its name is "" if
// it starts none. dhcpcd's processes call themselves "dhcpcd: eth0 [ip4]".
func parseClient(cmdline []byte) otherClient {
	args := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
	all := args
	if filepath.Base(args[0]) == "busybox" && len(args) > 1 {
		args = args[1:]
	}
	name, _, _ := strings.Cut(filepath.Base(args[0]), ":")
	switch name {
	case dhclient, udhcpc, udhcpc6, dhcpcd, networkd, networkManager:
		return otherClient{name: name, args: all}
	}
	return otherClient{}
}

// manages reports whether the client is for this NIC. The big managers say so in a
// file of the NIC's number, and are left to it until they do: the agent may start with
// them. The small ones were told on their command line, or are for all.
func (m machine) manages(c otherClient, st linkState) bool {
	index := strconv.Itoa(st.index)
	switch c.name {
	case networkd:
		b, err := os.ReadFile(m.path("run/systemd/netif/links/" + index))
		return err != nil || !bytes.Contains(b, []byte("ADMIN_STATE=unmanaged"))
	case networkManager:
		b, err := os.ReadFile(m.path("run/NetworkManager/devices/" + index))
		return err != nil || !bytes.Contains(b, []byte("managed=false"))
	case udhcpc, udhcpc6:
		at := slices.Index(c.args, "-i")
		return at < 0 && st.name == "eth0" || at >= 0 && at+1 < len(c.args) && c.args[at+1] == st.name
	case dhcpcd:
		return true
	}
	return !namesOther(c.args[1:], st.name)
}

// namesOther reports whether dhclient was told of other NICs only.
func namesOther(args []string, nic string) bool {
	other := false
	for i, a := range args {
		switch {
		case a == nic:
			return false
		case strings.HasPrefix(a, "-"), i > 0 && takesValue(args[i-1]):
		default:
			other = true
		}
	}
	return other
}

// takesValue reports whether dhclient's option is followed by a value.
func takesValue(option string) bool {
	switch option {
	case "-p", "-D", "-s", "-g", "-B", "-C", "-H", "-F", "-V", "-cf", "-df", "-lf", "-pf", "-sf", "-e", "--dad-wait-time", "--decline-wait-time":
		return true
	}
	return false
}

// parentOf returns the number of a process's parent; 0: not known.
func parentOf(dir string) int {
	status, _ := os.ReadFile(dir + "/status")
	parent, _ := strconv.Atoi(statusLine(status, "PPid:"))
	return parent
}

// statusLine is what /proc/PID/status says of something (proc_pid_status(5)); "" if nothing.
func statusLine(status []byte, of string) string {
	for l := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(l, of); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// names lists them for the log.
func names(clients []otherClient) string {
	var all []string
	for _, c := range clients {
		if !slices.Contains(all, c.name) {
			all = append(all, c.name)
		}
	}
	return strings.Join(all, " and ")
}
