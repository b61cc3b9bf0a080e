package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"replug/tests/lab"
)

const (
	tcpTime = 3 * time.Second
	ppsTime = 1200 * time.Millisecond
)

// traffic compares TCP into a tap and small packets with plain routing and with
// kernel VXLAN, interleaved: each round measures all three.
func traffic(ctx context.Context, o Options) (figures []Figure, err error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	undo, err := disown(w.sides[0])
	if err != nil {
		return nil, err
	}
	defer undo()
	got := measured{}
	for range o.Rounds {
		for _, v := range variants {
			if err := w.round(ctx, v, got); err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	return []Figure{
		got.atLeast("tcp_tap_vs_plain", "tcp", "Gbit/CPU-s", plain, 0.85),
		got.atLeast("tcp_tap_vs_vxlan", "tcp", "Gbit/CPU-s", vxlan, 0.95),
		got.atLeast("tcp_tap_vs_policy", "tcp", "Gbit/CPU-s", policy, 1.0),
		got.atLeast("tcp_tap_offload_vs_plain", "tcp offload", "Gbit/CPU-s", plain, 0.9),
		got.atLeast("tcp_tap_offload_vs_policy", "tcp offload", "Gbit/CPU-s", policy, 1.15),
		got.atLeast("rr_vs_plain", "rr", "round trips/CPU-s", plain, 1.0),
		got.atLeast("rr_vs_policy", "rr", "round trips/CPU-s", policy, 1.35),
		got.atLeast("pps_vs_plain", "pps", "packets/CPU-s", plain, 0.9),
		got.atLeast("pps_vs_policy", "pps", "packets/CPU-s", policy, 2.8),
	}, nil
}

// measured is the raw values of a load, by variant.
type measured map[string]map[string][]float64

func (m measured) add(load, variant string, v float64) {
	if m[load] == nil {
		m[load] = map[string][]float64{}
	}
	m[load][variant] = append(m[load][variant], v)
}

func (m measured) atLeast(id, load, unit, against string, must float64) Figure {
	return atLeast(id, unit, m[load][ours], against, m[load][against], must)
}

// round puts every load on one variant.
func (w *world) round(ctx context.Context, v variant, got measured) (err error) {
	undo, err := v.up(ctx, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo(context.WithoutCancel(ctx))) }()
	name := fmt.Sprint(len(got["tcp"][v.name]), "-", strings.ReplaceAll(v.name, " ", ""))
	for _, load := range []struct {
		name string
		run  func() (float64, error)
	}{
		{"tcp", func() (float64, error) { return w.tcp(ctx, name) }},
		{"tcp offload", func() (float64, error) {
			return w.offloaded(ctx, func() (float64, error) { return w.tcp(ctx, name+"-offload") })
		}},
		{"rr", func() (float64, error) { return w.roundTrips(ctx) }},
		{"pps", func() (float64, error) { return w.pps(ctx, v.name, ppsTime) }},
	} {
		n, err := load.run()
		if err != nil {
			return fmt.Errorf("%s: %w", load.name, err)
		}
		got.add(load.name, v.name, n)
	}
	return nil
}

// segmentation is what a NIC cuts in hardware: on, 64 KiB frames cross the wire.
const segmentation = "tso %[1]s tx-udp-segmentation %[1]s tx-udp_tnl-segmentation %[1]s tx-udp_tnl-csum-segmentation %[1]s"

// offloaded measures with a wire that cuts and merges frames itself.
func (w *world) offloaded(ctx context.Context, measure func() (float64, error)) (n float64, err error) {
	set := func(ctx context.Context, to string) (err error) {
		for _, s := range w.sides {
			err = errors.Join(err, run(ctx, s.host, "ethtool -K "+wire+" "+fmt.Sprintf(segmentation, to)))
		}
		return err
	}
	if err := set(ctx, "on"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, set(context.WithoutCancel(ctx), "off")) }()
	return measure()
}

// iperf is what is read of iperf3's report.
type iperf struct {
	Error string
	End   struct {
		Sent     struct{ Seconds float64 } `json:"sum_sent"`
		Received struct{ Bytes float64 }   `json:"sum_received"`
		CPU      struct {
			Host   float64 `json:"host_total"`
			Remote float64 `json:"remote_total"`
		} `json:"cpu_utilization_percent"`
	}
}

// tcp returns the Gbit that one TCP flow brings into a tap for each second of CPU
// that everything on the way took: iperf3, ksoftirqd, the keepers.
func (w *world) tcp(ctx context.Context, name string) (float64, error) {
	to := w.sides[1]
	server, err := to.guest.Node.Start(ctx, lab.Cmd{Name: "iperf3-" + name, Args: []string{"taskset", "-c", "1", "iperf3", "-s", "-1", "--forceflush"}})
	if err != nil {
		return 0, err
	}
	defer server.Stop(context.WithoutCancel(ctx))
	if err := server.Says(ctx, "Server listening"); err != nil {
		return 0, err
	}
	before := cpu(w.keepers()...)
	out, err := w.sides[0].guest.Node.Run(ctx, "taskset", "-c", "0", "iperf3", "-C", "cubic", "-c", to.nics[tapNIC].addr.String(),
		"-t", strconv.Itoa(int(tcpTime.Seconds())), "-J")
	if err != nil {
		return 0, err
	}
	spent := cpu(w.keepers()...) - before
	var r iperf
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, fmt.Errorf("read iperf3's report: %w", err)
	}
	if r.Error != "" {
		return 0, fmt.Errorf("iperf3: %s", r.Error)
	}
	load := (r.End.CPU.Host + r.End.CPU.Remote) / 100 * r.End.Sent.Seconds
	return r.End.Received.Bytes * 8 / 1e9 / (load + spent.Seconds()), nil
}

// pps returns how many small packets of 1,024 flows arrive for each second of CPU.
func (w *world) pps(ctx context.Context, name string, d time.Duration) (float64, error) {
	a, b := w.sides[0], w.sides[1]
	var via net.HardwareAddr
	switch name {
	case plain:
		via = a.nics[vethNIC].hostMAC
	default:
		via = b.nics[vethNIC].mac
	}
	g, err := newBlast(a.guest.Node, a.nics[vethNIC].guest, b.guest.Node, b.nics[vethNIC].guest,
		a.nics[vethNIC].addr, b.nics[vethNIC].addr, a.nics[vethNIC].mac, via)
	if err != nil {
		return 0, err
	}
	defer g.close()
	return g.run(ctx, d)
}

// disown takes the owner off frames on the sender's wire; see pps.bpf.c.
func disown(s *side) (undo func(), err error) {
	var objs ppsObjects
	if err := loadPpsObjects(&objs, nil); err != nil {
		return nil, err
	}
	var l link.Link
	err = s.host.Do(func() error {
		dev, err := net.InterfaceByName(wire)
		if err != nil {
			return err
		}
		l, err = link.AttachTCX(link.TCXOptions{Program: objs.Disown, Interface: dev.Index, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if err != nil {
		objs.Close()
		return nil, err
	}
	return func() { l.Close(); objs.Close() }, nil
}
