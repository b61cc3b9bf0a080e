package server_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"replug/directory/directorypb"
	"replug/directory/server"
	"replug/directory/store"
	"replug/directory/vnet"
	"replug/directory/wire"
)

// say opens a stream by hand.
func say(t testing.TB, addr string, h *directorypb.Hello) directorypb.Directory_AttachClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(func() { cancel(); _ = conn.Close() })
	rpc, err := directorypb.NewDirectoryClient(conn).Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Hello{Hello: h}}); err != nil {
		t.Fatal(err)
	}
	return rpc
}

func hello(name string) *directorypb.Hello {
	info := hostInfo(name)
	return &directorypb.Hello{Host: wire.FromHost(&info), Session: 4, ClusterId: "cluster-7c", Era: 3}
}

// welcome is what a host with that Hello is told.
func welcome(t testing.TB, site *site, h *directorypb.Hello) *directorypb.Welcome {
	t.Helper()
	rpc := say(t, site.addr, h)
	m, err := rpc.Recv()
	if err != nil || m.GetWelcome() == nil {
		t.Fatalf("got %v, %v", m, err)
	}
	if err := rpc.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = rpc.Recv()
	}
	gone(t, site, h.Host.Name)
	return m.GetWelcome()
}

// gone waits until the server has dismissed a host's stream.
func gone(t testing.TB, site *site, name string) {
	t.Helper()
	for late := time.Now().Add(deadline); ; {
		if _, ok := site.Connected(name); !ok {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%s is still attached", name)
		}
		time.Sleep(time.Millisecond)
	}
}

// Invariant 5: changes are resumed only when none can be missing.
func TestWhenToResync(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	var first, last int64
	for i := range 60 {
		last = commit(t, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, uint64(5+i))))
		if i == 0 {
			first = last
		}
	}
	site := serve(t, server.Options{Store: s, Control: newControl(), Identify: anyHost("h7"), Ring: 40}, "")
	for _, c := range []struct {
		name   string
		change func(*directorypb.Hello)
		resync bool
	}{
		{"up to date", func(h *directorypb.Hello) { h.Revision = last }, false},
		{"as far as the ring reaches", func(h *directorypb.Hello) { h.Revision = last - 20 }, false},
		{"behind the ring", func(h *directorypb.Hello) { h.Revision = last - 21 }, true},
		{"far behind", func(h *directorypb.Hello) { h.Revision = first }, true},
		{"from the future", func(h *directorypb.Hello) { h.Revision = last + 1 }, true},
		{"nothing yet", func(h *directorypb.Hello) { h.ClusterId, h.Era = "", 0 }, true},
		{"another era", func(h *directorypb.Hello) { h.Revision, h.Era = last, 2 }, true},
		{"another cluster", func(h *directorypb.Hello) { h.Revision, h.ClusterId = last, "cluster-8d" }, true},
	} {
		h := hello("h7")
		c.change(h)
		if w := welcome(t, site, h); w.Resync != c.resync || w.Revision != last || w.Era != 3 || w.ClusterId != "cluster-7c" {
			t.Errorf("%s: got %v, want resync %v", c.name, w, c.resync)
		}
	}
}

// Invariant 5: a store that has compacted its history is read anew.
func TestCompactedHistory(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	first := commit(t, s, putIntent(new(store.Txn), intent("h7", "p23", 0xa1b2c3, 5)))
	last := commit(t, s, putIntent(new(store.Txn), intent("h7", "p45", 0xa1b2c3, 6)))
	if _, err := e.Client().Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	site := serve(t, server.Options{Store: s, Control: newControl(), Identify: anyHost("h7")}, "")
	for revision, resync := range map[int64]bool{first: true, last: false} {
		h := hello("h7")
		h.Revision = revision
		if w := welcome(t, site, h); w.Resync != resync {
			t.Errorf("revision %d of %d: resync %v", revision, last, w.Resync)
		}
	}
}

// What a host that comes back hears: the last state of what has changed, in the
// promised order, and that networks it no longer needs are gone.
func TestResume(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	const red, blue, green = 0xa1b2c3, 0xb4c5d6, 0xc7d8e9
	site := serve(t, server.Options{Store: s, Control: newControl(), Identify: anyHost("h7")}, "")
	was := commit(t, s, putMapping(putMapping(putMapping(putIntent(new(store.Txn), intent("h7", "p23", red, 5)),
		mapping(red, "10.0.0.10", "h7", 5)), mapping(blue, "10.0.0.33", "h9", 6)), mapping(green, "10.0.0.44", "h9", 7)))
	commit(t, s, putIntent(new(store.Txn), intent("h7", "p45", green, 8))) // comes and goes unseen
	commit(t, s, putMapping(new(store.Txn), mapping(red, "10.0.0.55", "h9", 9)))
	commit(t, s, new(store.Txn).Delete(store.IntentKey("h7", "p45")))
	commit(t, s, new(store.Txn).Put(store.GroupKey(blue, "web"), vnet.Group{VNI: blue, Name: "web", Generation: 3}).
		Put(store.ServiceKey(red, "www"), vnet.Service{VNI: red, Name: "www", VIP: mapping(red, "10.0.0.99", "", 1).CA, Port: 443, Protocol: vnet.TCP}))
	last := commit(t, s, putIntent(new(store.Txn).Delete(store.MappingKey(red, mapping(red, "10.0.0.10", "h7", 5).CA)),
		intent("h7", "p23", blue, 10)))

	h := hello("h7")
	h.Revision = was
	rpc := say(t, site.addr, h)
	var got []string
	for {
		m, err := rpc.Recv()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.Message.(type) {
		case *directorypb.ToHost_Welcome:
			got = append(got, fmt.Sprintf("welcome %v", m.Welcome.Resync))
		case *directorypb.ToHost_Mapping:
			got = append(got, "mapping "+m.Mapping.Ca)
		case *directorypb.ToHost_Group:
			got = append(got, "group "+m.Group.Name)
		case *directorypb.ToHost_Service:
			got = append(got, "service "+m.Service.Name)
		case *directorypb.ToHost_NetworkSynced:
			got = append(got, fmt.Sprintf("network %x", m.NetworkSynced.Vni))
		case *directorypb.ToHost_Intent:
			got = append(got, "intent "+m.Intent.Port+" "+vnet.Epoch(m.Intent.Current.Epoch).String())
		case *directorypb.ToHost_IntentGone:
			got = append(got, "gone "+m.IntentGone)
		case *directorypb.ToHost_NetworkGone:
			got = append(got, fmt.Sprintf("network gone %x", m.NetworkGone))
		case *directorypb.ToHost_Synced:
			got = append(got, fmt.Sprint("synced ", m.Synced.Revision == last))
		}
		if m.GetSynced() != nil {
			break
		}
	}
	want := []string{"welcome false", "group web", "mapping 10.0.0.33", "network b4c5d6", "intent p23 3.10", "gone p45",
		"network gone a1b2c3", "network gone c7d8e9", "synced true"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestRefusals(t *testing.T) {
	e, s := openStore(t, t.TempDir())
	defer func() { _ = e.Close() }()
	c := newControl()
	site := serve(t, server.Options{Store: s, Control: c, Identify: anyHost("h7")}, "")
	refused := func(h *directorypb.Hello) (codes.Code, string) {
		_, err := say(t, site.addr, h).Recv()
		return status.Code(err), status.Convert(err).Message()
	}
	if code, text := refused(hello("h9")); code != codes.PermissionDenied {
		t.Errorf("another host's name: %v %s", code, text)
	}
	bad := hello("h7")
	bad.Host.Address = "172.31.7.300"
	if code, text := refused(bad); code != codes.InvalidArgument {
		t.Errorf("an address that is none: %v %s", code, text)
	}
	c.refuse = status.Error(codes.FailedPrecondition, "PA prefix overlaps h9's")
	if code, text := refused(hello("h7")); code != codes.FailedPrecondition || text != "PA prefix overlaps h9's" {
		t.Errorf("refused by control: %v %s", code, text)
	}
	c.refuse = nil
	site.SetLeader(false, "s2 at 172.31.250.3:7443")
	if code, text := refused(hello("h7")); code != codes.Unavailable || text != "this server does not lead: s2 at 172.31.250.3:7443 does" {
		t.Errorf("not the leader: %v %s", code, text)
	}
	if calls := c.log(); len(calls) != 1 || calls[0] != "down h7" {
		t.Errorf("control heard %q", calls)
	}
	site.SetLeader(true, "s1")
	live := say(t, site.addr, hello("h7"))
	if _, err := live.Recv(); err != nil {
		t.Fatal(err)
	}
	site.SetLeader(false, "s2")
	var err error
	for err == nil {
		_, err = live.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a live stream when the lead is lost: %v", err)
	}
}
