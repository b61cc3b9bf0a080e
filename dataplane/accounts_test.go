package dataplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

// counters lists what a registry has of some metrics.
func counters(t *testing.T, r *prometheus.Registry, prefix string) string {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range all {
		for _, m := range f.Metric {
			if strings.HasPrefix(f.GetName(), prefix) && m.GetCounter().GetValue() != 0 {
				var labels []string
				for _, l := range m.Label {
					labels = append(labels, l.GetValue())
				}
				slices.Sort(labels)
				out = append(out, fmt.Sprintf("%s(%s)=%.0f", strings.TrimSuffix(strings.TrimPrefix(f.GetName(), prefix), "_total"),
					strings.Join(labels, " "), m.GetCounter().GetValue()))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// What a port does counts for the network it is in meanwhile; a restart counts
// nothing twice; networks that have left the host are not shown for ever.
func TestAccounts(t *testing.T) {
	r := prometheus.NewRegistry()
	a := newAccounts(r)
	tallies := map[vnet.PortID]Tally{7: {FromPackets: 900, FromBytes: 90000}}
	here := map[vnet.PortID]vnet.Moniker{7: "red"}
	a.tally = func(id vnet.PortID) (Tally, error) { return tallies[id], nil }
	a.here = func() map[vnet.PortID]vnet.Moniker { return here }
	is := func(when, want string) {
		t.Helper()
		if got := counters(t, r, "replug_network_"); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	a.begin([]vnet.PortID{7})
	a.all()
	is("adopted", "")
	tallies[7] = Tally{FromPackets: 903, FromBytes: 90210, ToPackets: 5, ToBytes: 370, Drops: 2}
	tallies[9], here[9] = Tally{FromPackets: 4, FromBytes: 44}, "red"
	a.all()
	is("grown", "bytes(from red)=254 bytes(red to)=370 drops(red)=2 packets(from red)=7 packets(red to)=5")

	tallies[7] = Tally{FromPackets: 913, FromBytes: 90210, ToPackets: 5, ToBytes: 370, Drops: 2}
	a.leave(7, "red")
	here[7] = "blue"
	tallies[7] = Tally{FromPackets: 914, FromBytes: 90210, ToPackets: 5, ToBytes: 370, Drops: 2}
	a.all()
	is("swapped", "bytes(from red)=254 bytes(red to)=370 drops(red)=2 packets(blue from)=1 packets(from red)=17 packets(red to)=5")

	delete(here, 9)
	a.gone(9)
	a.all()
	is("red has left", "packets(blue from)=1")
	tallies[9], here[9] = Tally{FromPackets: 3}, "blue"
	a.all()
	is("the id of another port", "packets(blue from)=4")
}
