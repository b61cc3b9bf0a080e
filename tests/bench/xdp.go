package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"replug/bpf"
)

// intoTapByXDP compares small packets into a tap, taken off the uplink by XDP,
// with plain routing and the kernel's overlay. The generator's port is in the tap's network.
func intoTapByXDP(ctx context.Context, o Options) (figures []Figure, err error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	got := measured{}
	for range o.Rounds {
		for _, v := range []variant{{plain, routed}, {policy, filteredIntoTap}, {ours, byXDP}} {
			n, err := w.ppsIntoTap(ctx, v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
			got.add("pps", v.name, n)
		}
	}
	return []Figure{
		got.atLeast("pps_xdp_tap_vs_plain", "pps", "packets/CPU-s", plain, 1.1),
		got.atLeast("pps_xdp_tap_vs_policy", "pps", "packets/CPU-s", policy, 1), // there is an aim only
	}, nil
}

func (w *world) ppsIntoTap(ctx context.Context, v variant) (n float64, err error) {
	undo, err := v.up(ctx, w)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, undo(context.WithoutCancel(ctx))) }()
	a, b := w.sides[0], w.sides[1]
	from, to := a.nics[vethNIC], b.nics[tapNIC]
	via := from.hostMAC // a router's
	if v.name == policy {
		via = to.mac // a bridge's neighbour
	}
	g, err := newBlast(a.guest.Node, from.guest, b.guest.Node, to.guest, stranger, to.addr, from.mac, via)
	if err != nil {
		return 0, err
	}
	defer g.close()
	g.also = w.keepers()[1:]
	return g.run(ctx, ppsTime)
}

// stranger is the generator's address in the tap's network.
var stranger = netip.AddrFrom4([4]byte{10, 9, 0, 77})

// filteredIntoTap is filtered, with the generator on the bridge of the tap's network.
func filteredIntoTap(ctx context.Context, w *world) (func(context.Context) error, error) {
	undo, err := filtered(ctx, w)
	if err != nil {
		return nil, err
	}
	a := w.sides[0]
	if err := run(ctx, a.host, fmt.Sprintf("ip link set %s master br%d", a.nics[vethNIC].host, tapNIC)); err != nil {
		return nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	return undo, nil
}

// byXDP is our datapath with XDP on the receiver's uplink, and the generator in
// the tap's network.
func byXDP(ctx context.Context, w *world) (func(context.Context) error, error) {
	undo, err := replug(ctx, w)
	if err != nil {
		return nil, err
	}
	a, b := w.sides[0], w.sides[1]
	generator := a.nics[vethNIC]
	generator.addr = stranger
	at := bpf.Mapping{MappingKey: bpf.MappingKey{VNI: vni(tapNIC), CA: stranger}, PA: generator.pa, MAC: [6]byte(generator.mac), NextHop: 1}
	err = errors.Join(
		a.with(func(d *bpf.Datapath, _ int) error { return plugAs(d, vethNIC, tapNIC, generator, generator.host, 8, 0) }),
		b.with(func(d *bpf.Datapath, uplink int) error {
			return errors.Join(d.AttachNIC(uplink), d.PutMappings(at), plugAs(d, tapNIC, tapNIC, b.nics[tapNIC], b.nics[tapNIC].host, 8, bpf.XDP))
		}))
	if err != nil {
		return nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	return undo, nil
}
