package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"replug/tests/lab"
)

// The test bed of the traffic figures: two hosts, a wire between them that
// carries frames of the wire's size (no 64 KiB frames: TSO is off, GRO on), and
// on each host a guest with two NICs: a tap, as VMs have, and a veth for the
// generator of small frames. Only what lies between the NICs differs.
type world struct {
	lab   *lab.Lab
	sides [2]*side
}

// A side is one host with its guest.
type side struct {
	host  *lab.Node
	guest *lab.Guest
	addr  netip.Addr // of the wire
	mac   net.HardwareAddr
	nics  [2]nic // tap, veth

	mappings, flows uint32 // that its datapath has room for; 0: the default
}

// A nic is one of a guest's.
type nic struct {
	guest, host string // device names
	mac         net.HardwareAddr
	hostMAC     net.HardwareAddr
	addr, pa    netip.Addr
}

const (
	wire     = "wire0"
	wireMTU  = 1600
	guestMTU = 1500
	tapNIC   = 0
	vethNIC  = 1
)

func newWorld(ctx context.Context, o Options) (w *world, err error) {
	l, err := lab.Up(ctx, lab.Config{Name: o.Name, Hosts: 2, MTU: wireMTU, Helper: o.Helper})
	if err != nil {
		return nil, err
	}
	w = &world{lab: l}
	defer func() {
		if err != nil {
			l.Down(context.WithoutCancel(ctx))
		}
	}()
	for i := range w.sides {
		if w.sides[i], err = newSide(ctx, l, i); err != nil {
			return nil, err
		}
	}
	return w, w.connect(ctx)
}

func newSide(ctx context.Context, l *lab.Lab, i int) (*side, error) {
	n := byte(i + 1)
	s := &side{host: l.Host(i + 1), addr: netip.AddrFrom4([4]byte{172, 30, 0, n}), mac: net.HardwareAddr{2, 0x77, 0, 0, 0, n}}
	mac := func(nic, end byte) net.HardwareAddr { return net.HardwareAddr{2, 0x77, nic, end, 0, n} }
	s.nics = [2]nic{
		{guest: "eth0", host: "tap-load", mac: mac(1, 1), addr: netip.AddrFrom4([4]byte{10, 9, 0, n}), pa: netip.AddrFrom4([4]byte{100, 64, n, 11})},
		{guest: "veth0", host: "veth-load", mac: mac(2, 1), hostMAC: mac(2, 2), addr: netip.AddrFrom4([4]byte{10, 8, 0, n}), pa: netip.AddrFrom4([4]byte{100, 64, n, 12})},
	}
	var err error
	s.guest, err = l.TapGuest(ctx, s.host, lab.GuestConfig{Name: fmt.Sprintf("load%d", n), Tap: "tap-load", MAC: s.nics[tapNIC].mac, MTU: guestMTU})
	if err != nil {
		return nil, err
	}
	v := &s.nics[vethNIC]
	err = run(ctx, s.host,
		fmt.Sprintf("ip link add %s address %s mtu %d type veth peer name %s address %s netns %s", v.host, v.hostMAC, guestMTU, v.guest, v.mac, s.guest.NetNS()),
		"ip link set "+v.host+" up", "ethtool -K "+v.host+" gro on")
	if err != nil {
		return nil, err
	}
	for j := range s.nics {
		if s.nics[j].hostMAC, err = macOf(s.host, s.nics[j].host); err != nil {
			return nil, err
		}
		n := s.nics[j]
		if err := run(ctx, s.guest.Node, fmt.Sprintf("ip link set %s mtu %d up", n.guest, guestMTU), fmt.Sprintf("ip addr add %s/24 dev %s", n.addr, n.guest)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// connect lays the wire between the hosts.
func (w *world) connect(ctx context.Context) error {
	a, b := w.sides[0], w.sides[1]
	if err := run(ctx, a.host, fmt.Sprintf("ip link add %s address %s mtu %d type veth peer name %s address %s mtu %d netns %s",
		wire, a.mac, wireMTU, wire, b.mac, wireMTU, b.host.NetNS())); err != nil {
		return err
	}
	for i, s := range w.sides {
		other := w.sides[1-i]
		if err := run(ctx, s.host, "ip link set "+wire+" up",
			fmt.Sprintf("ip addr add %s/24 dev %s", s.addr, wire),
			fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", other.addr, other.mac, wire),
			fmt.Sprintf("ip route add 100.64.%d.0/24 via %s", 2-i, other.addr),
			"ethtool -K "+wire+" "+fmt.Sprintf(segmentation, "off")+" gro on",
			"sysctl -qw net.ipv4.ip_forward=1"); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) down(ctx context.Context) error { return w.lab.Down(context.WithoutCancel(ctx)) }

// keepers are the processes that copy frames between the guests' taps and the
// hosts', as a VMM does: their work counts.
func (w *world) keepers() []int {
	return []int{w.sides[0].guest.Keeper().PID(), w.sides[1].guest.Keeper().PID()}
}

// neighbours tells each guest which MAC its peers have.
func (w *world) neighbours(ctx context.Context, mac func(s *side, nic int) net.HardwareAddr) error {
	for i, s := range w.sides {
		for j, n := range s.nics {
			peer := w.sides[1-i].nics[j].addr
			if err := run(ctx, s.guest.Node, fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", peer, mac(s, j), n.guest)); err != nil {
				return err
			}
		}
	}
	return nil
}
