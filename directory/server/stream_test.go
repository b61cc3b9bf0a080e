package server_test

import (
	"slices"
	"testing"

	"replug/directory/server"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A swap as a host sees it: the new network is loaded before the intent that
// stages it, the old one leaves after the switch, and nothing of a network the
// host has no port in is ever heard.
func TestSwap(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	const red, blue, other = 0xa1b2c3, 0xb4c5d6, 0xc7d8e9
	commit(t, s, putMapping(putMapping(putIntent(putMapping(new(store.Txn),
		mapping(red, "10.0.0.10", "h7", 5)), intent("h7", "p23", red, 5)),
		mapping(blue, "10.0.0.33", "h9", 6)), mapping(other, "10.0.0.44", "h9", 7)).
		Put(store.Hosts+"h9", hostInfo("h9")))

	site := serve(t, server.Options{Store: s, Control: newControl(), Identify: anyHost("h7")}, "")
	w := newWorld(t)
	attach(t, site, "h7", 4, w)
	w.until("first sync", func() bool { return w.revision > 0 })
	if got := len(w.mappings); got != 1 || len(w.mappings[red]) != 1 || len(w.intents) != 1 || w.hosts["h9"].Ports != 50 {
		t.Fatalf("after the snapshot: %v, %v, %v", w.mappings, w.intents, w.hosts)
	}

	staged := intent("h7", "p23", red, 5)
	next := intent("h7", "p23", blue, 6).Current
	staged.Next = &next
	w.mu.Lock()
	w.events = nil
	w.mu.Unlock()
	w.at(commit(t, s, putIntent(new(store.Txn), staged)))
	want := []string{"mapping 11847126 10.0.0.33", "network 11847126", "intent p23"}
	if !slices.Equal(w.events, want) {
		t.Errorf("staging: got %q, want %q", w.events, want)
	}

	went := intent("h7", "p23", blue, 6)
	w.events = nil
	w.at(commit(t, s, putIntent(putMapping(new(store.Txn).Delete(store.MappingKey(red, mapping(red, "10.0.0.10", "h7", 5).CA)),
		mapping(blue, "10.0.0.20", "h7", 6)), went)))
	want = []string{"mapping 11847126 10.0.0.20", "intent p23", "network gone 10597059"}
	if !slices.Equal(w.events, want) {
		t.Errorf("switch: got %q, want %q", w.events, want)
	}
	if _, ok := w.mappings[vnet.VNI(other)]; ok {
		t.Error("the host heard of a network it has no port in")
	}
}
