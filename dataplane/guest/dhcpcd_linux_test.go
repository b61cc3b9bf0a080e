package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// dhcpcd is told at a flap, which it would follow by itself, but late. Its options on
// that command line are the whole of it: what else it is told it would take over too.
// (The real one is in tests/guests; here it would find the files of the machine.)
func TestDhcpcdAsksAtOnce(t *testing.T) {
	for _, version := range []string{"9.4.1", "10.1.0"} {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			told := w.dhcpcd(version)
			check(t, setUpByName(w.nic))
			check(t, exec.Command("ip", "addr", "add", "10.37.91.17/24", "dev", w.nic).Run())
			check(t, exec.Command("ip", "route", "add", "default", "via", gateway, "dev", w.nic, "onlink").Run())
			w.publish(bought)
			w.start(func(c *Config) { c.DHCP = DHCPAuto })
			w.said("dhcp is left to dhcpcd\n")
			next(t, w.reports, "report")
			signs := w.signs()
			w.flap(20 * time.Millisecond)
			next(t, signs, "sign that the guest is on its way")
			w.said("dhcpcd is told to renew: dhcpcd -n --noarp --nodelay")
			w.becomes("address after the flap", "10.37.91.66/24", w.addrs)
			want := map[string]string{
				"9.4.1":  "dhcpcd\x00-n\x00--noarp\x00--nodelay\x00guest0\n\x00--version\x00",
				"10.1.0": "-n --noarp --nodelay guest0\n",
			}[version]
			w.becomes("command", want, func() string { b, _ := os.ReadFile(told); return string(b) })
		})
	}
}

// dhcpcd is a client that does what it is told, by its tool or by its socket, and writes
// down what that was.
func (w *world) dhcpcd(version string) (told string) {
	t, dir := w.t, w.t.TempDir()
	told = filepath.Join(dir, "told")
	act := "ip addr flush dev " + w.nic + "\nip addr add 10.37.91.66/24 dev " + w.nic + "\nip route replace default via " + gateway + " dev " + w.nic + " onlink\n"
	check(t, os.WriteFile(filepath.Join(dir, "dhcpcd"), []byte("#!/bin/sh\n[ \"$1\" != --version ] || { echo dhcpcd "+version+"; exit; }\n"+
		act+"echo \"$*\" >>"+told+"\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	check(t, os.MkdirAll(filepath.Join(w.root, "run/dhcpcd"), 0o755))
	l, err := net.Listen("unix", filepath.Join(w.root, "run/dhcpcd/sock"))
	check(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			c.Close()
			if err := errors.Join(exec.Command("sh", "-ec", act).Run(), os.WriteFile(told, b, 0o644)); err != nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
	daemon := exec.Command("sleep", "infinity")
	daemon.Args[0] = "dhcpcd: " + w.nic + " [ip4]"
	check(t, daemon.Start())
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	return told
}

// signs are the router solicitations from no address that the host hears.
func (w *world) signs() <-chan []byte {
	all := make(chan []byte, 999)
	w.inHost(func() {
		c, err := packet.Listen(&net.Interface{Index: w.host.Attrs().Index}, packet.Datagram, unix.ETH_P_IPV6, nil)
		if err != nil {
			w.t.Error(err)
			return
		}
		ended := make(chan struct{})
		var closed atomic.Bool
		w.t.Cleanup(func() { closed.Store(true); c.Close(); <-ended })
		go func() {
			defer close(ended)
			b := make([]byte, 1500)
			for {
				n, _, err := c.ReadFrom(b)
				if err != nil && closed.Load() { // else it is the flap's
					return
				}
				if err == nil && n == 48 && b[40] == 133 && bytes.Equal(b[8:24], make([]byte, 16)) {
					all <- bytes.Clone(b[:n])
				}
			}
		}()
	})
	return all
}

// The host drops what has a wrong checksum: over both addresses, the length and the
// protocol (RFC 8200, section 8.1).
func TestSolicitation(t *testing.T) {
	b := solicitation[:]
	sum := uint32(len(b)-40) + unix.IPPROTO_ICMPV6
	for i := 8; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if sum = sum>>16 + sum&0xffff; sum != 0xffff {
		t.Errorf("checksum is wrong: %#x", sum)
	}
	m, err := icmp.ParseMessage(unix.IPPROTO_ICMPV6, b[40:])
	if to, _ := netip.AddrFromSlice(b[24:40]); err != nil || m.Type != ipv6.ICMPTypeRouterSolicitation || to != netip.MustParseAddr("ff02::2") || b[7] != 255 {
		t.Errorf("%+v to %s (%v)", m, to, err)
	}
}

// Which dhcpcd takes one command of its tool only.
func TestLosesCommands(t *testing.T) {
	for version, want := range map[string]bool{"8.1.2": false, "9.4.1": true, "10.0.6": true, "10.1.0": false, "10.10.0": false, "": false} {
		if got := losesCommands(version); got != want {
			t.Errorf("%q: %t", version, got)
		}
	}
}

// A dhcpcd of one family is reminded of it: told without, it would begin with the other.
func TestDhcpcdOfOneFamily(t *testing.T) {
	m := newMachine(t.TempDir())
	l := &linux{machine: m}
	check(t, os.MkdirAll(m.path("run/dhcpcd"), 0o755))
	tell := func() error {
		return l.writeCommands(t.Context(), "eth0", []string{"dhcpcd", "-n"}, []string{"--version"})
	}
	if err := tell(); err == nil || !strings.Contains(err.Error(), "run/dhcpcd/sock") {
		t.Errorf("without a socket: %v", err)
	}
	for sock, want := range map[string]string{"eth0-4.sock": "dhcpcd\x00-n\x00-4\x00eth0\n\x00--version\x00",
		"eth0-6.sock": "dhcpcd\x00-n\x00-6\x00eth0\n\x00--version\x00", "eth0.sock": "dhcpcd\x00-n\x00eth0\n\x00--version\x00"} {
		s, err := net.Listen("unix", m.path("run/dhcpcd/"+sock))
		check(t, err)
		check(t, tell())
		c, err := s.Accept()
		check(t, err)
		b := make([]byte, 99)
		n, _ := c.Read(b)
		if string(b[:n]) != want {
			t.Errorf("%s: told %q, want %q", sock, b[:n], want)
		}
		c.Close()
		s.Close()
	}
}

// The kernel's table of netlink sockets says who has not read what it was told.
func TestUnread(t *testing.T) {
	const head = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
	for what, c := range map[string]struct {
		line string
		want bool
	}{
		"a message":       {"00000000f40b526e 0   5683       00000555 1104     0        0     2        0        10601737\n", true},
		"none":            {"00000000f40b526e 0   5683       00000555 0        0        0     2        0        10601737\n", false},
		"another process": {"00000000f40b526e 0   5684       00000555 1104     0        0     2        0        10601737\n", false},
		"no links":        {"00000000f40b526e 0   5683       00000554 1104     0        0     2        0        10601737\n", false},
		"an answer":       {"00000000f40b526e 0   5683       00000000 1104     0        0     2        0        10601737\n", false},
		"another kind":    {"00000000f40b526e 16  5683       00000001 1104     0        0     2        0        10601737\n", false},
		"nonsense":        {"?\n", false},
	} {
		if got := unread(head+c.line, []int{5681, 5683}); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
	}
	const port = 1<<22 + 7 // no process has it
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	check(t, err)
	defer unix.Close(fd)
	check(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK, Pid: port}))
	waits := func() bool {
		table, err := os.ReadFile("/proc/thread-self/net/netlink")
		check(t, err)
		return unread(string(table), []int{port})
	}
	if waits() {
		t.Error("nothing was told yet")
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "guest9"}, PeerName: "peer9"}
	check(t, netlink.LinkAdd(pair))
	defer netlink.LinkDel(pair)
	if !waits() {
		t.Error("the kernel's own table does not show what was told")
	}
	for b := make([]byte, 1<<16); err == nil; {
		_, err = unix.Read(fd, b)
	}
	if waits() {
		t.Error("all was read")
	}
}

// With IPv6 it is left alone after a flap, also when it has just dropped all addresses.
func TestDhcpcdOfIPv6IsLeftAlone(t *testing.T) {
	l, clients := &linux{}, []otherClient{{name: dhcpcd}}
	for _, c := range []struct {
		has  []netip.Prefix
		want time.Duration
	}{
		{[]netip.Prefix{netip.MustParsePrefix("10.37.91.17/24")}, 0},
		{[]netip.Prefix{netip.MustParsePrefix("fd53:6a7b::17/128")}, judgeProbing},
		{nil, judgeProbing},
		{[]netip.Prefix{netip.MustParsePrefix("10.37.91.66/24")}, 0},
	} {
		l.learn(c.has)
		if got := l.theirs(clients, reason{}, false); got != c.want {
			t.Errorf("with %v: left alone for %s, want %s", c.has, got, c.want)
		}
	}
}
