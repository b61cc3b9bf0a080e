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
// whole and one that doesn't, received by tcx and by XDP, over either underlay,
// out of taps and into them. [TestContainers] does the same with veths.
func TestOffloads(t *testing.T) {
	overFabrics(t, func(b *bed, host *machine, who member, hosts ...*machine) *guest {
		return b.guest(host, who, 1500, 1500, hosts...)
	})
}

// A plug gives a host of a bed a guest, and tells all hosts where it is.
type plug func(b *bed, host *machine, who member, hosts ...*machine) *guest

// wirings are a wire that carries superpackets whole, and one that doesn't.
var wirings = map[string]wiring{"uncut": uncut, "copied": copied}

func overFabrics(t *testing.T, in plug) {
	for _, f := range []fabric{fabric4(1550), fabric6(1570)} {
		for wire := range wirings {
			t.Run(fmt.Sprintf("%s, %s", f.name, wire), func(t *testing.T) { offloads(t, f, wire, in) })
		}
	}
}

func offloads(t *testing.T, f fabric, wire string, in plug) {
	b := newBed(t, f, wirings[wire])
	hosts := []*machine{b.host(0), b.host(1)}
	o := offloaded{in(b, hosts[0], redA, hosts...), in(b, hosts[0], redA2, hosts...), in(b, hosts[1], redB, hosts...)}
	o.each(t, "tcx", wire == "uncut")
	for _, h := range hosts {
		// A veth hands XDP checksums that its sender hasn't finished, which no NIC does. It cuts superpackets, then.
		h.in(func() error { return errors.Join(tool("ethtool", "-K up0 tx off"), h.dp.AttachNIC(h.uplink)) })
	}
	o.each(t, "XDP", false)
	for _, h := range hosts {
		h.onlyDropped("ip_options", "nd_probe") // a guest's kernel joins its groups, and looks for who else has its link-local address
	}
}

// The three guests: one sends, one is on the same host, one on another.
type offloaded struct{ from, beside, away *guest }

// each talks in every way, received by one kind of program over a wire that cuts superpackets or doesn't.
func (o offloaded) each(t *testing.T, receive string, uncut bool) {
	for _, on := range []bool{true, false} {
		for _, g := range []*guest{o.from, o.beside, o.away} {
			g.offloads(on)
		}
		for place, to := range map[string]*guest{"same host": o.beside, "cross host": o.away} {
			for family, inner := range []string{"IPv4", "IPv6"} {
				name := fmt.Sprintf("%s, offloads %t, %s, by %s", inner, on, place, receive)
				t.Run(name, func(t *testing.T) {
					queued := to.queued()
					talkBoth(t, o.from, to, family, crossing{on, on && (to == o.beside || uncut)})
					// The gateway's answers are few.
					if n := to.queued() - queued; to.skipsQueue(o.from, family) && n >= 10 {
						t.Errorf("%d frames went through the queue of the veth", n)
					}
				})
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
	for wire, lay := range wirings {
		t.Run(wire, func(t *testing.T) {
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
						whole := crossing{on, on && (place == "same host" || wire == "uncut")}
						t.Run(fmt.Sprintf("%s, offloads %t, %s", inner, on, place), func(t *testing.T) { talkBoth(t, from, served{to}, family, whole) })
					}
				}
			}
			for _, h := range hosts {
				h.onlyDropped("ip_options", "nd_probe")
			}
		})
	}
}

// A crossing says at which ends of a way a superpacket of datagrams is one frame.
type crossing struct{ sent, received bool }

// A callee is a guest, called by its own address or by that of its service.
type callee interface {
	talker
	received() uint64
}

func talkBoth(t *testing.T, from *guest, to callee, family int, whole crossing) {
	t.Helper()
	before := overtaken(t, from) + overtaken(t, to)
	c := connect(t, from, to, family)
	if err := c.exchange([2][]byte{noise(2<<20, 3), noise(1<<20, 5)}); err != nil {
		t.Errorf("TCP: %v; drops %v", err, from.host.reasons())
	}
	if n := overtaken(t, from) + overtaken(t, to) - before; n != 0 {
		t.Errorf("TCP: %d segments overtook others", n)
	}
	const bursts = 12
	sent, received := from.sent(), to.received()
	if err := datagrams(from, to, family, bursts); err != nil {
		t.Errorf("UDP: %v; drops %v", err, from.host.reasons())
	}
	for _, end := range []struct {
		does   string
		frames uint64
		whole  bool
	}{{"sent", from.sent() - sent, whole.sent}, {"received", to.received() - received, whole.received}} {
		if is := end.frames < bursts*burstSegments/2; is != (end.whole && from.host.takesUSO()) {
			t.Errorf("UDP: %d frames %s for %d datagrams, superpackets whole: want %t", end.frames, end.does, bursts*(burstSegments+burstSingles), end.whole)
		}
	}
}
