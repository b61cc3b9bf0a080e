package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/directory/store"
)

// A standby refuses and names the leader; when the leader goes it takes over, and
// what the former one still tries to write is refused (one writer).
func TestStandbyTakesOver(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Alone = false })
	w.furnish()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.db.Identity(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	second, halt := serve(t, Config{Name: "s2", Address: l.Addr().String(), Store: store.New(w.db.Client()), Cluster: id.ID, Era: id.Era, Log: quiet()}, l)
	defer halt()
	op := dial(t, "olga", l.Addr().String())
	w.wait("the standby knows the leader", func() error {
		_, err := op.ListTenants(w.ctx, &pb.ListTenantsRequest{})
		if err == nil || !containsAll(err.Error(), "standby", "s1", w.addr) {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	_, err = op.CreateTenant(w.ctx, &pb.CreateTenantRequest{RequestId: "x", Name: "late"})
	code(t, "a call to the standby", err, codes.Unavailable, "s1")
	if second.reign.Load() != nil {
		t.Fatal("two servers lead")
	}
	old := w.srv.reign.Load()
	// The leader's lease ends without its doing: it was cut off.
	r, err := w.db.Client().Get(w.ctx, store.Leader, clientv3.WithFirstCreate()...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.db.Client().Revoke(w.ctx, clientv3.LeaseID(r.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	err = old.commit(w.ctx, (&store.Txn{}).Put(store.Tenants+"ghost", "ghost"))
	if !errors.Is(err, store.ErrFenced) {
		t.Errorf("the former leader's write: %v", err)
	}
	w.leads(second)
	got := must(op.ListTenants(w.ctx, &pb.ListTenantsRequest{}))(t)
	if len(got.Tenants) != 1 {
		t.Errorf("tenants %v", got.Tenants)
	}
}

// A leader that is told to stop hands over at once: nobody waits for its lease.
func TestHandOver(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Alone = false })
	id, err := w.db.Identity(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.retire()
	begin := func(name string) (*Server, func()) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return serve(t, Config{Name: name, Address: l.Addr().String(), Store: store.New(w.db.Client()), Cluster: id.ID, Era: id.Era,
			Session: 50 * time.Second, Log: quiet()}, l)
	}
	first, haltFirst := begin("s1")
	w.leads(first)
	second, haltSecond := begin("s2")
	defer haltSecond()
	w.wait("the second stands, too", func() error {
		r, err := w.db.Client().Get(w.ctx, store.Leader, clientv3.WithPrefix())
		if err == nil && len(r.Kvs) != 2 {
			err = fmt.Errorf("%d stand", len(r.Kvs))
		}
		return err
	})
	haltFirst()
	w.leads(second)
}

// A server that was killed serves again at once: its former life's election key
// does not have to time out.
func TestRestartAfterKill(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.stop()
	w.start()
	// What kill -9 leaves behind: a key that nobody keeps alive, and long.
	w.halt()
	w.halt = nil
	w.change = nil
	left := func() {
		lease, err := w.db.Client().Grant(w.ctx, 3600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.db.Client().Put(w.ctx, store.Leader+"7b", "s1 at former life", clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
	}
	w.change = func(*Config) { left() }
	w.start()
	if got := must(w.as("olga").ListTenants(w.ctx, &pb.ListTenantsRequest{}))(t); len(got.Tenants) != 1 {
		t.Errorf("tenants %v", got)
	}
}

func containsAll(s string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// Store down: changes are refused, fast and clearly (invariant 6).
func TestStoreDown(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.closeDB()
	ctx, stop := context.WithTimeout(w.ctx, patience)
	defer stop()
	_, err := w.as("olga").CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: "x", Name: "late"})
	code(t, "a change without a store", err, codes.Unavailable)
}

// After a restore nothing new is given out before all hosts have been there.
func TestGateAfterRestore(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	h9 := w.host("h9", 9)
	h.halt()
	h9.halt()
	w.stop()
	w.change = func(c *Config) { c.Era++ }
	w.start()
	op := w.as("olga")
	q := &pb.CreateNetworkRequest{RequestId: "n", Network: &pb.Network{Moniker: "green", Tenant: "acme", Subnets: []*pb.Subnet{{Prefix: "10.5.0.0/16"}}}}
	_, err := op.CreateNetwork(w.ctx, q)
	code(t, "before the hosts have been there", err, codes.FailedPrecondition, "restored")
	w.host("h7", 7)
	w.wait("before the last host has been there", func() error {
		_, err := op.CreateNetwork(w.ctx, q)
		if status.Code(err) != codes.FailedPrecondition || !containsAll(status.Convert(err).Message(), " 1 hosts", "h9") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	must(op.DeleteHost(w.ctx, &pb.DeleteHostRequest{RequestId: "gone", Name: "h9"}))(t)
	w.wait("the gate opens", func() error {
		_, err := op.CreateNetwork(w.ctx, q)
		return err
	})
	vm := w.vm("web-1", "red", "")
	if vm.Port.Epoch[:2] != "2." {
		t.Errorf("epoch %s is not of the new era", vm.Port.Epoch)
	}
}
