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
	if !w.synced[i.Current.VNI] || (i.Next != nil && !w.synced[i.Next.VNI]) {
		w.t.Errorf("intent %s came before its networks: %v", i.Port, w.events)
	}
	if old, ok := w.intents[i.Port]; ok && old.Current.Epoch > i.Current.Epoch && w.repeated == nil {
		w.t.Errorf("intent %s went back from epoch %s to %s", i.Port, old.Current.Epoch, i.Current.Epoch)
	}
	w.intents[i.Port] = i
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
		if i.Current.VNI == v || (i.Next != nil && i.Next.VNI == v) {
			w.t.Errorf("network %d gone while %s needs it", v, i.Port)
		}
	}
	delete(w.mappings, v)
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
	for v, all := range w.mappings {
		for ca := range all {
			if !w.repeated[fmt.Sprintf("mapping %d %s", v, ca)] {
				delete(all, ca)
			}
		}
		if !w.synced[v] {
			delete(w.mappings, v)
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
