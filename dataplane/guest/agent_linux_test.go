package guest

import (
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"replug/directory/vnet"
)

var (
	pooled = vnet.Document{Epoch: vnet.NewEpoch(3, 6), Tag: vnet.TagPartial, Instance: "vm-93", Hostname: "pool-93", User: "placeholder"}
	bought = vnet.Document{Epoch: vnet.NewEpoch(3, 7), Instance: "vm-93", Hostname: "web-1", User: "anna",
		SSHKeys: []string{"ssh-ed25519 AAAAanna anna@desk"}, Files: []vnet.File{{Path: "/etc/app/conf.d/port", Mode: 0o640, Content: "8443\n"}}}
)

// A pooled VM becomes a customer's: S37 to S42, S76 to S78, invariant 11.
func TestPartialThenFinal(t *testing.T) {
	w := newWorld(t)
	w.publish(pooled)
	w.start()
	r := next(t, w.reports, "partial report")
	if r.Kind != vnet.ReportPartial || !r.OK || r.Epoch != pooled.Epoch || r.Hostname != "pool-93" {
		t.Errorf("partial report: %+v", r)
	}
	if len(r.BootID) != 36 || strings.Join(r.Addrs, " ") != "10.37.91.17/24" {
		t.Errorf("the guest's view: boot id %q, addresses %v", r.BootID, r.Addrs)
	}
	if !strings.Contains(w.read("etc/passwd"), "placeholder:") {
		t.Error("no placeholder user")
	}
	w.publish(bought)
	r = next(t, w.reports, "final report")
	if r.Kind != vnet.ReportFinal || !r.OK || r.Epoch != bought.Epoch || r.Hostname != "web-1" {
		t.Errorf("final report: %+v", r)
	}
	if p := "\n" + w.read("etc/passwd") + w.read("etc/group") + w.read("etc/shadow"); strings.Contains(p, "placeholder") || strings.Count(p, "\nanna:") != 3 {
		t.Errorf("users after the claim:\n%s", p)
	}
	if _, err := os.Stat(filepath.Join(w.root, "home/placeholder")); err == nil {
		t.Error("the placeholder's home is still there")
	}
	if s, k := w.read("etc/app/conf.d/port"), w.read("home/anna/.ssh/authorized_keys"); s != "8443\n" || k != bought.SSHKeys[0]+"\n" {
		t.Errorf("file %q, keys %q", s, k)
	}
	if s := w.read("etc/resolv.conf"); s != "# by replug-guest\nsearch red.example\nnameserver 10.37.91.53\n" {
		t.Errorf("resolv.conf %q", s)
	}
}

// A swap as the guest sees it: the second one comes within the second in which the
// kernel holds link messages back. S66 to S72, S82.
func TestLinkFlapMovesToNewNetwork(t *testing.T) {
	w := newWorld(t)
	w.publish(bought)
	w.start()
	next(t, w.reports, "first report")
	d := bought
	for _, addr := range []string{"10.37.91.29/24", "10.37.90.31/23", "10.37.91.29/24"} {
		w.give(addr, route{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(gateway)})
		d.Epoch = d.Epoch.Next()
		drain(w.begun)
		drain(w.lines)
		w.flap(20 * time.Millisecond)
		up := time.Now()
		w.publish(d)
		first := next(t, w.begun, "DISCOVER")
		t.Logf("%s: DISCOVER %s after the carrier", addr, time.Since(up))
		if first.MessageType() != dhcpv4.MessageTypeDiscover || v4(first.RequestedIPAddress()).IsValid() && !first.RequestedIPAddress().IsUnspecified() {
			t.Errorf("%s: first message is %s for %s", addr, first.MessageType(), first.RequestedIPAddress())
		}
		w.saidFirst("link ", "renewing the lease") // which is what a guest does that has seen no flap
		r := next(t, w.reports, "report")
		for r.Epoch < d.Epoch { // the link went away before the answer to it
			r = next(t, w.reports, "report")
		}
		if !r.OK || r.Epoch != d.Epoch || strings.Join(r.Addrs, " ") != addr || w.addrs() != addr {
			t.Errorf("%s: report %+v, kernel has %s", addr, r, w.addrs())
		}
		for _, m := range drain(w.begun) {
			if !w.gaveUp(first) {
				t.Errorf("%s: another exchange began, with %s", addr, m.MessageType())
			}
			first = m
		}
	}
}

// S42, X1: the poll that was open when the network changed must not cost its wait.
func TestLinkEventEndsThePoll(t *testing.T) {
	w := newWorld(t)
	w.start(func(c *Config) { c.Wait = 50 * time.Second })
	open := next(t, w.polls, "poll")
	w.flap(15 * time.Millisecond)
	select {
	case <-open.Context().Done():
	case <-time.After(wait):
		t.Error("the first poll is still open")
	}
	next(t, w.polls, "second poll")
}

// X1: IMDS that went silent means that the address may be dead.
func TestSilenceRenewsTheLease(t *testing.T) {
	w := newWorld(t)
	w.publish(bought)
	w.start()
	next(t, w.reports, "report")
	drain(w.begun)
	lo, err := w.nl.LinkByName("lo")
	check(t, err)
	a := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("169.254.169.254/32"))}
	check(t, w.nl.AddrDel(lo, a))
	w.give("10.37.91.43/24")
	if m := next(t, w.begun, "DISCOVER"); m.MessageType() != dhcpv4.MessageTypeDiscover {
		t.Errorf("first message is %s", m.MessageType())
	}
	check(t, w.nl.AddrAdd(lo, a))
	d := bought
	d.Epoch = d.Epoch.Next()
	w.publish(d)
	if r := next(t, w.reports, "report from the new address"); strings.Join(r.Addrs, " ") != "10.37.91.43/24" {
		t.Errorf("report %+v", r)
	}
}

// P2: a lease that is refused at T1 is dropped, and a fresh one asked for.
func TestRefusedRenewalStartsAnew(t *testing.T) {
	w := newWorld(t)
	w.mu.Lock()
	w.lease.valid = 3 * time.Second
	w.mu.Unlock()
	w.start()
	w.said("lease 10.37.91.17/24 via " + gateway)
	w.mu.Lock()
	w.nak = true // before any other lease is given: a renewal would get it
	w.mu.Unlock()
	w.give("10.37.91.77/24")
	w.said("lease 10.37.91.17 refused")
	w.mu.Lock()
	w.nak = false
	w.mu.Unlock()
	w.said("lease 10.37.91.77/24")
	if got := w.addrs(); got != "10.37.91.77/24" {
		t.Errorf("addresses %s", got)
	}
	var kinds []string
	for _, m := range drain(w.begun) {
		kinds = append(kinds, m.MessageType().String()+" "+m.ClientIPAddr.String())
	}
	if got := strings.Join(slices.Compact(kinds), ", "); got != "DISCOVER 0.0.0.0, REQUEST 10.37.91.17, DISCOVER 0.0.0.0" {
		t.Errorf("exchanges: %s", got)
	}
}

// RFC 3442: option 121 stands instead of the router; old routes go with the old lease.
func TestRoutes(t *testing.T) {
	w := newWorld(t)
	far := netip.MustParseAddr("10.99.0.9") // outside of the subnet
	w.give("10.37.91.17/24", route{netip.MustParsePrefix("172.19.0.0/16"), netip.MustParseAddr(gateway)}, route{netip.MustParsePrefix("10.99.0.0/20"), netip.IPv4Unspecified()},
		route{netip.MustParsePrefix("192.168.44.0/22"), far})
	w.start()
	w.said("lease")
	if got := w.routes(); got != "10.99.0.0/20 172.19.0.0/16>"+gateway+" 192.168.44.0/22>10.99.0.9" {
		t.Errorf("routes %s", got)
	}
	w.give("10.37.91.17/24")
	w.flap(15 * time.Millisecond)
	w.said("lease")
	if got := w.routes(); got != "0.0.0.0/0>"+gateway {
		t.Errorf("routes after the second lease: %s", got)
	}
	l, err := netlink.LinkByName(w.nic)
	check(t, err)
	if l.Attrs().MTU != 1432 {
		t.Errorf("MTU %d", l.Attrs().MTU)
	}
}

// The maintenance switch leaves the NIC alone, and IMDS is followed all the same.
func TestDHCPOff(t *testing.T) {
	w := newWorld(t)
	w.publish(bought)
	w.start()
	next(t, w.reports, "report")
	off := filepath.Join(w.root, "run/replug-guest/dhcp-off")
	check(t, os.MkdirAll(filepath.Dir(off), 0o755))
	check(t, os.WriteFile(off, nil, 0o644))
	w.give("10.37.91.88/24")
	drain(w.begun)
	w.flap(15 * time.Millisecond)
	w.said("dhcp is off")
	d := bought
	d.Epoch = d.Epoch.Next()
	w.publish(d)
	next(t, w.reports, "report while dhcp is off")
	if n, got := len(drain(w.begun)), w.addrs(); n != 0 || got != "10.37.91.17/24" {
		t.Errorf("%d DHCP exchanges, address %s", n, got)
	}
	check(t, os.Remove(off))
	w.flap(15 * time.Millisecond)
	w.said("lease 10.37.91.88/24")
}

// Invariants 2 and 11: what was applied stays applied over a restart, a copy of it
// is only reported again, and neither an older epoch nor a partial one comes back.
func TestRestartAndOlderEpoch(t *testing.T) {
	w := newWorld(t)
	w.publish(bought)
	w.start(func(c *Config) { c.Once = true })
	next(t, w.reports, "report")
	w.said("reported final")
	check(t, os.Remove(filepath.Join(w.root, "etc/app/conf.d/port")))
	older, partial := bought, pooled
	older.Epoch, older.Hostname = vnet.NewEpoch(3, 5), "web-old"
	partial.Epoch = vnet.NewEpoch(3, 9)
	for _, c := range []struct {
		name string
		doc  vnet.Document
		ok   bool
		says string
	}{
		{"same again", bought, true, ""},
		{"older", older, false, errOlder.Error()},
		{"partial after final", partial, false, errWasDone.Error()},
		{"unknown tag", vnet.Document{Epoch: vnet.NewEpoch(3, 11), Tag: "half", Hostname: "x-7"}, false, errTag.Error()},
	} {
		w.publish(c.doc)
		stop := w.start(func(c *Config) { c.Once = true })
		r := next(t, w.reports, c.name)
		if r.OK != c.ok || !strings.Contains(r.Error, c.says) || r.Epoch != c.doc.Epoch || r.Hostname != "web-1" {
			t.Errorf("%s: %+v", c.name, r)
		}
		stop()
	}
	if w.read("etc/app/conf.d/port") != "" {
		t.Error("a document was applied twice")
	}
}

// An image made of a machine in which the agent had run, also of another cluster: what
// that one remembered is not the new machine's, who it was is told by either name.
func TestImageOfAnotherMachine(t *testing.T) {
	for _, c := range []struct {
		name, uuid, instance string // of the machine that the image was made of
		ok                   bool
	}{
		{"another machine", "0c9f6a35-7d11-4e4b-9f52-6b0c3f2d7e18", "vm-17", true},
		{"another cluster's, of the same name", "0c9f6a35-7d11-4e4b-9f52-6b0c3f2d7e18", "vm-93", true},
		{"another machine, without SMBIOS", "", "vm-17", true},
		{"itself", "5d3ab1c7-2b0e-4d7c-8a63-91f4c0e2b7d6", "vm-93", false},
		{"not known, by an earlier agent", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			check(t, (&state{UUID: c.uuid, Instance: c.instance, Epoch: vnet.NewEpoch(9, 41), Kind: vnet.ReportFinal, Placeholder: "left",
				Ran: map[string]string{"app": "exit status 3"}}).save(files{w.root}))
			check(t, os.MkdirAll(filepath.Join(w.root, "sys/class/dmi/id"), 0o755))
			check(t, os.WriteFile(filepath.Join(w.root, "sys/class/dmi/id/product_uuid"), []byte("5D3AB1C7-2B0E-4D7C-8A63-91F4C0E2B7D6\n"), 0o400))
			d := pooled
			d.RunOnce = []vnet.Command{{ID: "app", Command: "true"}}
			w.publish(d)
			w.start()
			r := next(t, w.reports, "report")
			if r.OK != c.ok || c.ok && r.Error != "" || !c.ok && !strings.Contains(r.Error, errOlder.Error()) {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// A report that the host can't take now is sent again; one it refuses is not.
func TestReportIsRepeated(t *testing.T) {
	w := newWorld(t)
	w.start()
	next(t, w.polls, "poll")
	w.refuse.Store(http.StatusServiceUnavailable)
	w.publish(bought)
	w.said("config epoch 3.7 final")
	w.refuse.Store(0)
	if r := next(t, w.reports, "repeated report"); r.Epoch != bought.Epoch {
		t.Errorf("report %+v", r)
	}
	w.said("reported final")
	d := bought
	d.Epoch = d.Epoch.Next()
	w.publish(d)
	w.said("config epoch 3.8")
	next(t, w.reports, "second report")
}

func (w *world) routes() string {
	l, err := netlink.LinkByName(w.nic)
	check(w.t, err)
	list, err := netlink.RouteList(l, netlink.FAMILY_V4)
	check(w.t, err)
	var out []string
	for _, r := range list {
		if r.Protocol != 16 {
			continue
		}
		s := destination(r).String()
		if r.Gw != nil {
			s += ">" + r.Gw.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}
