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
	tcp, pps := make(map[string][]float64), make(map[string][]float64)
	for range o.Rounds {
		for _, v := range variants {
			if err := w.round(ctx, v, tcp, pps); err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	return []Figure{
		atLeast("tcp_tap_vs_plain", "Gbit/CPU-s", tcp[ours], plain, tcp[plain], 0.85),
		atLeast("tcp_tap_vs_vxlan", "Gbit/CPU-s", tcp[ours], vxlan, tcp[vxlan], 0.95),
		atLeast("pps_vs_plain", "packets/CPU-s", pps[ours], plain, pps[plain], 0.95),
		atLeast("pps_vs_vxlan", "packets/CPU-s", pps[ours], vxlan, pps[vxlan], 2.1),
	}, nil
}

func (w *world) round(ctx context.Context, v variant, tcp, pps map[string][]float64) (err error) {
	undo, err := v.up(ctx, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo(context.WithoutCancel(ctx))) }()
	g, err := w.tcp(ctx, fmt.Sprint(len(tcp[v.name]), "-", strings.Fields(v.name)[0]))
	if err != nil {
		return err
	}
	p, err := w.pps(ctx, v.name)
	tcp[v.name], pps[v.name] = append(tcp[v.name], g), append(pps[v.name], p)
	return err
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
func (w *world) pps(ctx context.Context, name string) (float64, error) {
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
	return g.run(ctx, ppsTime)
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
