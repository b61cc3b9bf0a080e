package dataplane

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
	red, blue := account{"acme", "red"}, account{"acme", "blue"}
	here := map[vnet.PortID]account{7: red}
	a.tally = func(id vnet.PortID) (Tally, error) { return tallies[id], nil }
	a.here = func() map[vnet.PortID]account { return here }
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
	tallies[9], here[9] = Tally{FromPackets: 4, FromBytes: 44}, red
	a.all()
	is("grown", "bytes(acme from red)=254 bytes(acme red to)=370 drops(acme red)=2 packets(acme from red)=7 packets(acme red to)=5")

	tallies[7] = Tally{FromPackets: 913, FromBytes: 90210, ToPackets: 5, ToBytes: 370, Drops: 2}
	a.leave(7, red)
	here[7] = blue
	tallies[7] = Tally{FromPackets: 914, FromBytes: 90210, ToPackets: 5, ToBytes: 370, Drops: 2}
	a.all()
	is("swapped", "bytes(acme from red)=254 bytes(acme red to)=370 drops(acme red)=2 packets(acme blue from)=1 packets(acme from red)=17 packets(acme red to)=5")

	delete(here, 9)
	a.gone(9)
	a.all()
	is("red has left", "packets(acme blue from)=1")
	tallies[9], here[9] = Tally{FromPackets: 3}, account{"bob", "blue"}
	a.all()
	is("another tenant's network of the same name, the id of another port", "packets(acme blue from)=1 packets(blue bob from)=3")
	delete(here, 7)
	a.all()
	is("only that one is left", "packets(blue bob from)=3")
}

// A port has its series from when it is in force, through swaps, until it leaves; one
// whose tally can't be read costs the others nothing.
func TestPortCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.guestAt(intent(), "10.17.34.51")
		ps := w.begin()
		other := map[string]vnet.PortID{"acme.web-9": 99, "acme.gone": 77}
		tallies := map[vnet.PortID]Tally{
			23: {FromPackets: 11, FromBytes: 1234, ToPackets: 12, ToBytes: 5678, Drops: 13},
			99: {FromPackets: 21, FromBytes: 2345, ToPackets: 22, ToBytes: 6789, Drops: 23},
		}
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(portCounters{func(id vnet.PortID) (Tally, error) {
			if tally, ok := tallies[id]; ok {
				return tally, nil
			}
			return Tally{Drops: 7}, errors.New("no such port")
		}, func() map[string]vnet.PortID {
			all := ps.inForce()
			stdmaps.Copy(all, other)
			return all
		}})
		const nine = "bytes(acme.web-9 from)=2345 bytes(acme.web-9 to)=6789 drops(acme.web-9)=23 packets(acme.web-9 from)=21 packets(acme.web-9 to)=22"
		is := func(when, want string) {
			t.Helper()
			if got := counters(t, r, "replug_port_"); got != want {
				t.Errorf("%s: %s, want %s", when, got, want)
			}
		}
		is("nothing is plugged", nine)
		in := intent()
		ps.set(in)
		settle(time.Second)
		const both = "bytes(acme.web-9 from)=2345 bytes(acme.web-9 to)=6789 bytes(from p-17)=1234 bytes(p-17 to)=5678" +
			" drops(acme.web-9)=23 drops(p-17)=13" +
			" packets(acme.web-9 from)=21 packets(acme.web-9 to)=22 packets(from p-17)=11 packets(p-17 to)=12"
		is("plugged", both)
		in = prepared(in)
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		is("swapped", both)
		in.Gone = true
		ps.set(in)
		settle(time.Second)
		is("detached", nine)
	})
}
