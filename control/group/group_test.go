package group

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"replug/directory/etcd"
	"replug/directory/store"
	"replug/directory/vnet"
)

const red vnet.VNI = 70001

type bench struct {
	*Manager
	t *testing.T
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db, err := etcd.Open(context.Background(), etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &bench{&Manager{Store: store.New(db.Client())}, t}
}

func (b *bench) try(txn *store.Txn, err error) error {
	if err == nil {
		_, err = b.Store.Commit(context.Background(), txn)
	}
	return err
}

func (b *bench) must(txn *store.Txn, err error) {
	b.t.Helper()
	if err := b.try(txn, err); err != nil {
		b.t.Fatal(err)
	}
}

// port writes the intent of a port that is in groups now, and is to be in others.
func (b *bench) port(name string, now, next []string) {
	in := vnet.Intent{Port: name, Host: "h7", Current: vnet.Place{VNI: red, Groups: now}}
	if next != nil {
		in.Next = &vnet.Place{VNI: red, Groups: next}
	}
	b.must((&store.Txn{}).Put(store.IntentKey("h7", name), in), nil)
}

func rule(name string) vnet.Rule {
	return vnet.Rule{Name: name, Priority: 700, Direction: vnet.In, Action: vnet.Allow, Protocol: vnet.TCP, MinPort: 443}
}

func many(n int, d vnet.Direction) []vnet.Rule {
	rules := make([]vnet.Rule, n)
	for i := range rules {
		rules[i] = rule(fmt.Sprint(d, "-", i))
		rules[i].Direction = d
	}
	return rules
}

func nobody(string) error { return nil }

func TestRules(t *testing.T) {
	echo := uint8(8)
	for _, c := range []struct {
		name   string
		change func(*vnet.Rule)
		says   string // what the refusal says; "": none
	}{
		{"as it is", func(*vnet.Rule) {}, ""},
		{"a range", func(r *vnet.Rule) { r.MinPort, r.MaxPort = 7000, 7099 }, ""},
		{"all ports", func(r *vnet.Rule) { r.MinPort = 0 }, ""},
		{"a prefix", func(r *vnet.Rule) { r.Remote = netip.MustParsePrefix("10.17.0.0/16") }, ""},
		{"an IPv6 prefix", func(r *vnet.Rule) { r.Remote = netip.MustParsePrefix("fd17::/48") }, ""},
		{"a group", func(r *vnet.Rule) { r.RemoteGroup = "app" }, ""},
		{"its own group", func(r *vnet.Rule) { r.RemoteGroup = "web" }, ""},
		{"echo", func(r *vnet.Rule) { r.Protocol, r.MinPort, r.ICMPType = vnet.ICMP, 0, &echo }, ""},
		{"no name", func(r *vnet.Rule) { r.Name = "" }, "name"},
		{"priority 0", func(r *vnet.Rule) { r.Priority = 0 }, "1 to 65535"},
		{"sideways", func(r *vnet.Rule) { r.Direction = "sideways" }, "in or out"},
		{"reject", func(r *vnet.Rule) { r.Action = "reject" }, "allow or deny"},
		{"both ends", func(r *vnet.Rule) { r.Remote, r.RemoteGroup = netip.MustParsePrefix("10.17.0.0/16"), "app" }, "two rules"},
		{"an unknown group", func(r *vnet.Rule) { r.RemoteGroup = "ghosts" }, "no group ghosts"},
		{"host bits", func(r *vnet.Rule) { r.Remote = netip.MustParsePrefix("10.17.34.9/16") }, "write 10.17.0.0/16"},
		{"ICMP of IPv6", func(r *vnet.Rule) {
			r.Protocol, r.MinPort, r.Remote = vnet.ICMP, 0, netip.MustParsePrefix("fd17::/48")
		}, "icmpv6 of IPv6"},
		{"ports of ICMP", func(r *vnet.Rule) { r.Protocol = vnet.ICMP }, "no ports"},
		{"backwards", func(r *vnet.Rule) { r.MinPort, r.MaxPort = 7099, 7000 }, "7099-7000"},
		{"from 0", func(r *vnet.Rule) { r.MinPort, r.MaxPort = 0, 7000 }, "0-7000"},
		{"ICMP type of TCP", func(r *vnet.Rule) { r.ICMPType = &echo }, "no ICMP type"},
	} {
		r := rule("https")
		c.change(&r)
		got, err := complete([]vnet.Rule{r}, map[string]bool{"web": true, "app": true})
		if (err == nil) != (c.says == "") || err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v; want it to say %q", c.name, err, c.says)
		}
		if err == nil && got[0].MaxPort < got[0].MinPort {
			t.Errorf("%s: ports %d-%d", c.name, got[0].MinPort, got[0].MaxPort)
		}
	}
	if _, err := complete([]vnet.Rule{rule("a"), rule("b"), rule("a")}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name twice: %v", err)
	}
	for n, want := range map[int]error{1000: nil, 1001: ErrExhausted} {
		if _, err := complete(append(many(n, vnet.Out), rule("in")), nil); !errors.Is(err, want) {
			t.Errorf("%d rules: %v, want %v", n, err, want)
		}
	}
}

// Slots are given once, as many as a mapping has bits for, and one that was given back
// is the last to be given again, by a new leader too: a host that was cut off still has
// rules by it.
func TestSlots(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	for i := range vnet.MaxGroups {
		b.must(b.Create(ctx, red, fmt.Sprintf("g%02d", i), nil))
	}
	if _, err := b.Create(ctx, red, "late", nil); !errors.Is(err, ErrExhausted) {
		t.Errorf("one group too many: %v", err)
	}
	if _, err := b.Create(ctx, red, "g07", nil); !errors.Is(err, ErrExists) {
		t.Errorf("a name twice: %v", err)
	}
	slotOf := func(v vnet.VNI, name string) uint8 {
		t.Helper()
		g, err := b.Get(ctx, v, name)
		if err != nil {
			t.Fatal(err)
		}
		return g.Value.Slot
	}
	for i, name := range []string{"late", "later", "latest"} {
		b.must(b.Create(ctx, 70002, name, nil))
		if got := slotOf(70002, name); int(got) != i {
			t.Errorf("%s has slot %d, want %d", name, got, i)
		}
		if i == 1 {
			b.Manager = &Manager{Store: b.Store}
		}
		b.must(b.Delete(ctx, 70002, name, nobody))
	}
	b.must(b.Delete(ctx, red, "g23", nobody))
	one, err := b.Create(ctx, red, "late", nil)
	other, err2 := b.Create(ctx, red, "later", nil)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	b.must(one, nil)
	if err := b.try(other, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("two who take the same slot: %v", err)
	}
	_, slots, _, err := b.Resolve(ctx, red, []string{"late", "g62", "g00", "late"})
	if err != nil || slots != 1<<23|1<<62|1 {
		t.Errorf("slots %b, %v", slots, err)
	}
}

// Rules are replaced whole, with a new generation, and never so many that a port in
// the group has too many.
func TestSetRules(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.must(b.Create(ctx, red, "web", many(600, vnet.In)))
	b.must(b.Create(ctx, red, "app", many(300, vnet.In)))
	b.port("p7", []string{"app", "web"}, nil)
	b.must(b.SetRules(ctx, red, "app", many(400, vnet.In)))
	g, err := b.Get(ctx, red, "app")
	if err != nil || g.Value.Generation != 2 || len(g.Value.Rules) != 400 || g.Value.Slot != 1 {
		t.Errorf("group %d of slot %d, %d rules, %v", g.Value.Generation, g.Value.Slot, len(g.Value.Rules), err)
	}
	if _, err := b.SetRules(ctx, red, "app", many(401, vnet.In)); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "p7") {
		t.Errorf("1,001 rules on a port: %v", err)
	}
	b.must(b.SetRules(ctx, red, "app", append(many(400, vnet.In), many(1000, vnet.Out)...)))
	if _, err := b.SetRules(ctx, red, "ghosts", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("rules of no group: %v", err)
	}
	b.must(b.Create(ctx, red, "big", many(700, vnet.In)))
	if _, _, _, err := b.Resolve(ctx, red, []string{"big", "app"}); !errors.Is(err, ErrExhausted) {
		t.Errorf("a port in groups of 1,100 rules: %v", err)
	}
	// Who is put into a group while its rules change does so by what they were.
	_, _, conds, err := b.Resolve(ctx, red, []string{"web"})
	if err != nil {
		t.Fatal(err)
	}
	b.must(b.SetRules(ctx, red, "web", nil))
	if err := b.try(conds.Put("/replug/x", 7), nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("resolved before the rules changed: %v", err)
	}
}

// A group that somebody refers to stays.
func TestDelete(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	for _, name := range []string{"now", "next", "named", "held", "free"} {
		b.must(b.Create(ctx, red, name, nil))
	}
	r := rule("from")
	r.RemoteGroup = "named"
	b.must(b.SetRules(ctx, red, "free", []vnet.Rule{r}))
	b.port("p7", []string{"now"}, []string{"next"})
	held := func(name string) error {
		if name == "held" {
			return errors.New("swap sw-7 may come back")
		}
		return nil
	}
	for name, says := range map[string]string{"now": "port p7", "next": "port p7", "named": "rule from of group free", "held": "sw-7"} {
		if _, err := b.Delete(ctx, red, name, held); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), says) {
			t.Errorf("delete %s: %v; want it to say %q", name, err, says)
		}
	}
	// A swap that takes its port out while that is asked, and may bring it back, is missed by neither look.
	b.port("p8", []string{"held"}, nil)
	switched := func(string) error { b.port("p8", nil, nil); return nil }
	if err := b.try(b.Delete(ctx, red, "held", switched)); !errors.Is(err, ErrInUse) && !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete while a swap leaves: %v", err)
	}
	gone, err := b.Delete(ctx, red, "free", held)
	if err != nil {
		t.Fatal(err)
	}
	b.port("p9", []string{"free"}, nil)
	if err := b.try(gone, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete after somebody came in: %v", err)
	}
	if m, err := b.Members(ctx, red); err != nil || fmt.Sprint(m) != "map[free:[p9] next:[p7] now:[p7]]" {
		t.Errorf("members %v, %v", m, err)
	}
}
