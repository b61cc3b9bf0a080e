package bpf

import (
	"errors"
	"fmt"
	"testing"
)

// Issue 3, point 5: every offload on every way carries TCP and UDP, whose bytes
// are compared and whose flows stay in order: superpackets and single packets
// in turn, to a guest of the same host and of another, IPv4 and IPv6, from and
// to guests with and without offloads, over a wire that carries superpackets
// whole and one that doesn't, received by tcx and by XDP, over either underlay.
func TestOffloads(t *testing.T) {
	for _, f := range []fabric{fabric4(1550), fabric6(1570)} {
		for name, lay := range map[string]wiring{"uncut": uncut, "copied": copied} {
			t.Run(fmt.Sprintf("%s, %s", f.name, name), func(t *testing.T) { offloads(t, f, lay) })
		}
	}
}

func offloads(t *testing.T, f fabric, lay wiring) {
	b := newBed(t, f, lay)
	hosts := []*machine{b.host(0), b.host(1)}
	o := offloaded{b.guest(hosts[0], redA, 1500, 1500, hosts...), b.guest(hosts[0], redA2, 1500, 1500, hosts...), b.guest(hosts[1], redB, 1500, 1500, hosts...)}
	o.each(t, "tcx")
	for _, h := range hosts {
		// A veth hands XDP checksums that its sender hasn't finished, which no NIC does.
		h.in(func() error { return errors.Join(tool("ethtool", "-K up0 tx off"), h.dp.AttachNIC(h.uplink)) })
	}
	o.each(t, "XDP")
	for _, h := range hosts {
		h.onlyDropped("ip_options", "nd_probe") // a guest's kernel joins its groups, and looks for who else has its link-local address
	}
}

// The three guests: one sends, one is on the same host, one on another.
type offloaded struct{ from, beside, away *guest }

func (o offloaded) each(t *testing.T, receive string) {
	for _, on := range []bool{true, false} {
		for _, g := range []*guest{o.from, o.beside, o.away} {
			g.offloads(on)
		}
		for place, to := range map[string]*guest{"same host": o.beside, "cross host": o.away} {
			for family, inner := range []string{"IPv4", "IPv6"} {
				name := fmt.Sprintf("%s, offloads %t, %s, by %s", inner, on, place, receive)
				t.Run(name, func(t *testing.T) { talkBoth(t, o.from, to, family, on) })
			}
		}
	}
}

func talkBoth(t *testing.T, from, to *guest, family int, on bool) {
	before := overtaken(t, from) + overtaken(t, to)
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(2<<20, 3), noise(1<<20, 5)}); err != nil {
		t.Errorf("TCP: %v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	if n := overtaken(t, from) + overtaken(t, to) - before; n != 0 {
		t.Errorf("TCP: %d segments overtook others", n)
	}
	const bursts = 12
	sent := from.sent()
	if err := datagrams(from, to, family, bursts); err != nil {
		t.Errorf("UDP: %v; drops %v and %v", err, from.host.reasons(), to.host.reasons())
	}
	frames := from.sent() - sent
	if whole := frames < bursts*burstSegments/2; whole != (on && from.host.takesUSO()) {
		t.Errorf("UDP: %d frames for %d datagrams, offloads %t", frames, bursts*(burstSegments+burstSingles), on)
	}
}
