package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"

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
	hosts, err := w.open()
	for _, d := range hosts {
		defer d.Close()
	}
	if err != nil {
		return nil, err
	}
	got := measured{}
	if err := w.scaleRules(ctx, o, hosts, got); err != nil {
		return nil, err
	}
	loads, bytes, err := w.scaleMappings(ctx, o, hosts, got)
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
		atMost("mappings_1m_load_cpu_s", "CPU s", loads, median, 1, "", 0),
		atMost("mapping_bytes", "bytes each", []float64{bytes}, median, 110, "", 0),
	}, nil
}

// open opens the datapaths in force on both hosts.
func (w *world) open() (hosts []*bpf.Datapath, err error) {
	for _, s := range w.sides {
		err := s.host.Do(func() error {
			d, _, _, _, err := open(s)
			if err == nil {
				hosts = append(hosts, d)
			}
			return err
		})
		if err != nil {
			return hosts, err
		}
	}
	return hosts, nil
}

// scaleRules lets the last rule decide, among one and among a thousand.
func (w *world) scaleRules(ctx context.Context, o Options, hosts []*bpf.Datapath, got measured) error {
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

// scaleMappings fills and empties the table in turns. It returns how long a million
// took to load, each time and host, and what each takes.
func (w *world) scaleMappings(ctx context.Context, o Options, hosts []*bpf.Datapath, got measured) (loads []float64, bytes float64, err error) {
	for _, d := range hosts {
		if _, err := fill(d, 0, thousand); err != nil {
			return nil, 0, err
		}
	}
	measure := func(n string) error {
		for range turns {
			p, err := w.pps(ctx, ours, turnTime)
			if err != nil {
				return err
			}
			got.add("mappings", n, p)
		}
		return nil
	}
	for range o.Rounds {
		if err := measure("1 k mappings"); err != nil {
			return nil, 0, err
		}
		for _, d := range hosts {
			load, err := fill(d, thousand, million)
			if err != nil {
				return nil, 0, err
			}
			loads = append(loads, load)
		}
		if err := measure("1 M mappings"); err != nil {
			return nil, 0, err
		}
		for _, d := range hosts {
			if err := empty(d, thousand, million); err != nil {
				return nil, 0, err
			}
		}
	}
	bytes, err = memoryOf(filepath.Join(pins(w.sides[0]), "maps", "mappings"))
	return loads, bytes, err
}

const mappingBatch = 8192

// fill writes the mappings of addresses from one number to another, behind 250 hosts,
// and returns the CPU time it took, s.
func fill(d *bpf.Datapath, from, to int) (float64, error) {
	runtime.LockOSThread() // whose CPU time it is
	defer runtime.UnlockOSThread()
	begin := threadCPU()
	for at := from; at < to; at += mappingBatch {
		rows := make([]bpf.Mapping, 0, mappingBatch)
		for i := at; i < min(at+mappingBatch, to); i++ {
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

// empty takes them away again.
func empty(d *bpf.Datapath, from, to int) error {
	for at := from; at < to; at += mappingBatch {
		keys := make([]bpf.MappingKey, 0, mappingBatch)
		for i := at; i < min(at+mappingBatch, to); i++ {
			keys = append(keys, bpf.MappingKey{VNI: vni(vethNIC), CA: address(i)})
		}
		if err := d.DeleteMappings(keys...); err != nil {
			return err
		}
	}
	return nil
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
