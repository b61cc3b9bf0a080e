package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// S70, X2: where a DHCP client runs the agent only tells it to renew, also at a
// link event that the client itself would sleep through.
func TestUdhcpcIsTold(t *testing.T) {
	w := newWorld(t)
	script := filepath.Join(w.root, "script")
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
	defer client.Wait()
	defer client.Process.Kill()
	for next(t, w.dhcp, "REQUEST of udhcpc").MessageType() != dhcpv4.MessageTypeRequest {
	}
	w.publish(bought)
	w.start(func(c *Config) { c.DHCP = DHCPAuto })
	w.said("dhcp is left to udhcpc\n")
	next(t, w.reports, "report")
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
