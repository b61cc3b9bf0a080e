package guest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// udhcpc starts busybox's client on the NIC, until the test ends.
func (w *world) udhcpc() {
	w.t.Helper()
	script := filepath.Join(w.root, "script")
	t := w.t
	check(t, os.WriteFile(script, []byte(`#!/bin/sh
case $1 in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound | renew)
	ip addr flush dev $interface
	ip addr add $ip/24 dev $interface
	ip route replace default via $router ;;
esac
`), 0o755))
	client := exec.Command("busybox", "udhcpc", "-f", "-i", w.nic, "-s", script, "-t", "9", "-T", "1", "-A", "1")
	client.Stderr = t.Output()
	check(t, setUpByName(w.nic))
	if err := client.Start(); err != nil {
		t.Fatalf("udhcpc: %v (needs busybox)", err)
	}
	t.Cleanup(func() {
		client.Process.Kill()
		client.Wait()
		for _, begun := range (machine{}).findClients(linkState{name: w.nic}) { // by an agent for which it was too slow
			for _, pid := range begun.pids {
				check(t, end(context.Background(), pid))
			}
		}
	})
}

// One that asked before it forgot would ask no more: the second signal comes when the
// first was handled, however long a busy machine takes for that.
func TestForgetBeforeAsking(t *testing.T) {
	w := newWorld(t)
	w.udhcpc()
	next(t, w.dhcp, "DISCOVER of udhcpc")
	c := newMachine("/").findClients(linkState{name: w.nic})[0]
	says := func(line string) func() string {
		return func() string {
			status, err := os.ReadFile("/proc/" + strconv.Itoa(c.pids[0]) + "/status")
			check(t, err)
			return strings.TrimLeft(statusLine(status, line), "0")
		}
	}
	check(t, unix.Kill(c.pids[0], unix.SIGSTOP))
	w.becomes("state of udhcpc", "T (stopped)", says("State:"))
	done := make(chan error, 1)
	go func() { done <- forget(t.Context(), nil, linkState{}, c) }()
	const usr2 = "800" // signal 12
	pending := says("ShdPnd:")
	for pending() == "" {
		runtime.Gosched()
	}
	for range 5 {
		if got := pending(); got != usr2 {
			t.Errorf("pending signals %s before the first was handled", got)
		}
		time.Sleep(time.Millisecond) // in which the second one must not come
	}
	check(t, unix.Kill(c.pids[0], unix.SIGCONT))
	check(t, <-done)
}

// S70, X2: where a DHCP client runs the agent only tells it to renew, also at a
// link event that the client itself would sleep through.
func TestUdhcpcIsTold(t *testing.T) {
	w := newWorld(t)
	w.udhcpc()
	for next(t, w.dhcp, "REQUEST of udhcpc").MessageType() != dhcpv4.MessageTypeRequest {
	}
	w.publish(bought)
	w.start(func(c *Config) { c.DHCP = DHCPAuto })
	w.said("dhcp is left to udhcpc\n")
	next(t, w.reports, "report")
	if dad, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + w.nic + "/accept_dad"); string(dad) != "0\n" {
		t.Errorf("the kernel looks for others with an IPv6 address: %q, %v", dad, err)
	}
	drain(w.dhcp)
	w.give("10.37.91.66/24")
	w.flap(20 * time.Millisecond)
	w.said("udhcpc is told to renew: SIGUSR2 and SIGUSR1")
	sent := drain(w.dhcp)
	for len(sent) == 0 || sent[len(sent)-1].MessageType() != dhcpv4.MessageTypeRequest {
		sent = append(sent, next(t, w.dhcp, "REQUEST of udhcpc"))
	}
	d := bought
	d.Epoch = d.Epoch.Next()
	w.publish(d) // not before: the old address would do to fetch it
	r := next(t, w.reports, "report from the new address")
	for r.Epoch < d.Epoch { // the link went away before the answer to it
		r = next(t, w.reports, "report from the new address")
	}
	if got := w.addrs(); got != "10.37.91.66/24" || strings.Join(r.Addrs, " ") != got {
		t.Errorf("address %s, report %+v", got, r)
	}
	for _, m := range sent {
		if m.MessageType() == dhcpv4.MessageTypeDiscover && m.Options.Has(dhcpv4.OptionMaximumDHCPMessageSize) && len(m.ClassIdentifier()) == 0 {
			t.Errorf("the agent sent a DISCOVER of its own:\n%s", m.Summary())
		}
	}
}

// A client that is at work when the agent starts is not thrown back, however long the
// network lets it wait: the metadata service is silent because there is no address.
func TestClientAtWorkIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.mu.Lock()
	w.mute = true
	w.mu.Unlock()
	w.udhcpc()
	next(t, w.dhcp, "DISCOVER of udhcpc")
	w.publish(bought)
	w.start(func(c *Config) { c.DHCP = DHCPAuto })
	w.said("dhcp is left to udhcpc\n")
	for range 3 { // one a second
		next(t, w.dhcp, "DISCOVER of udhcpc")
	}
	w.mu.Lock()
	w.mute = false
	w.mu.Unlock()
	next(t, w.reports, "report")
	for {
		select {
		case l := <-w.lines:
			if strings.Contains(l, "told to renew") {
				t.Errorf("the agent said %q", l)
			}
			continue
		default:
		}
		break
	}
}

// A metadata service that takes connections and is too slow to answer is no reason to
// throw a client back: its address is good.
func TestSlowHostIsNoReason(t *testing.T) {
	w := newWorld(t)
	w.udhcpc()
	w.publish(bought)
	w.start(func(c *Config) { c.DHCP = DHCPAuto })
	next(t, w.reports, "report")
	w.silent.Store(true)
	for silences := 0; silences < 2; {
		l := next(t, w.lines, "silence of the service")
		if strings.Contains(l, "does not answer") {
			silences++
		}
		if strings.Contains(l, "told to renew") {
			t.Fatalf("the agent said %q", l)
		}
	}
}

// ISC's client takes no notice of its link: it is ended without a word to the network
// that is gone, its address goes, and it is begun anew by its own command line.
func TestDhclientIsBegunAnew(t *testing.T) {
	w := newWorld(t)
	script := filepath.Join(w.root, "script")
	check(t, os.WriteFile(script, []byte(`#!/bin/sh
case $reason in
PREINIT) ip link set $interface up ;;
BOUND|REBOOT) ip addr add $new_ip_address/24 dev $interface; ip route replace default via $new_routers ;;
esac
`), 0o755))
	pid := filepath.Join(w.root, "pid")
	start := exec.Command("dhclient", "-4", "-cf", os.DevNull, "-sf", script, "-lf", filepath.Join(w.root, "leases"), "-pf", pid, w.nic)
	if out, err := start.CombinedOutput(); err != nil {
		t.Fatalf("dhclient: %v (needs isc-dhcp-client): %s", err, out)
	}
	t.Cleanup(func() {
		for _, c := range newMachine("/").findClients(linkState{name: w.nic}) {
			for _, pid := range c.pids {
				_ = end(context.Background(), pid)
			}
		}
	})
	w.becomes("first address", "10.37.91.17/24", w.addrs)
	w.publish(bought)
	stop := w.start(func(c *Config) { c.DHCP = DHCPAuto })
	next(t, w.reports, "report")
	before, _ := os.ReadFile(pid)
	drain(w.dhcp)
	w.give("10.37.91.66/24")
	w.flap(20 * time.Millisecond)
	w.said("dhclient is told to renew: dhclient, begun anew")
	w.becomes("address after the flap", "10.37.91.66/24", w.addrs)
	for _, m := range drain(w.dhcp) {
		if m.MessageType() == dhcpv4.MessageTypeRelease {
			t.Errorf("the address was released in the new network:\n%s", m.Summary())
		}
	}
	w.becomes("another process", "true", func() string { // it says so once it is a daemon
		after, _ := os.ReadFile(pid)
		return strconv.FormatBool(string(after) != string(before) && len(after) > 0)
	})
	stop()
	w.give("10.37.91.67/24")
	n, err := newNIC()
	check(t, err)
	defer n.close()
	i, err := net.InterfaceByName(w.nic)
	check(t, err)
	over, cancel := context.WithCancel(t.Context())
	cancel() // the link goes, or the agent ends, once the client is being ended
	for _, c := range newMachine("/").findClients(linkState{name: w.nic}) {
		check(t, beginAnew(over, &linux{nic: n}, linkState{index: i.Index, name: w.nic}, c))
	}
	w.becomes("address of the one begun anew", "10.37.91.67/24", w.addrs)
}
