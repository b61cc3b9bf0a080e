package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

// A guest that sends whatever it likes: the agent survives, each frame is refused
// under a name, and others lose nothing (invariants 7, 12).
func TestHostileFrames(t *testing.T) {
	w := shared
	ctx := w.within(t, strings.Fields("spoofed_mac spoofed_nd vlan bad_ip bad_l4 bad_arp bad_nd not_ip truncated fragment_tiny "+
		"trap_rate trap_size rogue_dhcp rogue_ra broadcast multicast imds_other no_route")...)
	rogue := w.guest(ctx, t, 1, "red", true)
	lossless := w.bystanders(ctx, t)
	mac, err := rogue.MAC()
	if err != nil {
		t.Fatal(err)
	}
	before, agent := metrics(ctx, t, w.Lab.Host(1), 9417), w.Agent(1).PID()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 7))
	err = rogue.Do(func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range 4000 {
			// A full queue refuses some: they were not sent, and others are.
			_ = unix.Sendto(fd, garbage(r, mac), 0, &unix.SockaddrLinklayer{Ifindex: dev.Index})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Until(ctx, "the frames to be counted", func() error {
		after, total, reasons := metrics(ctx, t, w.Lab.Host(1), 9417), 0.0, []string{}
		for name, n := range after {
			if strings.HasPrefix(name, "replug_drops_total{") && n > before[name] {
				total += n - before[name]
				reasons = append(reasons, name)
			}
		}
		if total < 1000 || len(reasons) < 5 {
			return fmt.Errorf("%v frames were refused, for %v", total, reasons)
		}
		t.Logf("%v frames were refused, for %v", total, reasons)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if !w.Agent(1).Alive() || w.Agent(1).PID() != agent {
		t.Error("the agent died of it")
	}
	reaches(ctx, t, w.peer(ctx, t, "red").Node, rogue.ip)
	lossless()
}

// garbage is a frame that is wrong in one of several ways, or in all.
func garbage(r *rand.Rand, mac net.HardwareAddr) []byte {
	b := make([]byte, 14+r.IntN(1400))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	copy(b[6:], mac)
	switch r.IntN(6) {
	case 0: // nobody's MAC
		b[6] ^= 4
	case 1:
		b[12], b[13] = 0x08, 0x00 // IPv4
	case 2:
		b[12], b[13] = 0x08, 0x06 // ARP
	case 3:
		b[12], b[13] = 0x81, 0x00 // VLAN tag
	case 4: // DHCP, whole but for what stands in it
		if len(b) < 300 {
			b = append(b, make([]byte, 300)...)
		}
		n := len(b) - 14
		copy(b[12:], []byte{0x08, 0, 0x45, 0, byte(n >> 8), byte(n), 7, 9, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255,
			0, 68, 0, 67, byte((n - 20) >> 8), byte(n - 20), 0, 0})
	}
	return b
}

// A guest's HTTP that is no request of its agent is refused and says why, and a
// proper one is answered right after (invariant 12).
func TestHostileHTTP(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	const url = "http://169.254.169.254/replug/v1/"
	for name, c := range map[string]struct{ script, says string }{
		"no header":    {"wget -SO- " + url, "400"},
		"forwarded":    {"wget -SO- --header 'Metadata: true' --header 'X-Forwarded-For: 10.20.7.9' " + url, "400"},
		"foreign host": {"wget -SO- --header 'Metadata: true' --header 'Host: metadata.example' " + url, "400"},
		"unknown path": {"wget -SO- --header 'Metadata: true' http://169.254.169.254/nowhere/", "404"},
		"10 MB":        {"printf 'POST /replug/v1/report HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\nMetadata: true\\r\\nContent-Length: 10485760\\r\\n\\r\\n' | nc 169.254.169.254 80", "413"},
	} {
		out, err := web.Sh(ctx, "("+c.script+") 2>&1; true")
		if !strings.Contains(string(out), c.says) {
			t.Errorf("%s: %v, %.300q; want %s", name, err, out, c.says)
		}
	}
	out, err := web.Sh(ctx, "wget -qO- --header 'Metadata: true' "+url)
	if err != nil || !strings.Contains(string(out), `"v1"`) {
		t.Errorf("a proper request: %v, %s", err, out)
	}
}
