package server_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"replug/directory/server"
	"replug/directory/store"
	"replug/directory/vnet"
)

// Invariant 5, against a model: whatever is put and deleted, and whenever hosts
// and servers come and go, a host in the end knows exactly its own intents, the
// mappings, groups and services of their networks and of their networks' peers,
// and the registered hosts. The world fails on the
// way when an intent comes before its network, or a network goes too early.
func TestModel(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	rapid.Check(t, func(rt *rapid.T) {
		if _, err := e.Client().Delete(t.Context(), store.Root, clientv3.WithPrefix()); err != nil {
			rt.Fatal(err)
		}
		m := &model{t: t, rt: rt, store: s, intents: map[string]vnet.Intent{}, mappings: map[string]vnet.Mapping{}, policy: map[string]policyRow{}, hosts: map[string]bool{}}
		m.serve()
		defer func() { m.site.stop() }()
		for _, name := range []string{"h7", "h9"} {
			h := &modelHost{name: name, world: newWorld(t)}
			m.attached = append(m.attached, h)
			m.attach(h)
			defer func() { h.stop() }()
		}
		rt.Repeat(map[string]func(*rapid.T){
			"change": m.change,
			"host":   m.reconnect,
			"break":  m.breakStreams,
			"server": m.restart,
			"":       m.check,
		})
		if t.Failed() {
			rt.FailNow()
		}
	})
}

type model struct {
	t        *testing.T
	rt       *rapid.T
	store    *store.Store
	site     *site
	intents  map[string]vnet.Intent // by key
	mappings map[string]vnet.Mapping
	policy   map[string]policyRow // groups and services, by key
	hosts    map[string]bool
	epoch    uint64
	revision int64
	attached []*modelHost
}

// A policyRow is a group or a service as the model compares it.
type policyRow struct {
	vni  vnet.VNI
	text string
}

type modelHost struct {
	name  string
	world *world
	stop  func()
}

func (m *model) serve() {
	addr := ""
	if m.site != nil {
		addr = m.site.addr
	}
	// A ring so small that some hosts come back too late for it, and some in time.
	m.site = serve(m.t, server.Options{Store: m.store, Control: quiet{}, Ring: 24}, addr)
}

func (m *model) attach(h *modelHost) {
	_, h.stop = attach(m.t, m.site, h.name, 4, h.world)
}

// change is one transaction of up to five rows.
func (m *model) change(rt *rapid.T) {
	x := new(store.Txn)
	done := map[string]bool{}
	for range rapid.IntRange(1, 5).Draw(rt, "rows") {
		vni := vnet.VNI(0xa1b2c0 + rapid.Uint32Range(1, 4).Draw(rt, "network"))
		host := rapid.SampledFrom([]string{"h7", "h9", "h11"}).Draw(rt, "host")
		m.epoch++
		gone := rapid.IntRange(0, 3).Draw(rt, "gone") == 0
		var key string
		var put func()
		switch rapid.IntRange(0, 6).Draw(rt, "kind") {
		case 0:
			key, put = store.Hosts+host, func() { x.Put(store.Hosts+host, hostInfo(host)); m.hosts[host] = true }
		case 1, 2:
			i := m.anyIntent(rt, host, vni)
			key = store.IntentKey(host, i.Port)
			put = func() { putIntent(x, i); m.intents[key] = i }
		case 3:
			g := vnet.Group{VNI: vni, Name: rapid.SampledFrom([]string{"web", "db"}).Draw(rt, "group"), Slot: 3, Generation: m.epoch}
			key = store.GroupKey(vni, g.Name)
			put = func() { x.Put(key, g); m.policy[key] = policyRow{vni, groupText(g)} }
		case 4:
			s := vnet.Service{VNI: vni, Name: rapid.SampledFrom([]string{"www", "dns"}).Draw(rt, "service"), Protocol: vnet.TCP,
				VIP: mapping(vni, "10.0.0.99", host, 1).CA, Port: uint16(m.epoch%60000) + 1}
			key = store.ServiceKey(vni, s.Name)
			put = func() { x.Put(key, s); m.policy[key] = policyRow{vni, serviceText(s)} }
		default:
			v := mapping(vni, fmt.Sprintf("10.0.0.%d", rapid.IntRange(2, 7).Draw(rt, "ca")), host, m.epoch)
			key = store.MappingKey(vni, v.CA)
			put = func() { putMapping(x, v); m.mappings[key] = v }
		}
		if done[key] {
			continue // etcd takes a key once in a transaction
		}
		done[key] = true
		if gone {
			x.Delete(key)
			delete(m.intents, key)
			delete(m.mappings, key)
			delete(m.policy, key)
			delete(m.hosts, trimHost(key))
		} else {
			put()
		}
	}
	rev, err := m.store.Commit(context.Background(), x)
	if err != nil {
		rt.Fatal(err)
	}
	m.revision = rev
}

// anyIntent may be staging, and may have a peer network.
func (m *model) anyIntent(rt *rapid.T, host string, vni vnet.VNI) vnet.Intent {
	i := intent(host, fmt.Sprintf("p%d-%s", rapid.IntRange(2, 4).Draw(rt, "port"), host), vni, m.epoch)
	other := 0xa1b2c1 + (vni+2)%4
	if rapid.Bool().Draw(rt, "peered") {
		i.Current.Routes = []vnet.Route{{Prefix: netip.MustParsePrefix("10.7.0.0/16"), Peer: 0xa1b2c1 + (vni+1)%4}}
	}
	if rapid.Bool().Draw(rt, "staging") {
		next := i.Current
		next.VNI = other
		i.Next = &next
	}
	return i
}

func groupText(g vnet.Group) string {
	return fmt.Sprintf("group %d %s %d", g.VNI, g.Name, g.Generation)
}
func serviceText(s vnet.Service) string {
	return fmt.Sprintf("service %d %s %d", s.VNI, s.Name, s.Port)
}

func trimHost(key string) string {
	if host, rest := store.Split(store.Hosts, key); rest == "." {
		return host
	}
	return ""
}

func (m *model) reconnect(rt *rapid.T) {
	h := rapid.SampledFrom(m.attached).Draw(rt, "host")
	h.stop()
	h.world.mu.Lock()
	h.world.clear() // the agent was started anew
	h.world.mu.Unlock()
	for range rapid.IntRange(0, 3).Draw(rt, "missed") {
		m.change(rt)
	}
	m.attach(h)
}

// breakStreams ends all streams; hosts keep what they know and come back.
func (m *model) breakStreams(rt *rapid.T) {
	m.site.SetLeader(false, "nobody")
	for range rapid.IntRange(1, 4).Draw(rt, "missed") {
		m.change(rt)
	}
	m.site.SetLeader(true, "s1")
}

func (m *model) restart(rt *rapid.T) {
	m.site.stop()
	for range rapid.IntRange(0, 8).Draw(rt, "missed") {
		m.change(rt)
	}
	m.serve()
}

// check compares now and then, so that changes also pile up.
func (m *model) check(rt *rapid.T) {
	if m.t.Failed() {
		rt.FailNow()
	}
	if rapid.IntRange(0, 2).Draw(rt, "look") > 0 {
		return
	}
	for _, h := range m.attached {
		h.world.until(h.name+" knows what the model knows", func() bool { return h.world.repeated == nil && m.agrees(h) == "" })
	}
}

func (m *model) agrees(h *modelHost) string {
	needs := map[vnet.VNI]bool{}
	intents := map[string]string{}
	for _, i := range m.intents {
		if i.Host == h.name {
			intents[i.Port] = i.Current.Epoch.String()
			maps.Copy(needs, needed(&i))
		}
	}
	var want, got []string
	for port, epoch := range intents {
		want = append(want, "intent "+port+" "+epoch)
	}
	for _, v := range m.mappings {
		if needs[v.VNI] {
			want = append(want, fmt.Sprintf("mapping %d %s %s", v.VNI, v.CA, v.Epoch))
		}
	}
	for _, p := range m.policy {
		if needs[p.vni] {
			want = append(want, p.text)
		}
	}
	for name := range m.hosts {
		want = append(want, "host "+name)
	}
	for port, i := range h.world.intents {
		got = append(got, "intent "+port+" "+i.Current.Epoch.String())
	}
	for _, all := range h.world.mappings {
		for _, v := range all {
			got = append(got, fmt.Sprintf("mapping %d %s %s", v.VNI, v.CA, v.Epoch))
		}
	}
	for _, all := range h.world.groups {
		for _, g := range all {
			got = append(got, groupText(g))
		}
	}
	for _, all := range h.world.services {
		for _, s := range all {
			got = append(got, serviceText(s))
		}
	}
	for name := range maps.Keys(h.world.hosts) {
		got = append(got, "host "+name)
	}
	slices.Sort(want)
	slices.Sort(got)
	if slices.Equal(want, got) && maps.Equal(needs, h.world.synced) {
		return ""
	}
	return fmt.Sprintf("got %q, want %q", got, want)
}

// quiet is a leader that listens to nothing.
type quiet struct{}

func (quiet) HostUp(context.Context, vnet.HostInfo) error { return nil }
func (quiet) HostDown(string)                             {}
func (quiet) Status(vnet.Status)                          {}
func (quiet) Health(string, vnet.Health)                  {}
