package server_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"replug/directory/vnet"
)

// A world is what a host knows: the handler every test uses. It fails the test on
// a message that breaks the order the protocol promises.
type world struct {
	t testing.TB

	mu       sync.Mutex
	intents  map[string]vnet.Intent
	mappings map[vnet.VNI]map[vnet.CA]vnet.Mapping
	groups   map[vnet.VNI]map[string]vnet.Group
	services map[vnet.VNI]map[string]vnet.Service
	synced   map[vnet.VNI]bool
	hosts    map[string]vnet.HostInfo
	repeated map[string]bool // while everything is repeated: what was
	resyncs  int
	revision int64
	events   []string
	moved    chan struct{}
	block    chan struct{} // OnMapping waits for it, if there
}

func newWorld(t testing.TB) *world {
	return &world{t: t, intents: map[string]vnet.Intent{}, mappings: map[vnet.VNI]map[vnet.CA]vnet.Mapping{},
		groups: map[vnet.VNI]map[string]vnet.Group{}, services: map[vnet.VNI]map[string]vnet.Service{},
		synced: map[vnet.VNI]bool{}, hosts: map[string]vnet.HostInfo{}, moved: make(chan struct{})}
}

func (w *world) note(format string, args ...any) {
	e := fmt.Sprintf(format, args...)
	w.events = append(w.events, e)
	if w.repeated != nil {
		w.repeated[e] = true
	}
}

// clear forgets everything, as an agent does that is started anew.
func (w *world) clear() {
	clear(w.intents)
	clear(w.mappings)
	clear(w.groups)
	clear(w.services)
	clear(w.hosts)
	clear(w.synced)
	w.revision, w.repeated = 0, nil
}

func (w *world) OnResync() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("resync")
	w.resyncs++
	w.repeated = map[string]bool{}
	clear(w.synced)
}

func (w *world) OnIntent(i vnet.Intent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("intent %s", i.Port)
	for v := range needed(&i) {
		if !w.synced[v] {
			w.t.Errorf("intent %s came before its network %d: %v", i.Port, v, w.events)
		}
	}
	if old, ok := w.intents[i.Port]; ok && old.Current.Epoch > i.Current.Epoch && w.repeated == nil {
		w.t.Errorf("intent %s went back from epoch %s to %s", i.Port, old.Current.Epoch, i.Current.Epoch)
	}
	w.intents[i.Port] = i
}

// needed are the networks of an intent, by the model's own reading.
func needed(i *vnet.Intent) map[vnet.VNI]bool {
	all := map[vnet.VNI]bool{i.Current.VNI: true}
	routes := i.Current.Routes
	if i.Next != nil {
		all[i.Next.VNI] = true
		routes = append(routes[:len(routes):len(routes)], i.Next.Routes...)
	}
	for _, r := range routes {
		if r.Peer > 0 {
			all[r.Peer] = true
		}
	}
	return all
}

func (w *world) OnIntentGone(port string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("intent gone %s", port)
	delete(w.intents, port)
}

func (w *world) OnMapping(m vnet.Mapping) {
	if w.block != nil {
		<-w.block
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("mapping %d %s", m.VNI, m.CA)
	if w.mappings[m.VNI] == nil {
		w.mappings[m.VNI] = map[vnet.CA]vnet.Mapping{}
	}
	w.mappings[m.VNI][m.CA] = m
}

func (w *world) OnMappingGone(v vnet.VNI, ca vnet.CA) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("mapping gone %d %s", v, ca)
	delete(w.mappings[v], ca)
}

func (w *world) OnGroup(g vnet.Group) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("group %d %s", g.VNI, g.Name)
	if w.groups[g.VNI] == nil {
		w.groups[g.VNI] = map[string]vnet.Group{}
	}
	if old := w.groups[g.VNI][g.Name]; old.Generation > g.Generation && w.repeated == nil {
		w.t.Errorf("group %s went back from generation %d to %d", g.Name, old.Generation, g.Generation)
	}
	w.groups[g.VNI][g.Name] = g
}

func (w *world) OnGroupGone(v vnet.VNI, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("group gone %d %s", v, name)
	delete(w.groups[v], name)
}

func (w *world) OnService(s vnet.Service) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("service %d %s", s.VNI, s.Name)
	if w.services[s.VNI] == nil {
		w.services[s.VNI] = map[string]vnet.Service{}
	}
	w.services[s.VNI][s.Name] = s
}

func (w *world) OnServiceGone(v vnet.VNI, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("service gone %d %s", v, name)
	delete(w.services[v], name)
}

func (w *world) OnNetworkSynced(v vnet.VNI, _ int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("network %d", v)
	w.synced[v] = true
}

func (w *world) OnNetworkGone(v vnet.VNI) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("network gone %d", v)
	for _, i := range w.intents {
		if needed(&i)[v] {
			w.t.Errorf("network %d gone while %s needs it", v, i.Port)
		}
	}
	delete(w.mappings, v)
	delete(w.groups, v)
	delete(w.services, v)
	delete(w.synced, v)
}

func (w *world) OnHost(h vnet.HostInfo) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("host %s", h.Name)
	w.hosts[h.Name] = h
}

func (w *world) OnHostGone(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("host gone %s", name)
	delete(w.hosts, name)
}

func (w *world) OnSynced(revision int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if revision < w.revision && w.repeated == nil {
		w.t.Errorf("revision went back from %d to %d", w.revision, revision)
	}
	if w.repeated != nil {
		w.dropUnrepeated()
	}
	w.revision, w.repeated = revision, nil
	close(w.moved)
	w.moved = make(chan struct{})
}

// dropUnrepeated is what a handler does at the end of a resync.
func (w *world) dropUnrepeated() {
	for port := range w.intents {
		if !w.repeated["intent "+port] {
			delete(w.intents, port)
		}
	}
	for name := range w.hosts {
		if !w.repeated["host "+name] {
			delete(w.hosts, name)
		}
	}
	dropRows(w, "mapping", w.mappings)
	dropRows(w, "group", w.groups)
	dropRows(w, "service", w.services)
}

// dropRows drops the rows of networks that were not repeated.
func dropRows[K comparable, T any](w *world, kind string, rows map[vnet.VNI]map[K]T) {
	for v, all := range rows {
		for k := range all {
			if !w.repeated[fmt.Sprintf("%s %d %v", kind, v, k)] {
				delete(all, k)
			}
		}
		if !w.synced[v] {
			delete(rows, v)
		}
	}
}

// until waits until the world fulfils ok, which holds the lock.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	late := time.After(deadline)
	for {
		w.mu.Lock()
		done, moved := ok(), w.moved
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-moved:
		case <-late:
			w.mu.Lock()
			defer w.mu.Unlock()
			w.t.Fatalf("never: %s; revision %d, events %q", what, w.revision, tail(w.events))
		}
	}
}

func tail(events []string) []string { return events[max(0, len(events)-40):] }

// at waits until the host has heard everything up to a revision.
func (w *world) at(revision int64) {
	w.t.Helper()
	w.until(fmt.Sprintf("revision %d", revision), func() bool { return w.repeated == nil && w.revision >= revision })
}
