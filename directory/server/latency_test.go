package server_test

import (
	"fmt"
	"testing"

	"replug/directory/server"
	"replug/directory/store"
)

// BenchmarkChange is from a transaction that is durable until the host's handler
// has heard it, the durable write included; compare with the store's own
// BenchmarkCommit.
func BenchmarkChange(b *testing.B) {
	e, s := openStore(b, b.TempDir())
	defer func() { _ = e.Close() }()
	commit(b, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, 5)))
	for i := range 1000 {
		commit(b, s, putMapping(new(store.Txn), mapping(0xa1b2c3, fmt.Sprintf("10.0.%d.%d", 1+i/200, 2+i%200), "h9", 6)))
	}
	site := serve(b, server.Options{Store: s, Control: quiet{}}, "")
	w := newWorld(b)
	attach(b, site, "h7", 4, w)
	w.until("attached", func() bool { return w.revision > 0 && w.repeated == nil })
	i := uint64(6)
	for b.Loop() {
		w.at(commit(b, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, i))))
		i++
	}
}
