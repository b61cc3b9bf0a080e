package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"replug/directory/vnet"
)

// The routes of a network are those of the places in it, the newest winning; they
// go with the last one. What an earlier session wrote stays until its ports had
// time to ask for it.
func TestRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTable()
		old := routeKey{0x999999, netip.MustParsePrefix("10.99.0.0/16")}
		kept := routeKey{red, netip.MustParsePrefix("10.23.0.0/16")}
		f.routes[old] = vnet.Route{Prefix: old.prefix}
		f.routes[kept] = vnet.Route{Prefix: kept.prefix, NextHop: netip.MustParseAddr("10.17.34.3")}
		ns := session(t, f, nil)
		go ns.run(t.Context())
		route := func(counter uint64, hop string) *vnet.Place {
			p := place("red", red, "10.17.34.51", counter)
			p.Routes = []vnet.Route{{Prefix: kept.prefix, NextHop: netip.MustParseAddr(hop)}}
			return &p
		}
		elsewhere := place("blue", blue, "10.17.34.62", 9)
		for _, c := range []struct {
			id     vnet.PortID
			places []*vnet.Place
			want   string
		}{
			{23, []*vnet.Place{route(7, "10.17.34.3"), nil}, "10.17.34.3"},
			{29, []*vnet.Place{route(9, "10.17.34.4")}, "10.17.34.4"},
			{31, []*vnet.Place{route(8, "10.17.34.3")}, "10.17.34.4"},
			{29, []*vnet.Place{&elsewhere}, "10.17.34.3"},
			{31, nil, "10.17.34.3"},
			{23, []*vnet.Place{route(7, "10.17.34.3"), &elsewhere}, "10.17.34.3"},
			{23, nil, ""},
			{23, []*vnet.Place{route(11, "10.17.34.5")}, "10.17.34.5"},
		} {
			if err := ns.Use(c.id, c.places...); err != nil {
				t.Fatal(err)
			}
			_, r := f.routed(kept)
			if got := r.NextHop; got.IsValid() && got.String() != c.want || !got.IsValid() && c.want != "" {
				t.Fatalf("port %d at %v: %s, want %s", c.id, c.places, got, c.want)
			}
		}
		ns.OnResync()
		ns.OnSynced(20)
		settle(staleRoutes - time.Second)
		if n, _ := f.routed(kept); n != 2 {
			t.Errorf("%d routes: one went before its ports had time", n)
		}
		settle(2 * time.Second)
		if n, r := f.routed(old); r.Prefix.IsValid() || n != 1 {
			t.Errorf("%d routes left, %v", n, r)
		}
	})
}

// Whatever ports do, the datapath has a route for each prefix that a place has, it
// is one that a place has, and nothing else is remembered.
func TestRoutesModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newTable()
		rs, err := newRoutes(f)
		if err != nil {
			rt.Fatal(err)
		}
		model := map[vnet.PortID][]*vnet.Place{}
		for i := range rapid.IntRange(1, 30).Draw(rt, "steps") {
			id := vnet.PortID(rapid.IntRange(1, 4).Draw(rt, "port"))
			var places []*vnet.Place
			for j := range rapid.IntRange(0, 2).Draw(rt, "places") {
				p := place("red", rapid.SampledFrom([]vnet.VNI{red, blue}).Draw(rt, "vni"), "10.17.34.51", uint64(100*i+j))
				for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 2), 0, 3, rapid.ID).Draw(rt, "routes") {
					p.Routes = append(p.Routes, vnet.Route{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", n)),
						Peer: vnet.VNI(rapid.IntRange(0, 1).Draw(rt, "peer"))})
				}
				places = append(places, &p)
			}
			model[id] = places
			if err := rs.use(id, places); err != nil {
				rt.Fatal(err)
			}
			want := map[routeKey]bool{}
			for _, places := range model {
				for _, p := range places {
					for _, r := range p.Routes {
						want[routeKey{p.VNI, r.Prefix}] = true
					}
				}
			}
			for k, r := range f.routes {
				if !want[k] || !slices.ContainsFunc(flat(model), func(o saidRoute) bool { return o.key == k && o.route == r }) {
					rt.Fatalf("route %v %v: nobody says so", k, r)
				}
			}
			if len(want) != len(f.routes) || len(rs.at) != len(want) {
				rt.Fatalf("%d routes of %d, %d remembered", len(f.routes), len(want), len(rs.at))
			}
		}
	})
}

type saidRoute struct {
	key   routeKey
	route vnet.Route
}

func flat(model map[vnet.PortID][]*vnet.Place) (all []saidRoute) {
	for _, places := range model {
		for _, p := range places {
			for _, r := range p.Routes {
				all = append(all, saidRoute{routeKey{p.VNI, r.Prefix}, r})
			}
		}
	}
	return all
}
