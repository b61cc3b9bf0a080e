package bpf

import (
	"errors"
	"fmt"
	"net/netip"
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

// A served guest is the one backend of a service, by which others talk to it.
type served struct{ *guest }

func (s served) at(family int, _ uint16) netip.AddrPort {
	return s.guest.at(family, 8453)
}

// What goes to a service and comes from it is translated in superpackets too, on
// whatever way they come: the same talk, by the service's address.
func TestOffloadsOfServices(t *testing.T) {
	for name, lay := range map[string]wiring{"uncut": uncut, "copied": copied} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, fabric4(1550), lay)
			hosts := []*machine{b.host(0), b.host(1)}
			from := b.guest(hosts[0], redA, 1500, 1500, hosts...)
			places := map[string]*guest{"same host": b.guest(hosts[0], redA2, 1500, 1500, hosts...), "cross host": b.guest(hosts[1], redB, 1500, 1500, hosts...)}
			for place, to := range places {
				for family, inner := range []string{"IPv4", "IPv6"} {
					for _, proto := range []uint8{protoTCP, protoUDP} {
						if err := hosts[0].dp.SetService(serviceOf(family, proto, Backend{CA: to.at(family, 0).Addr(), Port: 8453, Weight: 1})); err != nil {
							t.Fatal(err)
						}
					}
					for _, on := range []bool{true, false} {
						from.offloads(on)
						to.offloads(on)
						t.Run(fmt.Sprintf("%s, offloads %t, %s", inner, on, place), func(t *testing.T) { talkBoth(t, from, served{to}, family, on) })
					}
				}
			}
			for _, h := range hosts {
				h.onlyDropped("ip_options", "nd_probe")
			}
		})
	}
}

func talkBoth(t *testing.T, from *guest, to talker, family int, on bool) {
	before := overtaken(t, from) + overtaken(t, to)
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(2<<20, 3), noise(1<<20, 5)}); err != nil {
		t.Errorf("TCP: %v; drops %v", err, from.host.reasons())
	}
	if n := overtaken(t, from) + overtaken(t, to) - before; n != 0 {
		t.Errorf("TCP: %d segments overtook others", n)
	}
	const bursts = 12
	sent := from.sent()
	if err := datagrams(from, to, family, bursts); err != nil {
		t.Errorf("UDP: %v; drops %v", err, from.host.reasons())
	}
	frames := from.sent() - sent
	if whole := frames < bursts*burstSegments/2; whole != (on && from.host.takesUSO()) {
		t.Errorf("UDP: %d frames for %d datagrams, offloads %t", frames, bursts*(burstSegments+burstSingles), on)
	}
}
