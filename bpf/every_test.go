package bpf

import (
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Whatever kernel this runs on: each program of the datapath is attached where it
// belongs and frames go through it, so that nothing is left for a customer to
// find out. A program that is new here needs traffic of its own in this test.
func TestEveryProgramRuns(t *testing.T) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatalf("count runs of programs: %v", err)
	}
	defer stats.Close()
	a, b := newMachines(t)
	client, _ := a.add(redA, a, b)
	server, _ := b.add(redB, a, b)

	b.in(func() error { return b.dp.AttachNIC(b.uplink) })
	fetchOver(t, client, server)
	askMetadata(t, a, client)
	if err := a.dp.SetNextHop(7, NextHop{Ifindex: a.uplink, Dst: routerMAC, Src: routerMAC}); err != nil {
		t.Error(err)
	}
	if _, err := a.dp.Sweep(nil, nil); err != nil {
		t.Error(err)
	}
	runs := map[string]uint64{}
	for _, m := range []*machine{a, b} {
		for name, p := range programs(m.dp) {
			s, err := p.Stats()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			runs[name] += s.RunCount
		}
	}
	t.Logf("runs: %v", runs)
	for name, n := range runs {
		if n == 0 {
			t.Errorf("%s is loaded, but no frame has gone through it", name)
		}
	}
}

// programs returns all that the datapath has loaded, by their names in C.
func programs(d *Datapath) map[string]*ebpf.Program {
	all := map[string]*ebpf.Program{}
	of := reflect.ValueOf(d.objs.datapathPrograms)
	for i := range of.NumField() {
		all[of.Type().Field(i).Tag.Get("ebpf")] = of.Field(i).Interface().(*ebpf.Program)
	}
	return all
}

// fetchOver sends enough of TCP for frames to be aggregated on their way.
func fetchOver(t *testing.T, client, server *room) {
	t.Helper()
	data := text(1 << 20)
	l := server.listen(netip.AddrPortFrom(caB, 7946))
	go func() { _ = serve(l, data) }()
	got, err := fetch(client.dial(netip.AddrPortFrom(caB, 7946)))
	if err != nil || len(got) != len(data) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(data))
	}
}

func askMetadata(t *testing.T, host *machine, guest *room) {
	t.Helper()
	var l net.Listener
	host.in(func() (err error) { l, err = net.Listen("tcp4", "169.254.169.254:80"); return err })
	t.Cleanup(func() { _ = l.Close() })
	go func() { _ = serve(l, text(97)) }()
	if got, err := fetch(guest.dial(netip.AddrPortFrom(imds, 80))); err != nil || len(got) != 97 {
		t.Errorf("metadata: got %d bytes, %v, want 97", len(got), err)
	}
}
