package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"replug/bpf"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// Packets are counted by hundreds, so that an interrupt spoils one figure of many.
const (
	packetBatch   = 200
	packetBatches = 100
)

// packet measures what a small packet costs each program by itself: of a flow that
// is known, all in the cache; and the first of a flow, to one of a thousand and of a
// million addresses. The programs are run by BPF_PROG_RUN and timed by the kernel
// (BPF_STATS_RUN_TIME), which adds some 40 ns.
func packet(ctx context.Context, o Options) (figures []Figure, err error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	for _, s := range w.sides {
		s.mappings, s.flows = million+2*thousand, 1<<18
	}
	undo, err := replug(ctx, w)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, undo(context.WithoutCancel(ctx))) }()
	stats, err := ebpf.EnableStats(0)
	if err != nil {
		return nil, fmt.Errorf("time programs: %w", err)
	}
	defer stats.Close()
	got := measured{}
	for range o.Rounds {
		if err := w.knownPackets(got); err != nil {
			return nil, err
		}
	}
	if err := w.firstPackets(o, got); err != nil {
		return nil, err
	}
	first := got["first"]
	return []Figure{
		{ID: "from_vm_ns", Unit: "ns a packet", Ours: median(got["known"]["from_vm"]), Runs: got["known"]["from_vm"], OK: true},
		{ID: "from_wire_ns", Unit: "ns a packet", Ours: median(got["known"]["from_wire"]), Runs: got["known"]["from_wire"], OK: true},
		{ID: "from_vm_first_ns", Unit: "ns a packet", Ours: median(first["1 M"]), Against: "1 k mappings", Theirs: median(first["1 k"]),
			Ratio: median(first["1 M"]) / median(first["1 k"]), Runs: first["1 M"], OK: true},
	}, nil
}

// knownPackets times both programs over one packet again and again.
func (w *world) knownPackets(got measured) error {
	a, b := w.sides[0], w.sides[1]
	from, to := a.nics[vethNIC], b.nics[vethNIC]
	sent := udpFrame(from.addr, to.addr, from.mac, vnet.GatewayMAC[:])
	arriving := frame.Encapsulate(frame.Outer{SrcMAC: vnet.MAC(a.mac), DstMAC: vnet.MAC(b.mac), Src: from.pa, Dst: to.pa, VNI: vnet.VNI(vni(vethNIC))},
		udpFrame(from.addr, to.addr, from.mac, to.mac))
	for _, p := range []struct {
		name, device string
		s            *side
		frame        []byte
	}{{"from_vm", from.host, a, sent}, {"from_wire", wire, b, arriving}} {
		err := p.s.host.Do(func() error {
			t, err := newTimer(p.s, p.device)
			if err != nil {
				return err
			}
			defer t.close()
			n, err := t.run(func(int) []byte { return p.frame })
			got.add("known", p.name, n)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// firstPackets times from_vm over packets that each begin a flow.
func (w *world) firstPackets(o Options, got measured) error {
	a := w.sides[0]
	from := a.nics[vethNIC]
	f := udpFrame(from.addr, from.addr, from.mac, vnet.GatewayMAC[:])
	at := uint32(0) // so that no flow begins twice
	for _, n := range []struct {
		name string
		all  int
	}{{"1 k", thousand}, {"1 M", million}} {
		if err := a.with(func(d *bpf.Datapath, _ int) error {
			_, err := fill(d, 0, n.all)
			return errors.Join(err, d.PutRoute(bpf.Route{VNI: vni(vethNIC), Prefix: filled}))
		}); err != nil {
			return err
		}
		for range o.Rounds {
			err := a.host.Do(func() error {
				t, err := newTimer(a, from.host)
				if err != nil {
					return err
				}
				defer t.close()
				took, err := t.run(func(int) []byte {
					at++
					// 7919 is a prime: neighbours in the order are none in the table.
					aim(f, address(int(at)*7919%n.all), uint16(at>>4))
					return f
				})
				got.add("first", n.name, took)
				return err
			})
			if err != nil {
				return fmt.Errorf("first packets, %s mappings: %w", n.name, err)
			}
		}
	}
	return nil
}

// aim gives a packet of [udpFrame] another destination and source port.
func aim(f []byte, to netip.Addr, port uint16) {
	ip := f[14:34]
	copy(ip[16:], to.AsSlice())
	binary.BigEndian.PutUint16(f[34:], 10000+port%50000)
	sumHeader(ip)
}

// A timer runs a program in force as if frames had come by a device. Drops would
// make it fast: they are an error.
type timer struct {
	d       *bpf.Datapath
	prog    *ebpf.Program
	ifindex int
}

// newTimer finds the program that the device's frames come to first. It has to be
// called on the side's host.
func newTimer(s *side, device string) (*timer, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	on, err := link.QueryPrograms(link.QueryOptions{Target: dev.Index, Attach: ebpf.AttachTCXIngress})
	if err != nil || len(on.Programs) == 0 {
		return nil, errors.Join(fmt.Errorf("no program gets the frames of %s", device), err)
	}
	t := &timer{ifindex: dev.Index}
	if t.prog, err = ebpf.NewProgramFromID(on.Programs[0].ID); err != nil {
		return nil, err
	}
	if t.d, _, _, _, err = open(s); err != nil {
		t.prog.Close()
		return nil, err
	}
	return t, nil
}

func (t *timer) close() { t.prog.Close(); t.d.Close() }

// run returns what a packet takes, ns: the median of many short means.
func (t *timer) run(next func(i int) []byte) (float64, error) {
	before, err := t.d.Drops()
	if err != nil {
		return 0, err
	}
	var means []float64
	for b := range packetBatches {
		was, err := t.prog.Stats()
		if err != nil {
			return 0, err
		}
		for i := range packetBatch {
			if _, err := t.prog.Run(&ebpf.RunOptions{Data: next(b*packetBatch + i), Context: bpf.SkBuff{Ifindex: uint32(t.ifindex)}}); err != nil {
				return 0, err
			}
		}
		is, err := t.prog.Stats()
		if err != nil {
			return 0, err
		}
		means = append(means, float64(is.Runtime-was.Runtime)/float64(is.RunCount-was.RunCount))
	}
	after, err := t.d.Drops()
	for reason, n := range after {
		if more := n - before[reason]; more > 0 {
			err = errors.Join(err, fmt.Errorf("%d of %d packets were dropped: %s", more, packetBatch*packetBatches, reason))
		}
	}
	return median(means), err
}
