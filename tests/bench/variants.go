package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"replug/bpf"
	"replug/dataplane/netdev"
	"replug/directory/vnet"
)

// A variant is one way to carry frames between the guests. Its undo puts the
// test bed back.
type variant struct {
	name string
	up   func(context.Context, *world) (undo func(context.Context) error, err error)
}

const (
	plain  = "plain routing"
	vxlan  = "kernel VXLAN + bridge"
	policy = "kernel VXLAN + bridge + nftables" // ct state, as much as our rules say
	ours   = "replug"
)

var variants = []variant{{plain, routed}, {vxlan, bridged}, {policy, filtered}, {ours, replug}}

// routed is plain IP forwarding: no overlay at all.
func routed(ctx context.Context, w *world) (func(context.Context) error, error) {
	var undo []func(context.Context) error
	for i, s := range w.sides {
		other := w.sides[1-i]
		for j, n := range s.nics {
			peer := other.nics[j].addr
			if err := run(ctx, s.host,
				fmt.Sprintf("ip route add %s/32 dev %s", n.addr, n.host), fmt.Sprintf("ip route add %s/32 via %s", peer, other.addr),
				fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", n.addr, n.mac, n.host)); err != nil {
				return nil, err
			}
			undo = append(undo, func(ctx context.Context) error {
				return run(ctx, s.host, fmt.Sprintf("ip route del %s/32 dev %s", n.addr, n.host), fmt.Sprintf("ip route del %s/32 via %s", peer, other.addr))
			})
		}
	}
	return all(undo), w.neighbours(ctx, func(s *side, nic int) net.HardwareAddr { return s.nics[nic].hostMAC })
}

// bridged is a kernel VXLAN device and a bridge for each of the two networks.
func bridged(ctx context.Context, w *world) (func(context.Context) error, error) {
	var undo []func(context.Context) error
	for i, s := range w.sides {
		other := w.sides[1-i]
		for j, n := range s.nics {
			vx, br := fmt.Sprintf("vx%d", j), fmt.Sprintf("br%d", j)
			if err := run(ctx, s.host,
				fmt.Sprintf("ip link add %s type vxlan id %d local %s remote %s dstport 4789 dev %s", vx, 100+j, s.addr, other.addr, wire),
				"ip link add "+br+" type bridge stp_state 0 mcast_snooping 0",
				fmt.Sprintf("ip link set %s mtu %d master %s up", vx, guestMTU, br),
				"ip link set "+n.host+" master "+br, "ip link set "+br+" up"); err != nil {
				return nil, err
			}
			undo = append(undo, func(ctx context.Context) error {
				return run(ctx, s.host, "ip link set "+n.host+" nomaster", "ip link del "+vx, "ip link del "+br)
			})
		}
	}
	return all(undo), w.neighbours(ctx, func(s *side, nic int) net.HardwareAddr {
		return w.sides[1-indexOfSide(w, s)].nics[nic].mac
	})
}

// ruleset is what a cloud's security group makes of the load: answers pass, and
// a few ports.
const ruleset = `table ip replug {
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		ct state new ip saddr 10.0.0.0/8 tcp dport { 22, 80, 443, 5201, 7000-7200 } accept
		ct state new ip saddr 10.0.0.0/8 udp dport { 53, 7000-7200, 9000 } accept
		meta l4proto 1 accept
	}
}
`

// filtered is bridged with a stateful filter on the bridge.
func filtered(ctx context.Context, w *world) (func(context.Context) error, error) {
	unbridge, err := bridged(ctx, w)
	if err != nil {
		return nil, err
	}
	undo := []func(context.Context) error{unbridge}
	for _, s := range w.sides {
		if _, err := s.host.Run(ctx, "sh", "-c", "sysctl -qw net.bridge.bridge-nf-call-iptables=1 && nft -f - <<'end'\n"+ruleset+"end"); err != nil {
			return nil, err
		}
		undo = append(undo, func(ctx context.Context) error {
			return run(ctx, s.host, "sysctl -qw net.bridge.bridge-nf-call-iptables=0", "nft delete table ip replug")
		})
	}
	return all(undo), nil
}

// rules is the same as ruleset, for our ports.
func rules() *bpf.RuleSet {
	from := netip.MustParsePrefix("10.0.0.0/8")
	allow := func(id uint32, proto uint8, min, max uint16) bpf.Rule {
		return bpf.Rule{ID: id, Protocol: proto, Remote: from, MinPort: min, MaxPort: max}
	}
	const icmp, tcp, udp = 1, 6, 17
	return &bpf.RuleSet{In: []bpf.Rule{allow(1, tcp, 22, 22), allow(2, tcp, 80, 443), allow(3, tcp, 5201, 5201), allow(4, tcp, 7000, 7200),
		allow(5, udp, 53, 53), allow(6, udp, 7000, 7200), allow(7, udp, 9000, 9000), {ID: 8, Protocol: icmp}}}
}

func indexOfSide(w *world, s *side) int {
	if w.sides[0] == s {
		return 0
	}
	return 1
}

// replug is the product's datapath, with each NIC as a port in a network of its own.
func replug(ctx context.Context, w *world) (func(context.Context) error, error) {
	var undo []func(context.Context) error
	for i, s := range w.sides {
		if err := s.host.Do(func() error { return load(s, w.sides[1-i]) }); err != nil {
			return nil, err
		}
		undo = append(undo, func(context.Context) error {
			return s.host.Do(func() error {
				return errors.Join(bpf.Remove(pins(s)), netdev.Delete(netdev.VXLANName), netdev.Delete("imds0"))
			})
		})
	}
	return all(undo), w.neighbours(ctx, func(*side, int) net.HardwareAddr { return vnet.GatewayMAC[:] })
}

// open loads the datapath on one host, or adopts the one in force. The devices
// are the agent's own kind.
func open(s *side) (d *bpf.Datapath, up, vx, imds int, err error) {
	dev, err := net.InterfaceByName(wire)
	if err != nil {
		return nil, 0, 0, 0, err
	}
	v, err := netdev.EnsureVXLAN(netdev.VXLANName, wireMTU-50)
	if err != nil {
		return nil, 0, 0, 0, err
	}
	m, err := netdev.EnsureIMDS()
	if err != nil {
		return nil, 0, 0, 0, err
	}
	d, err = bpf.Load(bpf.Options{PinDir: pins(s), Uplink: dev.Index, IMDS: m.Near.Ifindex, IMDSMAC: m.Near.MAC, GatewayMAC: vnet.GatewayMAC,
		HostAddress: s.addr, PAPrefix: netip.PrefixFrom(s.nics[0].pa, 24).Masked(), UnderlayMTU: wireMTU, Mappings: s.mappings, Flows: s.flows, FlowQuota: s.flows,
		UplinkMAC: [6]byte(dev.HardwareAddr)})
	return d, dev.Index, v.Ifindex, m.Near.Ifindex, err
}

func pins(s *side) string { return filepath.Join(s.host.BPF(), "replug") }

// load brings the datapath into force on one host, as the agent does.
func load(s, other *side) error {
	d, up, vx, imds, err := open(s)
	if err != nil {
		return err
	}
	defer d.Close() // everything stays in force
	hop := bpf.NextHop{Ifindex: up, Dst: [6]byte(other.mac), Src: [6]byte(s.mac)}
	if err := errors.Join(d.AttachUplink(up), d.AttachVXLAN(vx), d.AttachIMDS(imds), d.SetNextHop(1, hop)); err != nil {
		return err
	}
	for j, n := range s.nics {
		peer := other.nics[j]
		err := errors.Join(plug(d, j, n, n.host, 7),
			d.PutMappings(bpf.Mapping{MappingKey: bpf.MappingKey{VNI: vni(j), CA: peer.addr}, PA: peer.pa, MAC: [6]byte(peer.mac), NextHop: 1}))
		if err != nil {
			return err
		}
	}
	return nil
}

// movePort moves the port of the guest's tap to another device of the host.
func movePort(s *side, device string) error {
	d, _, _, _, err := open(s)
	if err != nil {
		return err
	}
	defer d.Close()
	return plug(d, tapNIC, s.nics[tapNIC], device, 8)
}

// with hands the datapath in force on the host, and its uplink, to f.
func (s *side) with(f func(d *bpf.Datapath, uplink int) error) error {
	return s.host.Do(func() error {
		d, uplink, _, _, err := open(s)
		if err != nil {
			return err
		}
		return errors.Join(f(d, uplink), d.Close())
	})
}

func vni(j int) uint32 { return uint32(0xabc000 + j) }

// plug makes a device of the host the port of the guest's j-th NIC.
func plug(d *bpf.Datapath, j int, n nic, device string, epoch uint64) error {
	return plugAs(d, j, j, n, device, epoch, 0)
}

// plugAs is plug for a port in the j-th network.
func plugAs(d *bpf.Datapath, id, j int, n nic, device string, epoch uint64, flags bpf.PortFlags) error {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	if netdev.IsPeer(dev.Index) {
		flags |= bpf.Peer
	}
	return errors.Join(d.AttachTap(dev.Index), d.SetPort(uint16(11+id), bpf.Port{Rules: rules(), Ifindex: dev.Index, VNI: vni(j), Epoch: epoch, MAC: [6]byte(n.mac),
		PA: n.pa, CAs: []netip.Prefix{netip.PrefixFrom(n.addr, 24)}, Gateway: gateway(n.addr), MTU: guestMTU, Flags: bpf.Open | flags}))
}

// gateway is the last address of the guest's subnet.
func gateway(ca netip.Addr) netip.Addr {
	b := ca.As4()
	b[3] = 254
	return netip.AddrFrom4(b)
}

func all(fs []func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		for _, f := range fs {
			err = errors.Join(err, f(ctx))
		}
		return err
	}
}
