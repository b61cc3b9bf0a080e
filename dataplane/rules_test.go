package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"replug/directory/vnet"
)

func allow(name string, priority uint16, d vnet.Direction) vnet.Rule {
	return vnet.Rule{Name: name, Priority: priority, Direction: d, Action: vnet.Allow, Protocol: vnet.TCP, MinPort: 443, MaxPort: 444}
}

func deny(name string, priority uint16, d vnet.Direction) vnet.Rule {
	r := allow(name, priority, d)
	r.Action = vnet.Deny
	return r
}

func grouped(vni vnet.VNI, names ...string) *vnet.Place {
	return &vnet.Place{Network: "red", VNI: vni, Groups: names}
}

// named lists rules as the operator knows them.
func (gs *groups) named(rules []Rule) []string {
	var out []string
	for _, r := range rules {
		n, _ := gs.name(r.ID)
		out = append(out, n.Group+"/"+n.Rule)
	}
	return out
}

// The rules of all groups of a port decide in one order: by priority, and of two
// with the same one deny does.
func TestRulesInOrder(t *testing.T) {
	gs := newGroups()
	icmp := uint8(8)
	gs.put(vnet.Group{VNI: red, Name: "web", Slot: 7, Rules: []vnet.Rule{
		allow("https", 200, vnet.In), allow("late", 900, vnet.In), allow("out", 50, vnet.Out),
		{Name: "from db", Priority: 300, Direction: vnet.In, Action: vnet.Allow, RemoteGroup: "db", Remote: netip.MustParsePrefix("10.17.0.0/16")},
		{Name: "ping", Priority: 20, Direction: vnet.In, Action: vnet.Allow, Protocol: vnet.ICMP, ICMPType: &icmp},
	}})
	gs.put(vnet.Group{VNI: red, Name: "base", Slot: 9, Rules: []vnet.Rule{
		deny("not here", 200, vnet.In), deny("nobody", 40, vnet.Out),
		{Name: "lost", Priority: 1, Direction: vnet.In, Action: vnet.Allow, RemoteGroup: "nobody's"},
	}})
	gs.put(vnet.Group{VNI: blue, Name: "web", Slot: 7, Rules: []vnet.Rule{allow("blue", 1, vnet.In)}})
	if _, err := gs.rules(grouped(red, "web")); !errors.Is(err, errGroups) {
		t.Errorf("before all groups are there: %v", err)
	}
	gs.loaded(red, func(string) bool { return true })
	set, err := gs.rules(grouped(red, "web", "base", "web", "unknown"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := gs.named(set.In), []string{"web/ping", "base/not here", "web/https", "web/late"}; !slices.Equal(got, want) {
		t.Errorf("in %q, want %q", got, want)
	}
	if got, want := gs.named(set.Out), []string{"base/nobody", "web/out"}; !slices.Equal(got, want) {
		t.Errorf("out %q, want %q", got, want)
	}
	if r := set.In[0]; r.ICMPType != 8 || r.Group != -1 || r.Protocol != vnet.ICMP || r.Deny {
		t.Errorf("ping: %+v", r)
	}
	if r := set.In[1]; !r.Deny || r.MinPort != 443 || r.MaxPort != 444 || r.ICMPType != -1 {
		t.Errorf("deny: %+v", r)
	}
	gs.put(vnet.Group{VNI: red, Name: "db", Slot: 33})
	set, _ = gs.rules(grouped(red, "web"))
	if r := set.In[2]; r.Group != 33 || r.Remote.String() != "10.17.0.0/16" {
		t.Errorf("the other end's group came later: %+v", set.In)
	}
	if none, err := gs.rules(grouped(0x999999)); err != nil || !none.Open {
		t.Errorf("in no group: %+v, %v", none, err)
	}
	if set, err := gs.rules(grouped(red, "unknown")); err != nil || set.Open || len(set.In) != 0 {
		t.Errorf("in a group that isn't there everything passes: %+v, %v", set, err)
	}
}

// A set is the same pointer as long as it says the same, and too many rules are
// refused with the reason.
func TestRulesetIsShared(t *testing.T) {
	gs := newGroups()
	gs.loaded(red, func(string) bool { return true })
	web := vnet.Group{VNI: red, Name: "web", Rules: []vnet.Rule{allow("https", 200, vnet.In)}}
	gs.put(web)
	first, _ := gs.rules(grouped(red, "web"))
	gs.put(vnet.Group{VNI: red, Name: "db", Rules: []vnet.Rule{allow("sql", 200, vnet.In)}})
	if second, _ := gs.rules(grouped(red, "web")); second != first {
		t.Error("another group's rules changed this set")
	}
	if both, _ := gs.rules(grouped(red, "db", "web")); both == first || len(both.In) != 2 {
		t.Errorf("two groups: %+v", both)
	}
	web.Rules = nil
	for i := range vnet.MaxRules + 1 {
		web.Rules = append(web.Rules, allow(fmt.Sprint("r", i), 200, vnet.In))
	}
	gs.put(web)
	if _, err := gs.rules(grouped(red, "web")); !errors.Is(err, errRules) {
		t.Errorf("%d rules: %v", len(web.Rules), err)
	}
}

// A rule's id names it after an edit that removed it, and after a restart; names
// of what is long gone aren't kept.
func TestRuleNames(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := newGroups(), newGroups()
		b.loaded(red, func(string) bool { return true })
		a.loaded(red, func(string) bool { return true })
		var before []Rule
		for range rapid.IntRange(1, 6).Draw(rt, "edits") {
			g := vnet.Group{VNI: red, Name: "web"}
			for i := range rapid.IntRange(0, 5).Draw(rt, "rules") {
				if rapid.Bool().Draw(rt, "there") {
					g.Rules = append(g.Rules, allow(fmt.Sprint("r", i), uint16(100+i), vnet.In))
				}
			}
			a.put(g)
			for _, r := range before {
				if n, ok := a.name(r.ID); !ok || n.Group != "web" {
					rt.Fatalf("rule %d of the set before has no name", r.ID)
				}
			}
			set, _ := a.rules(grouped(red, "web"))
			before = set.In
			b.drop(func(vnet.VNI) bool { return false }) // another session begins
			b.loaded(red, func(string) bool { return true })
			b.put(g)
			if again, _ := b.rules(grouped(red, "web")); !slices.Equal(again.In, set.In) {
				rt.Fatalf("after a restart %+v, was %+v", again.In, set.In)
			}
		}
		a.gone(red, "web")
		if len(a.names) != 0 {
			rt.Fatalf("names are kept for ever: %v", a.names)
		}
	})
}

// The rules of the new network come with its row; edits reach the row in force;
// limits need no flip.
func TestRulesOfAPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		web := vnet.Group{VNI: red, Name: "web", Rules: []vnet.Rule{allow("https", 200, vnet.In)}}
		w.groups.put(web)
		w.groups.put(vnet.Group{VNI: blue, Name: "web", Rules: []vnet.Rule{allow("a", 1, vnet.In), allow("b", 2, vnet.In)}})
		in := intent()
		in.Current.Groups = []string{"web"}
		in.Limits.From.Bits = 7_000_000
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		w.inOrder("row 23 3.7 vni 0xabcdef", "limits 23 from 7000000")
		if r := w.rules[23]; r == nil || len(r.In) != 1 {
			t.Fatalf("first place under %+v", r)
		}

		web.Rules = append(web.Rules, deny("ssh", 5, vnet.Out))
		w.groups.put(web)
		ps.kickIn(red)
		settle(time.Second)
		w.inOrder("row 23 3.7 vni 0xabcdef", "rules 23 in 1 out 1")

		in.Limits.From.Bits = 0
		ps.set(in)
		settle(time.Second)
		w.inOrder("rules 23 in 1 out 1", "limits 23 from 0")

		in = prepared(in)
		in.Next.Groups = []string{"web"}
		ps.set(in)
		settle(time.Second)
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		if r := w.rules[23]; len(r.In) != 2 || w.rows[23].Rules != r {
			t.Errorf("in blue under %+v", r)
		}
		rules := 0
		for _, act := range w.acts {
			if len(act) > 5 && act[:5] == "rules" {
				rules++
			}
		}
		if rules != 1 {
			t.Errorf("rules written apart from rows %d times, want once: %q", rules, w.acts)
		}
	})
}

// Who comes into a group that the rules name, or leaves it, has the flows of the
// port judged again, by the same rules; another group's members don't.
func TestGroupsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		byGroup := vnet.Rule{Name: "from-db", Priority: 9, Direction: vnet.In, Action: vnet.Allow, RemoteGroup: "db"}
		w.groups.put(vnet.Group{VNI: red, Name: "db", Slot: 6})
		w.groups.put(vnet.Group{VNI: red, Name: "web", Slot: 1, Rules: []vnet.Rule{byGroup}})
		in := intent()
		in.Current.Groups = []string{"web"}
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		count := func() (n, rules int) {
			for _, a := range w.acts {
				if a == "rejudge 23" {
					n++
				}
				if a[:5] == "rules" {
					rules++
				}
			}
			return n, rules
		}
		for i, move := range []vnet.Groups{0, vnet.Groups(0).With(1), vnet.Groups(0).With(6), vnet.Groups(0).With(6).With(1)} {
			w.groups.moved(red, move)
			ps.kickIn(red)
			settle(time.Second)
			if n, rules := count(); n != max(i-1, 0) || rules != 0 {
				t.Errorf("after move %d, of groups %b: judged again %d times, rules written %d times; want %d and none", i, move, n, rules, max(i-1, 0))
			}
		}
	})
}

// An agent that starts while no server is there leaves the rules in force as they
// are, and the port's leases go on.
func TestRulesWithoutAServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.groups.put(vnet.Group{VNI: red, Name: "web", Rules: []vnet.Rule{allow("https", 200, vnet.In)}})
		in := intent()
		in.Current.Groups = []string{"web"}
		w.guestAt(in, "10.17.34.51")
		w.begin().set(in)
		settle(time.Second)
		w.end()
		w.acts, w.groups = nil, newGroups()
		ps := w.begin()
		settle(time.Second)
		if place, _, _, ok := ps.get(23).inForce(); !ok || place.Epoch != in.Current.Epoch {
			t.Fatal("no leases while no server is there")
		}
		if len(w.rules[23].In) != 1 || slices.ContainsFunc(w.acts, func(a string) bool { return a[:3] == "rul" || a[:3] == "lim" }) {
			t.Errorf("rules %+v after %q", w.rules[23], w.acts)
		}
		w.groups.loaded(red, func(string) bool { return true })
		w.groups.put(vnet.Group{VNI: red, Name: "web", Rules: []vnet.Rule{allow("https", 200, vnet.In), allow("ssh", 7, vnet.In)}})
		ps.set(in)
		settle(time.Second)
		if len(w.rules[23].In) != 2 {
			t.Errorf("with a server: %+v", w.rules[23])
		}
	})
}

// An edit that makes too many rules leaves those in force, says so, and holds
// nothing else up.
func TestTooManyRulesLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		web := vnet.Group{VNI: red, Name: "web", Rules: []vnet.Rule{allow("https", 200, vnet.In)}}
		w.groups.put(web)
		in := intent()
		in.Current.Groups = []string{"web"}
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		few := web.Rules
		for i := range vnet.MaxRules {
			web.Rules = append(web.Rules, allow(fmt.Sprint("r", i), 200, vnet.In))
		}
		w.groups.put(web)
		ps.kickIn(red)
		settle(time.Second)
		if s := w.last(in.Current.Epoch); s.Error == "" || len(w.rules[23].In) != 1 {
			t.Errorf("%d rules in force, status %+v", len(w.rules[23].In), s)
		}
		in = prepared(in)
		ps.set(in)
		settle(time.Minute)
		in = switched(in)
		ps.set(in)
		settle(time.Second)
		if s := w.last(in.Current.Epoch); s.Phase != vnet.StatusConfirmed || !w.rules[23].Open {
			t.Errorf("a swap away from there: %+v", s)
		}
		web.Rules = few
		w.groups.put(web)
	})
}

// A place whose groups have too many rules is refused before it has any effect.
func TestTooManyRulesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		big := vnet.Group{VNI: blue, Name: "big"}
		for i := range vnet.MaxRules + 1 {
			big.Rules = append(big.Rules, allow(fmt.Sprint("r", i), 200, vnet.Out))
		}
		w.groups.put(big)
		in := intent()
		w.guestAt(in, "10.17.34.51")
		ps := w.begin()
		ps.set(in)
		settle(time.Second)
		in = prepared(in)
		in.Next.Groups = []string{"big"}
		ps.set(in)
		settle(time.Second)
		if s := w.last(in.Next.Epoch); s.Phase != vnet.StatusRefused || s.Error == "" {
			t.Errorf("got %+v", s)
		}
	})
}
