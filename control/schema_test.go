package control

import (
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

// A store of a server that knew fewer rows gets them before the next one answers
// anything, and what is refused now but was let in then is told.
func TestOlderStore(t *testing.T) {
	var said strings.Builder
	w := newWorld(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	w.furnish()
	w.host("h7", 7)
	op := w.as("olga")
	must(op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "a", Tenant: "acme", Name: "nic-1", Host: "h7", Tap: "tap-x", Mac: "52:54:00:1a:2b:3c", Network: "red"}))(t)
	must(op.AddVTEP(w.ctx, &pb.AddVTEPRequest{RequestId: "v", Tenant: "acme", Vtep: &pb.VTEP{
		Network: "red", Name: "edge", Ip: "10.17.34.77", Pa: "172.31.99.7", Mac: "52:54:00:1a:2b:77"}}))(t)
	before := indexed(w.rows())
	older := (&store.Txn{}).DeleteUnder(store.MACs).DeleteUnder(store.Taps).DeleteUnder(store.VTEPs).DeleteUnder(store.Schema)
	must(w.store.Commit(w.ctx, older))(t)
	w.stop()
	w.start()
	w.wait("the rows are there again", func() error {
		if d := differ(before, indexed(w.rows())); d != "" {
			return errors.New(d)
		}
		return nil
	})
	_, err := w.as("olga").AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "b", Tenant: "acme", Name: "nic-2", Host: "h7", Tap: "tap-x", Mac: "52:54:00:1a:2b:3d", Network: "red"})
	code(t, "a tap twice", err, codes.FailedPrecondition, "tap tap-x of host h7")
	_, err = w.as("olga").AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "c", Tenant: "acme", Name: "nic-2", Host: "h7", Tap: "tap-y", Mac: "52:54:00:1a:2b:3c", Network: "red"})
	code(t, "a MAC twice", err, codes.FailedPrecondition, "MAC 52:54:00:1a:2b:3c")
	edge, err := store.Get[vnet.Mapping](w.ctx, w.store, store.MappingKey(4096, vnet.CA{Addr: netip.MustParseAddr("10.17.34.77")}))
	if err != nil {
		t.Fatal(err)
	}
	edge.Value.PA = vnet.PA{Addr: netip.MustParseAddr("172.31.7.2")} // a host's
	must(w.store.Commit(w.ctx, older.Put(edge.Key, edge.Value)))(t)
	w.stop()
	if strings.Contains(said.String(), "refused now") {
		t.Errorf("nothing was against the rules, yet it was told:\n%s", said.String())
	}
	w.start()
	w.wait("the rows are there again", func() error {
		if _, err := store.Get[int](w.ctx, w.store, store.Schema); err != nil {
			return err
		}
		return nil
	})
	w.stop()
	if got := said.String(); !strings.Contains(got, "VTEP") || !strings.Contains(got, "it is host h7's") {
		t.Errorf("a VTEP at a host's address: told\n%s", got)
	}
}

// indexed are the rows that an older server didn't write.
func indexed[V any](rows map[string]V) map[string]V {
	maps.DeleteFunc(rows, func(k string, _ V) bool {
		return !under(k, store.MACs) && !under(k, store.Taps) && !under(k, store.VTEPs)
	})
	return rows
}
