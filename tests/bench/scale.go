package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"

	"replug/bpf"
)

const (
	million  = 1_000_000
	thousand = 1_000
	// What disturbs a shared machine lasts for seconds: short rounds, and more of them,
	// share it out among what is compared.
	turns    = 4
	turnTime = ppsTime / turns
)

// scale compares small packets of a host that knows and asks little with those of
// one that knows and asks much.
func scale(ctx context.Context, o Options) (figures []Figure, err error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	for _, s := range w.sides {
		s.mappings = million + 2*thousand
	}
	undo, err := replug(ctx, w)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, undo(context.WithoutCancel(ctx))) }()
	got := measured{}
	if err := w.scaleRules(ctx, o, got); err != nil {
		return nil, err
	}
	load, bytes, err := w.scaleMappings(ctx, o, got)
	if err != nil {
		return nil, err
	}
	cost := func(id, load, few, many string, must float64) Figure {
		f := Figure{ID: id, Unit: "packets/CPU-s", Ours: median(got[load][many]), Against: few, Theirs: median(got[load][few]), Must: fmt.Sprintf("<= %gx", must), Runs: got[load][many]}
		f.Ratio = f.Theirs / f.Ours
		f.OK = f.Ratio <= must
		return f
	}
	return []Figure{
		cost("rules_1000_cost", "rules", "1 rule", "1000 rules", 1.10),
		cost("mappings_1m_cost", "mappings", "1 k mappings", "1 M mappings", 1.25),
		atMost("mappings_1m_load_cpu_s", "CPU s", []float64{load}, median, 1, "", 0),
		atMost("mapping_bytes", "bytes each", []float64{bytes}, median, 110, "", 0),
	}, nil
}

// scaleRules lets the last rule decide, among one and among a thousand.
func (w *world) scaleRules(ctx context.Context, o Options, got measured) error {
	var hosts []*bpf.Datapath
	for _, s := range w.sides {
		err := s.host.Do(func() error {
			d, _, _, _, err := open(s)
			hosts = append(hosts, d)
			return err
		})
		if err != nil {
			return err
		}
		defer hosts[len(hosts)-1].Close()
	}
	for range turns * o.Rounds {
		for _, n := range []int{1, thousand} {
			set := &bpf.RuleSet{}
			for i := range n - 1 {
				set.In = append(set.In, bpf.Rule{ID: uint32(i), Protocol: 17, MinPort: 100, MaxPort: uint16(100 + i)})
			}
			set.In = append(set.In, bpf.Rule{ID: uint32(n), Protocol: 17, MinPort: 9000, MaxPort: 9000})
			for _, d := range hosts {
				if err := d.SetRules(11+vethNIC, set); err != nil {
					return err
				}
			}
			p, err := w.pps(ctx, ours, turnTime)
			if err != nil {
				return err
			}
			got.add("rules", map[int]string{1: "1 rule", thousand: "1000 rules"}[n], p)
		}
	}
	return nil
}

// scaleMappings returns how long a million took to load and what each takes.
func (w *world) scaleMappings(ctx context.Context, o Options, got measured) (load, bytes float64, err error) {
	for _, n := range []int{thousand, million} {
		for _, s := range w.sides {
			err := s.with(func(d *bpf.Datapath, _ int) (err error) {
				if load, err = fill(d, n); err != nil {
					return err
				}
				bytes, err = memoryOf(filepath.Join(pins(s), "maps", "mappings"))
				return err
			})
			if err != nil {
				return 0, 0, err
			}
		}
		for range turns * o.Rounds {
			p, err := w.pps(ctx, ours, turnTime)
			if err != nil {
				return 0, 0, err
			}
			got.add("mappings", map[int]string{thousand: "1 k mappings", million: "1 M mappings"}[n], p)
		}
	}
	return load, bytes, nil
}

// fill writes n mappings behind 250 hosts and returns the CPU time it took, s.
func fill(d *bpf.Datapath, n int) (float64, error) {
	const batch = 8192
	begin := threadCPU()
	for at := 0; at < n; at += batch {
		rows := make([]bpf.Mapping, 0, batch)
		for i := at; i < min(at+batch, n); i++ {
			ca := address(i).As4()
			rows = append(rows, bpf.Mapping{
				MappingKey: bpf.MappingKey{VNI: vni(vethNIC), CA: address(i)},
				PA:         netip.AddrFrom4([4]byte{100, 65, byte(i % 250), 1}), MAC: [6]byte{2, 0x52, ca[0], ca[1], ca[2], ca[3]}, NextHop: 1,
			})
		}
		if err := d.PutMappings(rows...); err != nil {
			return 0, err
		}
	}
	return (threadCPU() - begin).Seconds(), nil
}

// filled is where the addresses of fill are.
var filled = netip.MustParsePrefix("10.128.0.0/9")

// address is the i-th that fill writes.
func address(i int) netip.Addr {
	var ca [4]byte
	binary.BigEndian.PutUint32(ca[:], 10<<24|1<<23|uint32(i))
	return netip.AddrFrom4(ca)
}

// memoryOf returns the kernel memory of a pinned map, for each row it has room for.
func memoryOf(pin string) (float64, error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", pin, err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	n, ok := info.Memlock()
	if !ok {
		return 0, fmt.Errorf("the kernel doesn't say how much memory %s takes", pin)
	}
	return float64(n) / float64(m.MaxEntries()), nil
}
