package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// A port is the host's end of a second channel that the test plays.
type port struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
	to   string
}

// channel starts an agent with a second channel, and answers its hello.
func (w *world) channel(change ...func(*Config)) *port {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "port")
	l, err := net.Listen("unix", path)
	check(w.t, err)
	w.t.Cleanup(func() { l.Close() })
	w.start(append(change, func(c *Config) { c.Channel = path })...)
	conn, err := l.Accept()
	check(w.t, err)
	w.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(4 * wait))
	p := &port{t: w.t, conn: conn, in: bufio.NewScanner(conn)}
	p.to = p.hear().Hello
	if p.to == "" {
		w.t.Fatal("the first thing said is no hello")
	}
	return p
}

func (p *port) hear() (m vnet.FromGuest) {
	p.t.Helper()
	if !p.in.Scan() {
		p.t.Fatalf("second channel ended: %v", p.in.Err())
	}
	check(p.t, json.Unmarshal(p.in.Bytes(), &m))
	return m
}

func (p *port) say(m vnet.ToGuest) {
	p.t.Helper()
	b, err := json.Marshal(m)
	check(p.t, err)
	_, err = p.conn.Write(append(b, '\n'))
	check(p.t, err)
}

// Issue 4, point 6: the document comes and its report goes while the NIC has no link
// at all. What was queued for an earlier agent, or is older, has no effect.
func TestDocumentComesWhileTheNICIsDown(t *testing.T) {
	w := newWorld(t)
	check(t, w.nl.LinkSetDown(w.host))
	p := w.channel()
	stale := bought
	stale.Epoch, stale.Hostname = vnet.NewEpoch(3, 99), "somebody-elses"
	p.say(vnet.ToGuest{To: "AAAABBBBCCCC", Config: &stale})
	p.conn.Write([]byte("\"half a line of an earlier time\n"))
	p.say(vnet.ToGuest{To: p.to, Config: &bought})
	r := p.hear().Report
	if r == nil || !r.OK || r.Epoch != bought.Epoch || r.Kind != vnet.ReportFinal || r.Hostname != "web-1" || len(r.Addrs) != 0 {
		t.Fatalf("report %+v", r)
	}
	p.say(vnet.ToGuest{To: p.to, Answer: &vnet.ReportAnswer{Epoch: r.Epoch}})
	w.said("reported epoch 3.7 by the second channel")
	older := bought
	older.Epoch, older.Hostname = vnet.NewEpoch(3, 5), "web-old"
	p.say(vnet.ToGuest{To: p.to, Config: &older})
	newer := bought
	newer.Epoch, newer.Hostname = vnet.NewEpoch(3, 9), "web-9"
	p.say(vnet.ToGuest{To: p.to, Config: &newer})
	if r := p.hear().Report; r == nil || r.Epoch != newer.Epoch || r.Hostname != "web-9" {
		t.Errorf("report %+v", r)
	}
}

// The first rung of the ladder: the host says that the network has changed, and the
// agent asks for a new address without any cut of its link.
func TestMovedRenewsWithoutACut(t *testing.T) {
	w := newWorld(t)
	w.publish(bought)
	p := w.channel()
	next(t, w.reports, "report")
	w.said("reported final")
	drain(w.begun)
	w.give("10.37.91.66/24")
	moved := vnet.Moved{Epoch: vnet.NewEpoch(3, 8), Addrs: []netip.Prefix{netip.MustParsePrefix("10.37.91.66/24")}}
	late := vnet.Moved{Epoch: vnet.NewEpoch(3, 6)}
	p.say(vnet.ToGuest{To: p.to, Moved: &late})
	w.said("news of epoch 3.6 is late")
	if n := len(drain(w.begun)); n != 0 {
		t.Errorf("%d DHCP exchanges for late news", n)
	}
	p.say(vnet.ToGuest{To: p.to, Moved: &moved})
	if m := next(t, w.begun, "DISCOVER"); m.MessageType() != dhcpv4.MessageTypeDiscover {
		t.Errorf("first message is %s", m.MessageType())
	}
	w.said("lease 10.37.91.66/24")
	if got := w.addrs(); got != "10.37.91.66/24" {
		t.Errorf("addresses %s", got)
	}
}

// A port that nobody reads at the other end, as one has while no host's agent is there, or
// in another orchestrator's machine, takes nothing of what goes by the NIC.
func TestChannelWithNobodyBehindIt(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "port")
	check(t, unix.Mkfifo(path, 0o600))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK, 0)
	check(t, err)
	defer unix.Close(fd)
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 4096)) // until it is full
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	w.start(func(c *Config) { c.Channel = path })
	d := bought
	for range 2 {
		w.publish(d)
		if r := next(t, w.reports, "report by IMDS"); !r.OK || r.Epoch != d.Epoch {
			t.Errorf("report %+v", r)
		}
		d.Epoch = d.Epoch.Next()
	}
	drain(w.dhcp)
	w.give("10.37.91.66/24")
	w.flap(15 * time.Millisecond)
	w.becomes("address after a flap", "10.37.91.66/24", w.addrs)
}

// A host that takes no report by the channel, or says "again", gets it from IMDS; one
// that comes anew says so, and is greeted.
func TestReportFallsBackToIMDS(t *testing.T) {
	w := newWorld(t)
	p := w.channel()
	p.say(vnet.ToGuest{Ping: true})
	again := p.hear().Hello
	if again == "" || again == p.to {
		t.Errorf("second hello %q after %q", again, p.to)
	}
	p.say(vnet.ToGuest{To: p.to, Config: &pooled}) // to the first hello: not heard
	p.say(vnet.ToGuest{To: again, Config: &bought})
	if r := p.hear().Report; r == nil || r.Epoch != bought.Epoch {
		t.Fatalf("report %+v", r)
	}
	p.say(vnet.ToGuest{To: again, Answer: &vnet.ReportAnswer{Epoch: bought.Epoch, Error: "busy", Again: true}})
	if r := next(t, w.reports, "report by IMDS"); r.Epoch != bought.Epoch || !r.OK {
		t.Errorf("report %+v", r)
	}
}

// The late answer to a first report is not taken for one to what went wrong in the
// commands since: that is of the same epoch.
func TestLateAnswerIsToTheFirstReport(t *testing.T) {
	w := newWorld(t)
	p := w.channel()
	d := bought
	d.RunOnce = []vnet.Command{{ID: "app", Command: "exit 3"}}
	p.say(vnet.ToGuest{To: p.to, Config: &d})
	if r := p.hear().Report; r == nil || r.Error != "" {
		t.Fatalf("first report %+v", r)
	}
	if r := next(t, w.reports, "first report by IMDS"); r.Error != "" {
		t.Errorf("first report by IMDS %+v", r)
	}
	if r := p.hear().Report; r == nil || r.Error == "" {
		t.Fatalf("second report %+v", r)
	}
	p.say(vnet.ToGuest{To: p.to, Answer: &vnet.ReportAnswer{Epoch: d.Epoch}})
	if r := next(t, w.reports, "second report by IMDS"); !r.OK || r.Error != "command app: exit status 3" {
		t.Errorf("second report by IMDS %+v", r)
	}
}

// What a client leaves of the old network goes, and goes again if the client gives it
// back: the host has named what is to be.
func TestOldAddressIsRemoved(t *testing.T) {
	w := newWorld(t)
	script := filepath.Join(w.root, "script")
	check(t, os.WriteFile(script, []byte("#!/bin/sh\ncase $1 in bound|renew) ip addr add $ip/24 dev $interface ;; esac\n"), 0o755))
	check(t, setUpByName(w.nic))
	client := exec.Command("busybox", "udhcpc", "-f", "-i", w.nic, "-s", script, "-t", "9", "-T", "1", "-A", "1")
	client.Stderr = t.Output()
	if err := client.Start(); err != nil {
		t.Fatalf("udhcpc: %v (needs busybox)", err)
	}
	defer client.Wait()
	defer client.Process.Kill()
	w.becomes("first address", "10.37.91.17/24", w.addrs)
	p := w.channel(func(c *Config) { c.DHCP = DHCPAuto })
	w.said("dhcp is left to udhcpc")
	w.give("10.37.91.66/24")
	p.say(vnet.ToGuest{To: p.to, Moved: &vnet.Moved{Epoch: vnet.NewEpoch(3, 8), Addrs: []netip.Prefix{netip.MustParsePrefix("10.37.91.66/24")}}})
	w.said("udhcpc is told to renew")
	w.said("addresses 10.37.91.66/24; removed what was left: 10.37.91.17/24")
	if got := w.addrs(); got != "10.37.91.66/24" {
		t.Errorf("addresses %s", got)
	}
	if out, err := exec.Command("ip", "addr", "add", "10.37.91.17/24", "dev", w.nic).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.said("removed what came back: 10.37.91.17/24")
	w.becomes("addresses, after the client gave the old one back", "10.37.91.66/24", w.addrs)
}
